"""Sums over rows that leave every row alone: what all losses of the workspace end with.

Papers often average over a batch before they square, hinge or take an entropy. Here that average is
taken inside one row, over its own chunks or slots, and only then are rows added. So a batch of 8 is
eight batches of 1, accumulation and ranks change nothing, and the loop divides once.
"""

from __future__ import annotations

from torch import Tensor


def sum_rows(values_R: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of the values of the rows that count, number of such rows). rows_R: bool.

    A row that does not count may hold anything; its gradient is zero.
    """
    return values_R.masked_fill(~rows_R, 0).sum(), rows_R.sum()


def row_mean(values_RC: Tensor, counted_RC: Tensor) -> Tensor:
    """Mean over a row's own counted columns, (R, C, ...) -> (R, ...); zero where nothing counts."""
    extra = values_RC.dim() - counted_RC.dim()
    mask = counted_RC.reshape(*counted_RC.shape, *[1] * extra)
    count = mask.sum(1).clamp(min=1)
    return values_RC.masked_fill(~mask, 0).sum(1) / count


def statistic(values: Tensor) -> Tensor:
    """At least fp32: sums, squares and logs of bf16 values are taken in fp32."""
    return values if values.itemsize >= 4 else values.float()
