"""Weighted sums of a few rows of a very large table: fp32 rows that learn, or int8 rows that only serve.

Nothing here is ever as large as the table but the table itself; a gradient holds the rows that were read.

Shapes: S rows of the table, V their width, N reads, K rows in one read, U distinct rows that were read.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 256  # reads whose rows are held in floating point at a time


def weighted_rows(table_SV: Tensor, indices_NK: Tensor, weights_NK: Tensor, *, sparse: bool) -> Tensor:
    """sum_k weights[n, k] * table[indices[n, k]], as [N, V].

    sparse: the table's gradient is a coalesced sparse tensor of the rows read; otherwise a dense one.
    """
    return _WeightedRows.apply(table_SV, indices_NK, weights_NK.to(table_SV.dtype), sparse)


class _WeightedRows(torch.autograd.Function):
    """`embedding_bag` whose gradient adds up equal rows at once: its own keeps one row for every read."""

    @staticmethod
    def forward(ctx: Any, table_SV: Tensor, indices_NK: Tensor, weights_NK: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(table_SV, indices_NK, weights_NK)
        ctx.sparse = sparse
        return F.embedding_bag(indices_NK, table_SV, per_sample_weights=weights_NK, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NV: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        table_SV, indices_NK, weights_NK = ctx.saved_tensors
        grad_table = grad_weights = None
        if ctx.needs_input_grad[0]:
            rows_U, grad_UV = _row_sums(indices_NK, weights_NK, grad_NV.contiguous())
            if ctx.sparse:
                grad_table = torch.sparse_coo_tensor(
                    rows_U[None], grad_UV, table_SV.shape, is_coalesced=True, check_invariants=False
                )
            else:
                grad_table = torch.zeros_like(table_SV).index_copy_(0, rows_U, grad_UV)
        if ctx.needs_input_grad[2]:
            grad_weights = torch.cat(
                [
                    torch.einsum("nkv,nv->nk", F.embedding(indices_NK[at : at + CHUNK], table_SV), grad_nV)
                    for at, grad_nV in zip(range(0, len(grad_NV), CHUNK), grad_NV.split(CHUNK), strict=False)
                ]
                or [torch.zeros_like(weights_NK)]
            )
        return grad_table, None, grad_weights, None


def _row_sums(indices_NK: Tensor, weights_NK: Tensor, grad_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Each distinct row once, in order, and the weighted sum of the gradients of its reads [U, V].

    Reads of one row are added in the order of N, whatever the device: the same gradient every time.
    """
    flat = indices_NK.flatten()
    order = flat.argsort(stable=True)
    rows_U, counts_U = flat[order].unique_consecutive(return_counts=True)
    starts_U = counts_U.cumsum(0) - counts_U
    reads = order.div(indices_NK.shape[1], rounding_mode="floor")
    weights = weights_NK.flatten()[order]
    return rows_U, F.embedding_bag(reads, grad_NV, starts_U, per_sample_weights=weights, mode="sum")


def quantise_rows(table_SV: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows [S, V] and fp32 scales [S, 1]: symmetric, scale = max|v| / 127, v about scale * int8.

    Rounding moves no value by more than half a scale. A row of zeros has scale 0.
    """
    rows_SV = torch.empty(table_SV.shape, dtype=torch.int8, device=table_SV.device)
    scale_S1 = torch.empty(len(table_SV), 1, device=table_SV.device)
    parts = (tensor.split(1 << 16) for tensor in (table_SV.detach(), rows_SV, scale_S1))
    for values, rows, scale in zip(*parts, strict=True):
        values = values.float()
        scale.copy_(values.abs().amax(1, keepdim=True) / 127)
        rows.copy_((values / scale.where(scale > 0, 1.0)).round_().clamp_(-127, 127))
    return rows_SV, scale_S1


def weighted_int8_rows(rows_SV: Tensor, scale_S1: Tensor, indices_NK: Tensor, weights_NK: Tensor) -> Tensor:
    """sum_k weights * scale * int8 row, as fp32 [N, V]; only the rows read are ever in floating point."""
    out = []
    for indices_nK, weights_nK in zip(indices_NK.split(CHUNK), weights_NK.float().split(CHUNK), strict=True):
        scaled_nK = weights_nK * F.embedding(indices_nK, scale_S1)[..., 0].float()
        with full_precision(scaled_nK):
            out.append(torch.einsum("nk,nkv->nv", scaled_nK, F.embedding(indices_nK, rows_SV).float()))
    return torch.cat(out)


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on the device of `like`; meta tensors have none."""
    kind = like.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
