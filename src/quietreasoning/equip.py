"""What a method is given beside its batches: a judge of its own answers, and what a teacher said before.

A method knows neither examples nor files; its settings say what it wants, and here it gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from quietreasoning.contract import IGNORE, Method
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.teacher_cache.reading import TeacherCache, row_keys
from quietreasoning.evaluate.rewards import Reward, reward_of
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.load import load_rules
from quietreasoning.losses.kd_sparse import SampledTeacher, SparseTeacher
from quietreasoning.losses.kd_targets import Teacher


def equip(
    method: Method, examples: Sequence[Example], encoder: Encoder, scorer: str, *, probing: bool = False
) -> None:
    """Give a method what its settings ask for. UserError for a rule file or a cache that cannot be read.

    probing: the doctor asks about rows that it has changed, which no teacher has read; a cache then answers
    for them with no knowledge instead of refusing them.
    """
    reward = getattr(method.config, "reward", None)
    if reward is not None and reward.by != "exact":
        worth = reward_of(scorer) if reward.by == "task" else _by_rules(reward.rules)
        method.judge = judge(examples, encoder, worth)
    recorded = getattr(method.config, "cache", None)
    if recorded is not None:
        temperature, rows = method.config.divergence.temperature, method.backbone.vocab_size
        method.recorded = recorded_teacher(recorded.path, encoder, temperature, recorded.tail, rows, probing)


def judge(examples: Sequence[Example], encoder: Encoder, worth: Reward) -> Callable[[Tensor, Tensor], Tensor]:
    """(row_N, tokens_NT) -> what each answer is worth [N]; one without end of sequence is worth 0."""
    eos = encoder.tokenizer.eos_token_id

    def judged(row_N: Tensor, tokens_NT: Tensor) -> Tensor:
        found = []
        for row, tokens in zip(row_N.tolist(), tokens_NT.tolist(), strict=True):
            ids = [id for id in tokens if id != IGNORE]
            ended = ids[-1:] == [eos] and row != IGNORE
            found.append(worth(encoder.text(ids[:-1]), examples[row]) if ended else 0.0)
        return torch.tensor(found)

    return judged


def _by_rules(path: str) -> Reward:
    scorer = load_rules(path)
    return lambda text, example: scorer.reward(text, Context(prompt=example.prompt))


def recorded_teacher(
    path: str, encoder: Encoder, temperature: float, tail: str, rows: int, probing: bool = False
) -> Callable[[Tensor, Tensor], Teacher]:
    """(ids_BT, learned_BT) -> what the cache of this folder holds of these positions, as a teacher."""

    @cache
    def opened() -> TeacherCache:  # at the first row: an evaluation asks for none
        return TeacherCache.open(path, tokenizer=encoder.tokenizer, temperature=temperature, table=rows)

    def look_up(ids_BT: Tensor, learned_BT: Tensor) -> Teacher:
        known = opened()
        learns_B = learned_BT.any(1)
        keys = row_keys(ids_BT[learns_B], learned_BT[learns_B])
        if probing and any(key not in known for key in keys):
            nothing_N1 = torch.zeros(int(learned_BT.sum()), 1, device=ids_BT.device)
            return SparseTeacher(nothing_N1.long(), nothing_N1 - 1, tail, temperature=temperature)
        said = known.rows(keys)
        ids_NK, vocabulary = said.ids_NK.to(ids_BT.device), known.settings["vocabulary"]
        if known.settings["keep"]["draws"] is not None:
            return SampledTeacher(ids_NK, temperature, vocabulary)
        logps_NK = said.logps_NK.to(ids_BT.device)
        return SparseTeacher(ids_NK, logps_NK, tail, vocabulary, temperature)

    return look_up
