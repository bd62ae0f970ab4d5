"""A threshold that follows what it is compared with, over lanes and ranks."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quietreasoning.losses.recursion import NearEnough


class MovingThreshold(nn.Module):
    """The cosine above which a row counts as done: a share of the mean cosine of the epoch before.

    An epoch is an even part of the stage, so that a checkpoint needs to know nothing of the data. All it
    remembers are buffers.
    """

    def __init__(self, first: float, epochs: int):
        super().__init__()
        self.epochs = epochs
        start = NearEnough(first)
        for name in ("threshold", "total", "count", "past"):
            value = getattr(start, name, 0)
            self.register_buffer(name, torch.tensor(float(value), dtype=torch.float64))

    @torch.no_grad()
    def observe(self, cosine_B: Tensor) -> None:
        """Add the cosines of one lane; every rank must call it equally often."""
        seen = torch.stack([cosine_B.double().sum(), torch.tensor(float(len(cosine_B))).to(cosine_B.device)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)
        self.total += seen[0]
        self.count += seen[1]

    def pace(self, progress: float) -> None:
        """Set the threshold anew wherever an epoch has ended."""
        due = min(math.floor(progress * self.epochs), self.epochs - 1)
        if due > int(self.past):
            state = NearEnough(float(self.threshold), total=float(self.total), count=int(self.count))
            self.threshold.fill_(state.next_epoch().threshold)
            self.total.zero_()
            self.count.zero_()
        self.past.fill_(due)
