"""Where a row says that thinking should stop: from a curriculum, from a judge's scores, from utilities.

Pure functions of a row's metadata. Loops are numbered from 1. What is not known gives None, which masks the
row out: a missing score never reads as a bad one. A target is a step to halt at, or a step that was only
survived; `losses.hazard.survival_loss` takes both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quietreasoning.config import UserError, suggest
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import HaltFormat
from quietreasoning.data.example import Example
from quietreasoning.losses.hazard import curriculum_step, utility_target

HIGH = 0.8  # a score that halts at once
SHRINKING = 0.05  # a gain below which another loop is not worth it


@dataclass(frozen=True)
class Tier:
    """The most that a row of this tier may think."""

    spans: int
    loops: int


TIERS = {"Tier-1": Tier(0, 1), "Tier-2": Tier(1, 2), "Tier-3": Tier(3, 3)}


@dataclass(frozen=True)
class HaltTarget:
    """halts: stop after `step`. Else: that one went on after `step`, and nothing later is known."""

    step: int
    halts: bool = True


def tier_of(name: str) -> Tier:
    """UserError for a name that is no tier."""
    if name not in TIERS:
        raise UserError(f"tier={name!r}: names no tier. {suggest(name, TIERS)}")
    return TIERS[name]


def bounded_loops(max_loops: int, tier: str | None) -> int:
    """How many loops a row may run: its own limit or its tier's, whichever is less."""
    return max_loops if tier is None else min(max_loops, tier_of(tier).loops)


def curriculum_target(stage: int | None, max_loops: int) -> HaltTarget | None:
    """Stage 0 runs all loops, stage 1 int(0.75 max), later ones int(0.5 max), at least one."""
    return None if stage is None else HaltTarget(curriculum_step(stage, max_loops))


def judge_target(
    loop: int | None,
    max_loops: int,
    score: float | None,
    previous: float | None = None,
    *,
    high: float = HIGH,
    shrinking: float = SHRINKING,
) -> HaltTarget | None:
    """What a judge's score after one loop says about this loop.

    Halt in the last loop whatever the score; where score >= high, in the first loop too; where the score
    still rose, but by less than `shrinking`. A falling score is no reason to halt. None where the loop or its
    score is not known, or where only the missing score of the loop before could tell. UserError for a loop
    out of range.
    """
    if loop is None:
        return None
    if not 1 <= loop <= max_loops:
        raise UserError(f"loop_index={loop}: give a loop from 1 to max_loops={max_loops}")
    if loop == max_loops:
        return HaltTarget(loop)
    if score is None:
        return None
    if score >= high:
        return HaltTarget(loop)
    if loop == 1:
        return HaltTarget(loop, halts=False)
    if previous is None:
        return None
    return HaltTarget(loop, halts=0 <= score - previous < shrinking)


def utility_step(
    scores: Sequence[float] | None, cost: float, costs: Sequence[float] | None = None
) -> HaltTarget | None:
    """The loop k whose u_k = score_k - cost * cost_k is best, the earliest of equals.

    costs: what the loops up to each one cost together; k itself if left out.
    """
    shares = utility_shares(scores, cost, 0.0, costs)
    return None if shares is None else HaltTarget(shares.index(1.0) + 1)


def utility_shares(
    scores: Sequence[float] | None, cost: float, temperature: float, costs: Sequence[float] | None = None
) -> list[float] | None:
    """pi_k, proportional to exp((u_k - max u) / temperature); all on the best loop at temperature 0."""
    if not scores:
        return None
    if costs is not None and len(costs) != len(scores):
        raise UserError(f"{len(costs)} costs for {len(scores)} scores: give one a loop")
    each_T = torch.tensor(costs or range(1, len(scores) + 1), dtype=torch.float64)
    score_1T = torch.tensor([scores], dtype=torch.float64)
    return utility_target(score_1T, cost * each_T, temperature)[0].tolist()


def halt_target(
    metadata: Mapping[str, Any],
    source: str,
    *,
    max_loops: int = 2,
    tier: str | None = None,
    high: float = HIGH,
    shrinking: float = SHRINKING,
    cost: float = 0.0,
) -> HaltTarget | None:
    """A row's target by one source: "curriculum", "judge" or "utility"; None where it does not say enough.

    Reads `max_loops`, `tier`, `curriculum_stage`, `loop_index`, `judge_score`, `prev_score`, `scores` and
    `costs`; max_loops and tier are for rows that name none. The tier bounds the loops, and scores beyond them
    are not looked at. UserError for another source, and for a field that is no number.
    """
    _check(metadata)
    loops = bounded_loops(int(metadata.get("max_loops") or max_loops), metadata.get("tier", tier))
    if source == "curriculum":
        return curriculum_target(metadata.get("curriculum_stage"), loops)
    if source == "judge":
        loop = metadata.get("loop_index")
        within = None if loop is None else min(loop, loops)
        scores = metadata.get("judge_score"), metadata.get("prev_score")
        return judge_target(within, loops, *scores, high=high, shrinking=shrinking)
    if source == "utility":
        scores, costs = metadata.get("scores"), metadata.get("costs")
        return utility_step((scores or [])[:loops], cost, costs and costs[:loops])
    raise UserError(
        f"halt source {source!r} is unknown. {suggest(source, ('curriculum', 'judge', 'utility'))}"
    )


def halt_field(example: Example, config: HaltFormat) -> tuple[int, int]:
    """A row of `Batch.halt_B2`: a step and whether it halts; IGNORE twice where the row does not say enough.
    UserError, with the example, where its metadata cannot be read."""
    try:
        target = halt_target(example.meta.get("metadata") or {}, **config.model_dump())
    except UserError as error:
        raise UserError(f"example {example.id}: its metadata: {error}") from None
    return (IGNORE, IGNORE) if target is None else (target.step, int(target.halts))


def _check(metadata: Mapping[str, Any]) -> None:
    for name in ("max_loops", "loop_index", "curriculum_stage"):
        value = metadata.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise UserError(f"{name}={value!r:.40} is no count; give 0, 1, 2, ...")
    for name in ("judge_score", "prev_score", "scores", "costs"):
        value = metadata.get(name)
        listed = value if name in ("scores", "costs") and isinstance(value, list | tuple) else [value]
        if value is not None and any(isinstance(x, bool) or not isinstance(x, int | float) for x in listed):
            raise UserError(f"{name}={value!r:.40} is no number; give one, or a list to scores and costs")
