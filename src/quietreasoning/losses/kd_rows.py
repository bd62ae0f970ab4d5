"""Which rows are in the distillation's sum and which in the labels', and both sums of a chunk's logits.

Shapes: N positions, M those that count, K in distillation, E in cross-entropy, C of a chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.losses.kd import Divergence, entropy
from quietreasoning.losses.kd_targets import Teacher
from quietreasoning.losses.rows import statistic


@dataclass(frozen=True)
class Rows:
    """Rows in the order: in kd alone, in both, in ce alone; so that each sum has one slice of every chunk."""

    teacher: Teacher
    choice: Divergence
    order_M: Tensor
    kd_weight_K: Tensor  # of the first K of the order
    temperature_K: Tensor | None
    labels_E: Tensor  # of its last E
    ce_weight_E: Tensor

    def chunk(self, start: int, stop: int) -> Part:
        kd_rows, ce_start = len(self.kd_weight_K), len(self.order_M) - len(self.labels_E)
        mine = slice(min(start, kd_rows), min(stop, kd_rows))
        own = slice(max(start - ce_start, 0), max(stop - ce_start, 0))
        return Part(
            self.teacher,
            self.choice,
            self.order_M[mine],
            self.kd_weight_K[mine],
            None if self.temperature_K is None else self.temperature_K[mine],
            self.labels_E[own],
            self.ce_weight_E[own],
        )


class Told(NamedTuple):
    """One sum, and what is for the log."""

    total: Tensor
    entropy: Tensor
    hits: Tensor  # arg maxima shared with the teacher, or with the label


@dataclass(frozen=True)
class Part:
    """Both sums of one chunk's logits [C, V]; None where none of its rows are in them."""

    teacher: Teacher
    choice: Divergence
    rows_K: Tensor  # of all positions; the first of the chunk
    kd_weight_K: Tensor
    temperature_K: Tensor | None
    labels_E: Tensor  # of the last of the chunk
    ce_weight_E: Tensor

    def kd(self, logits_CV: Tensor, metrics: bool) -> Told | None:
        if not len(self.rows_K):
            return None
        student_KV = logits_CV[: len(self.rows_K)]
        taught = self.teacher.rows(self.rows_K)
        apart_K = taught.against(student_KV, self.choice, self.temperature_K)
        total = (apart_K * self.kd_weight_K).sum()
        if not metrics:
            return Told(total, *total.new_zeros(2))
        return Told(total, entropy(student_KV).sum(), (student_KV.argmax(-1) == taught.top()).sum())

    def ce(self, logits_CV: Tensor, metrics: bool) -> Told | None:
        if not len(self.labels_E):
            return None
        student_EV = statistic(logits_CV[len(logits_CV) - len(self.labels_E) :])
        total = (F.cross_entropy(student_EV, self.labels_E, reduction="none") * self.ce_weight_E).sum()
        zero = total.new_zeros(())
        return Told(total, zero, (student_EV.argmax(-1) == self.labels_E).sum() if metrics else zero)


def facts(kd: Told | None, ce: Told | None, like: Tensor) -> Tensor:
    """kd, ce, entropy, agree, hits [5], detached, of the kind of `like`."""
    none = Told(*like.new_zeros(3))
    kd, ce = kd or none, ce or none
    told = (kd.total, ce.total, kd.entropy, kd.hits, ce.hits)
    return torch.stack([each.detach().to(like) for each in told])


def plan(
    hidden_ND: Tensor,
    teacher: Teacher,
    labels_N: Tensor | None,
    choice: Divergence,
    kd_weight_N: Tensor | None,
    ce_weight_N: Tensor | None,
    temperature_N: Tensor | None,
    ignore: int,
) -> Rows:
    """Which rows are in which sum; one transfer to the host."""
    ones_N = statistic(hidden_ND.new_ones(len(hidden_ND)))
    kd_weight_N, ce_weight_N = (
        ones_N if each is None else each.detach().to(ones_N) for each in (kd_weight_N, ce_weight_N)
    )
    in_kd_N, in_ce_N = kd_weight_N != 0, ce_weight_N != 0
    if labels_N is None:
        labels_N, in_ce_N = ones_N.long(), torch.zeros_like(in_ce_N)
    else:
        in_kd_N, in_ce_N = in_kd_N & (labels_N != ignore), in_ce_N & (labels_N != ignore)
    # 0 kd alone, 1 both, 2 ce alone, 3 neither
    kind_N = torch.where(in_kd_N, in_ce_N.long(), torch.where(in_ce_N, 2, 3))
    only_kd, both, only_ce, _ = kind_N.bincount(minlength=4).tolist()
    order_M = kind_N.argsort(stable=True)[: only_kd + both + only_ce]
    in_kd, in_ce = order_M[: only_kd + both], order_M[only_kd:]
    return Rows(
        teacher,
        choice,
        order_M,
        kd_weight_N[in_kd],
        None if temperature_N is None else temperature_N[in_kd],
        labels_N[in_ce],
        ce_weight_N[in_ce],
    )
