"""Whitening by what was seen in earlier steps: no token's result depends on its batch or on later tokens.

Shapes: N tokens, R rows, T tokens of a row, H heads, Q width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Whitening(nn.Module):
    """C^(-1/2) (q - mean), each head by itself: all directions vary alike and none with another.

    Product-key memories normalise queries by batch statistics (arXiv 1907.05242), without which most slots
    are never read. Those show a token its neighbours, and leave the directions correlated. Here mean and
    covariance are running means over optimizer steps, and a forward only adds to sums. So 1 x 8 equals
    8 x 1, and a batch has no say in how it is read itself.
    """

    def __init__(self, heads: int, width: int, rate: float = 0.02, floor: float = 0.01):
        """rate: share of the newest step. floor: what is added to variances, relative to their mean."""
        super().__init__()
        self.rate, self.floor = rate, floor
        self.register_buffer("mean_HQ", torch.zeros(heads, width))
        self.register_buffer("covariance_HQQ", torch.eye(width).repeat(heads, 1, 1))
        self.register_buffer("matrix_HQQ", torch.eye(width).repeat(heads, 1, 1))  # covariance^(-1/2)
        self.register_buffer("settled", torch.zeros((), dtype=torch.long))
        self.register_buffer("count", torch.zeros(()))  # the sums of this step
        self.register_buffer("sum_HQ", torch.zeros(heads, width))
        self.register_buffer("square_HQQ", torch.zeros(heads, width, width))

    def forward(self, query_RTHQ: Tensor) -> Tensor:
        """[R, T, H, Q] in fp32 -> the same shape; the identity until something was seen."""
        centred_RTHQ = query_RTHQ - self.mean_HQ.to(query_RTHQ.dtype)
        return torch.einsum("rthq,hqp->rthp", centred_RTHQ, self.matrix_HQQ.to(query_RTHQ.dtype))

    @torch.no_grad()
    def observe(self, query_NHQ: Tensor, counted_N: Tensor) -> None:
        """Add these tokens to the sums; over ranks they are added up, so all must call it equally often."""
        seen_HNQ = ((query_NHQ - self.mean_HQ) * counted_N[:, None, None]).transpose(0, 1)
        parts = [counted_N.sum().to(self.count), seen_HNQ.sum(1), seen_HNQ.mT @ seen_HNQ]
        if dist.is_available() and dist.is_initialized():
            for part in parts:
                dist.all_reduce(part)
        for total, part in zip((self.count, self.sum_HQ, self.square_HQQ), parts, strict=True):
            total += part

    @torch.no_grad()
    def settle(self) -> None:
        """Between optimizer steps: take the sums into the running moments. Nothing seen, nothing changed."""
        if self.count < 2:
            return
        shift_HQ = self.sum_HQ / self.count  # of the mean
        covariance_HQQ = self.square_HQQ / self.count - shift_HQ[:, :, None] * shift_HQ[:, None]
        self.settled += 1
        share = max(self.rate, 1 / int(self.settled))
        self.mean_HQ += share * shift_HQ
        self.covariance_HQQ.lerp_(covariance_HQQ, share)
        values_HQ, vectors_HQQ = torch.linalg.eigh(self.covariance_HQQ.float())
        least_H1 = self.floor * values_HQ.mean(1, keepdim=True).clamp(min=1e-12)
        scale_HQ = (values_HQ.clamp(min=0) + least_H1).rsqrt()
        self.matrix_HQQ.copy_(vectors_HQQ * scale_HQ[:, None] @ vectors_HQQ.mT)
        for total in (self.count, self.sum_HQ, self.square_HQQ):
            total.zero_()
