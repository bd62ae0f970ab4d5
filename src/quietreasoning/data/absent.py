"""Files that a recipe reads and nobody has named yet: which they are, and what a plan takes in their place.

A plan needs lengths and a vocabulary, not words: rows of assumed length stand in for those of a file, and a
tokenizer that would be trained on them has the size that the recipe allows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from quietreasoning.contract import IGNORE, Batch
from quietreasoning.data.config import RATIONALE, DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tasks import TASKS
from quietreasoning.data.thinking import with_thinking
from quietreasoning.data.tokenizers import build_tokenizer, train_bpe
from quietreasoning.data.windows import window_size

ABSENT = "(to be named)"  # data.path until then
PROMPT, STEPS, STEP, RESULT, ANSWER = 128, 4, 24, 3, 4  # tokens of a question, as in school mathematics
ROWS = 8
ASSUMED = (
    f"text in whole windows; questions of {PROMPT} tokens, {STEPS} steps of {STEP}, answers of {ANSWER}; a "
    "tokenizer as large as data.tokenizer.vocab, where one would be trained"
)


def mark_absent(
    values: Mapping[str, Any], provenance: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Expanded settings with ABSENT for each path that is missing, and the keys by which to name them.

    A stage that takes its path over from the stage before needs no key of its own.
    """
    stages, missing, keys, before = [], 0, [], None
    for stage in values["stages"]:
        data = stage.get("data", {})
        task = TASKS.get(data.get("task"))
        origin = None
        if task is not None and task.needs_path and not data.get("path"):
            key = f"stages.{stage['name']}.data.path"
            origin = (data["task"], provenance.get(key))
            if origin != before:
                keys.append(key)
            missing += 1
            stage = stage | {"data": data | {"path": ABSENT}}
        before = origin
        stages.append(stage)
    whole = len(keys) == 1 and missing == len(stages)
    return {**values, "stages": stages}, ("data.path",) if whole else tuple(keys)


def assumed_tokenizer(
    datas: Sequence[DataConfig], path: str | None, revision: str | None
) -> PreTrainedTokenizerFast:
    """Trained on the files that are there; what it lacks to the size allowed is made up."""
    wanted, there = datas[0].tokenizer, [data for data in datas if data.path != ABSENT]
    if wanted.path or (path and not wanted.train):
        return build_tokenizer(datas[0], build_task(datas[0]), path, revision)
    if there:
        first, *later = there
        first = first.model_copy(update={"tokenizer": wanted})
        tokenizer = build_tokenizer(first, build_task(first), path, revision, later)
    else:
        tokenizer = train_bpe([*RATIONALE, datas[0].format.answer_prefix], wanted.vocab)
        tokenizer = with_thinking(tokenizer) if wanted.thinking else tokenizer
    tokenizer.add_tokens([f"<{i}>" for i in range(wanted.vocab - len(tokenizer))])
    return tokenizer


def assumed_batch(data: DataConfig, encoder: Encoder) -> Batch:
    """Rows as long as `ASSUMED` says, within the encoder's limits."""
    if TASKS[data.task].text:
        return _batch(window_size(encoder, data.options.window), 0, 0)
    limits = (PROMPT, encoder.max_prompt_tokens, encoder.context)
    return _batch(min(limit for limit in limits if limit is not None), STEPS, ANSWER)


def _batch(prompt: int, steps: int, answer: int) -> Batch:
    def ids(*shape: int) -> torch.Tensor:
        return torch.zeros(ROWS, *shape, dtype=torch.long)

    known = ids() if answer else torch.full((ROWS,), IGNORE)
    return Batch(ids(), ids(prompt), ids(steps, STEP), ids(steps, RESULT), ids(answer), known)
