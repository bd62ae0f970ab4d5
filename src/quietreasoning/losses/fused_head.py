"""A loss on the logits of a linear head that never holds all logits.

Rows pass through head and loss a chunk at a time, and the gradient with respect to hidden states, weight and
bias is taken in the same pass, while the chunk's logits are there: three matrix products a chunk, as many as
the plain path, and (chunk, V) instead of (N, V) alive. The idea is that of Liger (arXiv 2410.10989) and
Cut Cross-Entropy (arXiv 2411.09009); plain torch, no kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rule = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
"""(logits_CV fp32, its to overwrite; labels_C; wanted) -> (sums, gradient_CV of sums[0] if wanted)."""


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        rule: Rule,
        chunk: int,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype(hidden_ND, weight_VD)
        statistic = torch.promote_types(dtype, torch.float32)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
            grad_ND = torch.empty_like(hidden_ND) if wanted[0] else None
            # chunks add up in fp32: a bf16 sum forgets small parts
            grad_VD = torch.zeros_like(weight, dtype=statistic) if wanted[1] else None
            grad_V = torch.zeros_like(weight[:, 0], dtype=statistic) if wanted[2] else None
            sums: Any = 0
            for start in range(0, max(len(hidden), 1), chunk):
                rows = slice(start, start + chunk)
                logits_CV = (hidden[rows] @ weight.T).to(statistic)
                if bias_V is not None:
                    logits_CV += bias_V
                part, slope_CV = rule(logits_CV, labels_N[rows], any(wanted))
                sums = sums + part
                if slope_CV is None:
                    continue
                if grad_V is not None:
                    grad_V += slope_CV.sum(0)
                slope_CV = slope_CV.to(dtype)
                if grad_ND is not None:
                    grad_ND[rows] = slope_CV @ weight
                if grad_VD is not None and dtype == statistic:
                    grad_VD.addmm_(slope_CV.T, hidden[rows])
                elif grad_VD is not None:
                    grad_VD += slope_CV.T @ hidden[rows]
        ctx.save_for_backward(
            grad_ND,
            grad_VD if grad_VD is None else grad_VD.to(weight_VD.dtype),
            grad_V if grad_V is None else grad_V.to(bias_V.dtype),
        )
        total, rest = sums[0].clone(), sums[1:].clone()
        ctx.mark_non_differentiable(rest)
        return total, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [g if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors]
        return *scaled, None, None, None, None


def product_dtype(hidden_ND: Tensor, weight_VD: Tensor) -> torch.dtype:
    """What the head's products run in: what autocast says, else the wider of the two."""
    wider = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    kind = hidden_ND.device.type
    if wider == torch.float64 or not torch.is_autocast_enabled(kind):
        return wider
    return torch.get_autocast_dtype(kind)


def head_loss(
    hidden: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels: Tensor,
    rule: Rule,
    *,
    chunk: int,
    ignore: int,
    compact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(total with gradient, the rule's other sums without, number of labels that count).

    hidden: [..., D], labels: [...]. compact: leave rows that do not count out of every product (one transfer
    to the host, and they may hold anything); False keeps shapes static, and they must be finite. The weight's
    gradient is kept from here to the backward pass, (V, D) a call: call once for all rows, not once a chunk
    of a sequence. First order only.
    """
    if hidden.shape[:-1] != labels.shape or hidden.shape[-1] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight_VD.shape)} and labels {tuple(labels.shape)} "
            "do not fit; give hidden [..., D], weight [V, D] and labels [...]"
        )
    if chunk < 1:
        raise ValueError(f"chunk={chunk} holds no row; give at least 1, or 1024 for the usual trade")
    hidden_ND, labels_N = hidden.flatten(0, -2), labels.flatten()
    counted_N = labels_N != ignore
    if compact:
        index_M = counted_N.nonzero().squeeze(1)
        if len(index_M) < len(labels_N):
            hidden_ND, labels_N = hidden_ND.index_select(0, index_M), labels_N.index_select(0, index_M)
    leaves = (hidden_ND, weight_VD, bias_V)
    grad = torch.is_grad_enabled()
    wanted = tuple(grad and leaf is not None and leaf.requires_grad for leaf in leaves)
    total, rest = _Head.apply(hidden_ND, weight_VD, bias_V, labels_N, rule, chunk, wanted)
    return total, rest, counted_N.sum()
