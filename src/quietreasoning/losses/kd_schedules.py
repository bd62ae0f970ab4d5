"""How much, and how softly, to follow the teacher at each position: from entropies that carry no gradient.

Shapes: N positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from quietreasoning.losses.kd_targets import Teacher

FOLLOW = ("uncertain", "certain")


class Shares(NamedTuple):
    """Weights and temperature of each position [N]."""

    kd_N: Tensor
    ce_teacher_N: Tensor  # cross-entropy on labels that the teacher wrote
    ce_truth_N: Tensor  # cross-entropy on gold labels
    temperature_N: Tensor


@dataclass(frozen=True)
class EntropySchedule:
    """r = clamp((H - min_entropy) / (max_entropy - min_entropy), 0, 1) of the teacher's entropy H in nats,
    then T = min_temperature + r (max_temperature - min_temperature), weights KD = CE(teacher) = r / 2,
    CE(truth) = 1 - r; position by position, not from one average of the batch.

    follow: "uncertain" is that rule, which follows the teacher most where it is least certain; "certain"
    reads it with 1 - r in the place of r. ValueError where a range is empty or `follow` is neither.
    """

    min_entropy: float = 2.0
    max_entropy: float = 8.0
    min_temperature: float = 1.5
    max_temperature: float = 3.0
    follow: str = "uncertain"

    def __post_init__(self) -> None:
        if self.follow not in FOLLOW:
            raise ValueError(f"follow={self.follow!r} is no sign; give one of {', '.join(FOLLOW)}")
        if not 0 <= self.min_entropy < self.max_entropy < math.inf:
            raise ValueError(
                f"min_entropy={self.min_entropy}, max_entropy={self.max_entropy} is no range; "
                "give the larger last, neither below 0"
            )
        if not 0 < self.min_temperature <= self.max_temperature < math.inf:
            raise ValueError(
                f"min_temperature={self.min_temperature}, max_temperature={self.max_temperature} "
                "is no range; give the larger last, both above 0"
            )

    def __call__(self, entropy_N: Tensor) -> Shares:
        """The shares of positions whose teacher has this entropy."""
        ramp_N = (entropy_N.detach() - self.min_entropy) / (self.max_entropy - self.min_entropy)
        ramp_N = ramp_N.clamp(0, 1)
        if self.follow == "certain":
            ramp_N = 1 - ramp_N
        temperature_N = self.min_temperature + ramp_N * (self.max_temperature - self.min_temperature)
        return Shares(ramp_N / 2, ramp_N / 2, 1 - ramp_N, temperature_N)


def adaptive_temperature(progress: float, start: float = 3.0, stop: float = 1.5) -> float:
    """The temperature at `progress` in [0, 1] of the run, on a straight line. ValueError outside of it."""
    if not 0 <= progress <= 1:
        raise ValueError(f"progress={progress} is no share of the run; give 0 to 1")
    return start + progress * (stop - start)


@torch.no_grad()
def teacher_entropy(teacher: Teacher, *, chunk: int = 1024) -> Tensor:
    """The teacher's own entropy [N] in nats, `chunk` rows at a time.

    A teacher of states runs its head for it once more than for the loss. ValueError where the teacher cannot
    tell it, or chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} holds no row; give at least 1")
    starts = range(0, max(len(teacher), 1), chunk)
    return torch.cat([teacher.rows(slice(start, start + chunk)).entropy() for start in starts])
