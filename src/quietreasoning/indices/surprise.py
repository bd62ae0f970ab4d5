"""Running text as events: a model reads it, and an event ends where a token surprises the model.

Shapes: T tokens of a window, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, role_of
from quietreasoning.capture import Teacher
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.memory.episodic import EpisodicStore, Written
from quietreasoning.memory.events import EventWriter
from quietreasoning.memory.surprise import (
    SurpriseBoundaries,
    SurpriseSettings,
    bayesian_surprise,
    token_surprise,
)

READ = 2048  # tokens that are read at once, where the model's context allows as many


def texts_in(path: Path) -> Iterator[tuple[str, str]]:
    """(where it stands, text): a `.jsonl` file holds one in the field `text` of each row, any other file is
    one. UserError for what is no text."""
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {path} cannot be read as text: {error}") from error
    if path.suffix != ".jsonl":
        yield str(path), whole
        return
    for number, line in enumerate(whole.splitlines(), 1):
        if line.strip():
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                text = None
            if not isinstance(text, str):
                raise UserError(f"{path}:{number}: needs a field text; give an object a line")
            yield f"{path}:{number}", text


def write_surprises(
    teacher: Teacher, path: Path, store: EpisodicStore, settings: SurpriseSettings
) -> list[Written]:
    """Write the events of every text of a file; a text's last event ends with it."""
    tokenizer = teacher.tokenizer
    boundaries = SurpriseBoundaries(1, settings)
    writer = EventWriter(store, boundaries, lambda ids: tokenizer.decode(ids), source=str(path))
    written = []
    for where, text in texts_in(path):
        ids_T = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids, dtype=torch.long)
        if len(ids_T) < 2:
            raise UserError(f"{where}: has {len(ids_T)} tokens; an event needs two, leave it out")
        for tokens_T, states_TD, surprise_T in read(teacher.backbone, ids_T, settings):
            written += writer.observe(tokens_T[None], states_TD[None], surprise_T[None])
        written += writer.finish(0)
    return written


@torch.no_grad()
def read(
    backbone: Backbone, ids_T: Tensor, settings: SurpriseSettings
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(tokens [T], last states [T, D], surprise [T]) of a text, piece by piece.

    Where the text is longer than what is read at once, a token sees at least half of that before it.
    """
    most = READ if backbone.context is None else min(READ, backbone.context)
    step, device = max(1, most // 2), next(backbone.parameters()).device
    end = 0
    while end < len(ids_T):
        start, begin = max(0, end - step), end  # begin: first token that is new
        end = min(len(ids_T), start + most)
        window_1T = ids_T[None, start:end].to(device)
        hidden_1TD = backbone(window_1T, role_of(window_1T, Role.PROMPT)).hidden_BTD
        logits_1TV = backbone.logits(hidden_1TD)
        if settings.kind == "bayes":
            surprise_1T = bayesian_surprise(logits_1TV)
        else:
            surprise_1T = token_surprise(logits_1TV, window_1T)
        new = begin - start
        yield ids_T[begin:end], hidden_1TD[0, new:], surprise_1T[0, new:]
