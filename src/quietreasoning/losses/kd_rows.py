"""Which rows are in the distillation's sum and which in the labels', and both sums of a chunk's logits.

Shapes: N positions, M those that count, K in distillation, E in cross-entropy, C of a chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        heat_C = None if self.temperature_K is None else self.temperature_K[mine]
        rows_C = self.order_M[mine]
        teacher = self.teacher.rows(rows_C) if len(rows_C) else None
        return Part(
            self.choice, teacher, heat_C, self.kd_weight_K[mine], self.labels_E[own], self.ce_weight_E[own]
        )


@dataclass(frozen=True)
class Part:
    """Both sums of one chunk; None where none of its rows are in them."""

    choice: Divergence
    teacher: Teacher | None
    temperature_K: Tensor | None
    kd_weight_K: Tensor
    labels_E: Tensor
    ce_weight_E: Tensor

    def kd(self, logits_CV: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        student_KV = logits_CV[: len(self.kd_weight_K)]
        apart_K = self.teacher.against(student_KV, self.choice, self.temperature_K)
        return (apart_K * self.kd_weight_K).sum()

    def ce(self, logits_CV: Tensor) -> Tensor | None:
        if not len(self.labels_E):
            return None
        student_EV = statistic(logits_CV[len(logits_CV) - len(self.labels_E) :])
        return (F.cross_entropy(student_EV, self.labels_E, reduction="none") * self.ce_weight_E).sum()

    @torch.no_grad()
    def facts(self, logits_CV: Tensor, kd: Tensor | None, ce: Tensor | None, metrics: bool) -> Tensor:
        """kd, ce, entropy, agree, hits [5]; the last three are 0 without `metrics`."""
        zero = self.kd_weight_K.new_zeros(())
        facts = [zero if kd is None else kd, zero if ce is None else ce, zero, zero, zero]
        if metrics:
            best_C = logits_CV.argmax(-1)
            facts[4] = (best_C[len(best_C) - len(self.labels_E) :] == self.labels_E).sum()
            if self.teacher is not None:
                facts[2] = entropy(logits_CV[: len(self.kd_weight_K)]).sum()
                facts[3] = (best_C[: len(self.kd_weight_K)] == self.teacher.top()).sum()
        return torch.stack([each.to(zero.dtype) for each in facts])


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
