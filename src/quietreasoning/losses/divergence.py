"""How far one next-token distribution is from another, without holding all logits of both.

Shapes: N positions, D width (which may differ between the two), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quietreasoning.losses.rows import statistic

Head = Callable[[Tensor], Tensor]  # [C, D] -> logits [C, V]


def forward_kl(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """KL(teacher || student) of each position [N] from logits, in nats, over the whole vocabulary."""
    teacher_NV, student_NV = (statistic(logits).log_softmax(-1) for logits in (teacher_NV, student_NV))
    return (teacher_NV.exp() * (teacher_NV - student_NV)).sum(-1)


def forward_kl_of_states(
    teacher: Head, student: Head, taught_ND: Tensor, hidden_ND: Tensor, *, chunk: int = 1024
) -> Tensor:
    """`forward_kl` [N] from last states, `chunk` positions at a time: both heads run again in the backward
    pass, so that no more than two [chunk, V] are ever alive. The teacher gets no gradient.

    ValueError where the two have different numbers of positions, or chunk < 1.
    """
    if len(taught_ND) != len(hidden_ND) or chunk < 1:
        raise ValueError(f"{len(taught_ND)} and {len(hidden_ND)} positions, chunk={chunk}: they must fit")

    def part(taught_CD: Tensor, hidden_CD: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_CV = teacher(taught_CD)
        return forward_kl(teacher_CV, student(hidden_CD))

    pairs = zip(taught_ND.detach().split(chunk), hidden_ND.split(chunk), strict=True)
    return torch.cat([checkpoint(part, *pair, use_reentrant=False) for pair in pairs])
