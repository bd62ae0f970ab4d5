"""When a recursive reasoner should stop: by how near its output is, or by whether its answer is right.

R rows (a row is one supervision step of one problem), D width, A answer tokens. halt_R holds logits of being
done. Every loss is (sum over the rows that count, number of those rows); its target carries no gradient, so
that halting never pays for a worse output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.losses.latent import unit
from quietreasoning.losses.rows import statistic, sum_rows


@torch.no_grad()
def nearness(output_RD: Tensor, target_RD: Tensor) -> Tensor:
    """cos(output, target) of each row, fp32 or wider. Blind to scale: look at the distance beside it."""
    return (unit(output_RD) * unit(target_RD)).sum(-1)


def halt_by_nearness(halt_R: Tensor, cosine_R: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """(sigmoid(halt) - cosine)^2. A cosine below zero asks for what no probability can be."""
    return sum_rows((statistic(halt_R).sigmoid() - cosine_R.detach()).square(), rows_R)


def halt_above(
    halt_R: Tensor, cosine_R: Tensor, threshold: float, rows_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of halting, in nats, against cosine > threshold: (sum, rows above, rows)."""
    return halt_when(halt_R, cosine_R > threshold, rows_R)


def halt_when(halt_R: Tensor, done_R: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of halting, in nats, against a fact (TRM, arXiv 2510.04871: the answer is exactly right).

    done_R: bool. Returns the sum, how many counted rows are done, and how many count.
    """
    lost_R = F.binary_cross_entropy_with_logits(
        statistic(halt_R), done_R.to(statistic(halt_R).dtype), reduction="none"
    )
    total, count = sum_rows(lost_R, rows_R)
    return total, (done_R & rows_R).sum(), count


@torch.no_grad()
def exactly_right(logits_RAV: Tensor, labels_RA: Tensor, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """(bool per row: every label that is not `ignore` is the arg max; bool per row: it has such a label)."""
    counted_RA = labels_RA != ignore
    wrong_RA = (logits_RAV.argmax(-1) != labels_RA) & counted_RA
    asked_R = counted_RA.any(1)
    return ~wrong_RA.any(1) & asked_R, asked_R


@dataclass(frozen=True)
class NearEnough:
    """The cosine above which a row counts as done: 0.7 at first, then a share of the last epoch's mean.

    Immutable: every call returns the next state, which `dataclasses.asdict` turns into plain numbers.
    """

    threshold: float = 0.7
    share: float = 0.95
    total: float = 0.0  # of the cosines of this epoch
    count: int = 0

    def saw(self, total: float | Tensor, count: int | Tensor) -> NearEnough:
        """With the sum of some cosines of this epoch, over ranks where there are several."""
        return NearEnough(self.threshold, self.share, self.total + float(total), self.count + int(count))

    def next_epoch(self) -> NearEnough:
        """share * mean cosine of the epoch that ends; as before where nothing was seen."""
        threshold = self.share * self.total / self.count if self.count else self.threshold
        return NearEnough(threshold, self.share)
