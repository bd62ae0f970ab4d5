"""What a method is given beside its batches: a judge of its own answers, and what a teacher said before.

A method knows neither examples nor files; its settings say what it wants, and here it gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Method
from quietreasoning.data.batches import Batches
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.teacher_cache.reading import Taught, TeacherCache, row_keys
from quietreasoning.evaluate.rewards import Reward, reward_of
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.load import load_rules
from quietreasoning.losses.cross_vocabulary import SharedIds
from quietreasoning.losses.kd_sparse import SampledTeacher, SparseTeacher
from quietreasoning.losses.kd_targets import Teacher


def equip(
    method: Method, examples: Sequence[Example], encoder: Encoder, scorer: str, *, probing: bool = False
) -> None:
    """Give a method what its settings ask for. UserError for a rule file or a cache that cannot be read.

    probing: the doctor asks about its batch, then about rows that it has changed, which no teacher has read;
    a cache then answers for those with no knowledge instead of refusing them.
    """
    reward = getattr(method.config, "reward", None)
    if reward is not None and reward.by != "exact":
        worth = reward_of(scorer) if reward.by == "task" else _by_rules(reward.rules)
        method.judge = judge(examples, encoder, worth)
    if method.crosses:
        method.shared = crossed(method.teacher.vocab_size, encoder)
    recorded = getattr(method.config, "cache", None)
    if recorded is not None:
        method.recorded = recorded_teacher(
            recorded.path,
            encoder,
            method.config.divergence.temperature,
            recorded.tail,
            method.backbone.vocab_size,
            steps=method.config.steps,
            probing=probing,
        )


def crossed(table: int, encoder: Encoder) -> SharedIds:
    """Which ids of the teacher's tokenizer and the student's stand for the same. UserError where no tokenizer
    is named, or the teacher's table has fewer rows than it."""
    if encoder.taught is None:
        raise UserError("data.format.taught is not set: name the teacher's tokenizer there")
    shared = encoder.taught.crossing.shared()
    if table < shared.sizes[0]:
        raise UserError(
            f"data.format.taught.tokenizer={encoder.format.taught.tokenizer} has {shared.sizes[0]} ids, the "
            f"teacher's table {table} rows; name the tokenizer that it was trained with"
        )
    return shared


def coverage_note(batches: Batches, *, refuse: bool = True) -> list[str]:
    """How much a teacher's tokenizer and the student's have in common on the rows that were encoded, as a
    line for the log; none without such a teacher. UserError where that is less than asked for."""
    if (coverage := batches.coverage()) is None:
        return []
    if refuse:
        coverage.require(batches.encoder.format.taught.least)
    return [f"two tokenizers: {coverage}"]


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
    path: str,
    encoder: Encoder,
    temperature: float,
    tail: str,
    table: int,
    *,
    steps: bool = True,
    probing: bool = False,
) -> Callable[[Tensor, Tensor], Teacher]:
    """(ids_BT, learned_BT) -> what the cache of this folder holds of these positions, as a teacher.

    table: how many rows the student's embedding has. steps: whether the student learns visible steps.
    UserError, at the first rows that are asked for, where the cache is of others; see `TeacherCache`. When
    probing, only the first batch must be known: it is the true one.
    """

    @cache
    def opened() -> TeacherCache:  # at the first row: an evaluation asks for none
        found = TeacherCache.open(path, tokenizer=encoder.tokenizer, temperature=temperature, table=table)
        check_steps(path, found, steps)
        return found

    met = False

    def look_up(ids_BT: Tensor, learned_BT: Tensor) -> Teacher:
        nonlocal met
        known, learns_B = opened(), learned_BT.any(1)
        keys = row_keys(ids_BT[learns_B], learned_BT[learns_B])
        if probing and met:
            said = known_rows(known, keys, learned_BT[learns_B].sum(1).tolist())
        else:
            said, met = known.rows(keys), True
        ids_NK, vocabulary = said.ids_NK.to(ids_BT.device), known.settings["vocabulary"]
        if known.settings["keep"]["draws"] is not None:
            return SampledTeacher(ids_NK, temperature, vocabulary)
        logps_NK = said.logps_NK.to(ids_BT.device)
        return SparseTeacher(ids_NK, logps_NK, tail, vocabulary, temperature)

    return look_up


def check_steps(path: str, cached: TeacherCache, steps: bool) -> None:
    """UserError where a cache was captured for a student that learns other positions of its rows."""
    captured = cached.settings["data"].get("steps", True)
    if captured is not steps:
        raise UserError(
            f"{path}: its rows were captured {'with' if captured else 'without'} visible steps, and "
            f"method.steps={str(steps).lower()}. Set method.steps={str(captured).lower()}, or capture anew "
            f"with quiet data teacher{'' if steps else ' --no-steps'}, into another --out."
        )


def known_rows(cached: TeacherCache, keys: Sequence[bytes], positions: Sequence[int]) -> Taught:
    """`cached.rows(keys)`; a row that no teacher has read gets one id of no meaning at each of its positions,
    whatever rows stand beside it."""
    parts = [cached.rows([key]) if key in cached else None for key in keys]
    draws = cached.settings["keep"]["draws"]
    parts = [
        Taught(torch.zeros(n, draws or 1).long(), torch.full((n, draws or 1), -1.0), torch.zeros(n))
        if part is None
        else part
        for part, n in zip(parts, positions, strict=True)
    ]
    width = max(part.ids_NK.shape[1] for part in parts)
    room = [(0, width - part.ids_NK.shape[1]) for part in parts]
    ids = [pad(part.ids_NK, free, value=-1) for part, free in zip(parts, room, strict=True)]
    logps = [pad(part.logps_NK, free, value=-torch.inf) for part, free in zip(parts, room, strict=True)]
    return Taught(torch.cat(ids), torch.cat(logps), torch.cat([part.tail_N for part in parts]))
