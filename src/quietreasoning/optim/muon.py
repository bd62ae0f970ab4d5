"""Muon (Jordan, 2024; at scale: arXiv 2502.16982): momentum, made orthogonal by Newton-Schulz iterations.

    M = lerp(M, g, 1 - mu);  U = lerp(g, M, mu) with Nesterov, else M
    X = U / max(|U|, eps), wide; five times: A = X X^T, X = a X + (b A + c A^2) X
    p *= 1 - lr * decay;  p -= lr * scale * X

Matrices of one shape, or of its transpose, are iterated as one batch. In bf16 the result is that of
`torch.optim.Muon` to the bit on a CPU, where both round after the same products, and to rounding elsewhere.
A gradient of zero gives a step of zero. Of a matrix that FSDP2 shards, momentum stays sharded; every rank
gathers the update, iterates it, and keeps its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from quietreasoning.optim.shards import cut_like, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
LARGEST_BATCH = 2**27  # elements: a quarter of a gigabyte in bf16

SCALES: dict[str, Callable[[int, int], float]] = {
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),  # elements move as by AdamW
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
}


class Muon(Optimizer):
    """For matrices alone; ValueError for any other shape.

    lr: times the scale, the length of a step's singular values. dtype: in which the iterations compute.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        scale: str = "match_rms_adamw",
        nesterov: bool = True,
        iterations: int = 5,
        dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.scale, self.nesterov, self.iterations, self.dtype = SCALES[scale], nesterov, iterations, dtype
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices alone, not a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None, "nothing here evaluates a loss anew"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = self._momentum(params, group["momentum"])
            torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
            for batch in batches([p.shape for p in params]):
                wide = [_wide(whole(updates[i]), self.dtype) for i in batch]
                for i, update in zip(batch, orthogonal(wide, self.iterations), strict=True):
                    p = params[i]
                    change = cut_like(update.mT if p.shape[0] > p.shape[1] else update, p)
                    p.add_(change, alpha=-group["lr"] * self.scale(*p.shape))

    def _momentum(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """The updates before they are made orthogonal; shards of shards."""
        grads = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        held = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(held, grads, 1.0 - momentum)
        return list(torch._foreach_lerp(grads, held, momentum)) if self.nesterov else held


def batches(shapes: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of matrices that fit one batch: of equal shape but for transposition, and not too many."""
    alike: dict[tuple[int, int], list[int]] = {}
    for index, (rows, columns) in enumerate(shapes):
        alike.setdefault((min(rows, columns), max(rows, columns)), []).append(index)
    for (short, long), indices in alike.items():
        most = max(1, LARGEST_BATCH // max(1, short * long))
        for first in range(0, len(indices), most):
            yield indices[first : first + most]


def orthogonal(matrices: Sequence[Tensor], iterations: int = 5) -> Tensor:
    """Singular values of matrices [M, N], M <= N, moved close to 1 -> [n, M, N]. Zero stays zero."""
    a, b, c = COEFFICIENTS
    norms_n = torch.stack(torch._foreach_norm(list(matrices)))
    x_nMN = torch.stack(list(matrices)) / norms_n.clamp(min=EPS)[:, None, None]
    for _ in range(iterations):
        gram_nMM = x_nMN @ x_nMN.mT
        mixed_nMM = _mixed(gram_nMM, b, c)
        x_nMN = torch.baddbmm(x_nMN, mixed_nMM, x_nMN, beta=a)
    return x_nMN


def _mixed(gram_nMM: Tensor, b: float, c: float) -> Tensor:
    """b A + c A A. On a CPU the batched product rounds otherwise in bf16, for one matrix in a thousand."""
    if gram_nMM.device.type == "cpu" and gram_nMM.dtype == torch.bfloat16:
        return torch.stack([torch.addmm(gram, gram, gram, beta=b, alpha=c) for gram in gram_nMM])
    return torch.baddbmm(gram_nMM, gram_nMM, gram_nMM, beta=b, alpha=c)


def _wide(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    matrix = matrix.to(dtype)
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
