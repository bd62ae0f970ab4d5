"""Figures that training keeps for inference: the scale of advantages and scores, and what counts as hard.

What forwards see only enters sums; they are taken in between optimizer steps, so that lanes and ranks change
nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

KEPT = 0.9  # of what was seen, from step to step
RATE = 0.2  # nats: how far the threshold moves if no token at all should think, and every one does


class Running(nn.Module):
    """Decayed mean and deviation of C kinds of numbers."""

    def __init__(self, kinds: int):
        super().__init__()
        for name in ("kept_3C", "new_3C"):  # count, sum, sum of squares
            self.register_buffer(name, torch.zeros(3, kinds, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, kind: int, values_N: Tensor) -> None:
        """All ranks must call it equally often."""
        values_N = values_N.double()
        found_3 = torch.stack([torch.ones_like(values_N).sum(), values_N.sum(), values_N.square().sum()])
        self.new_3C[:, kind] += add_ranks(found_3)

    @torch.no_grad()
    def settle(self) -> None:
        """Between optimizer steps; a kind that was not seen forgets nothing."""
        kept_C = torch.where(self.new_3C[0] > 0, KEPT, 1.0)
        self.kept_3C.mul_(kept_C).add_(self.new_3C)
        self.new_3C.zero_()

    def mean_C(self) -> Tensor:
        """Zeros before anything was seen."""
        return self.kept_3C[1] / self.kept_3C[0].clamp(min=1e-9)

    def std_C(self) -> Tensor:
        """Zeros before anything was seen."""
        count_C = self.kept_3C[0].clamp(min=1e-9)
        return (self.kept_3C[2] / count_C - self.mean_C().square()).clamp(min=0).sqrt()


class Centre(nn.Module):
    """Decayed mean of states [D], about which cosines are taken."""

    def __init__(self, width: int):
        super().__init__()
        for name in ("kept_D", "new_D"):
            self.register_buffer(name, torch.zeros(width + 1, dtype=torch.float64))  # and how many

    @torch.no_grad()
    def observe(self, hidden_ND: Tensor) -> None:
        """All ranks must call it equally often."""
        total_D = hidden_ND.double().sum(0)
        count_1 = torch.full_like(total_D[:1], len(hidden_ND))
        self.new_D += add_ranks(torch.cat([total_D, count_1]))

    @torch.no_grad()
    def settle(self) -> None:
        kept = torch.where(self.new_D[-1] > 0, KEPT, 1.0)
        self.kept_D.mul_(kept).add_(self.new_D)
        self.new_D.zero_()

    def mean_D(self) -> Tensor:
        """Zeros before anything was seen."""
        return (self.kept_D[:-1] / self.kept_D[-1].clamp(min=1e-9)).float()


class Threshold(nn.Module):
    """The entropy that a given share of tokens exceeds, found by stepping towards it."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.register_buffer("nats_1", torch.full((1,), -1.0, dtype=torch.float64))  # below 0: not seen yet
        self.register_buffer("new_3", torch.zeros(3, dtype=torch.float64))  # tokens, above, sum

    @torch.no_grad()
    def observe(self, entropy_N: Tensor) -> None:
        above = (entropy_N > self.nats_1).sum()
        count = torch.ones_like(entropy_N).sum()
        self.new_3 += add_ranks(torch.stack([count, above, entropy_N.sum()]).double())

    @torch.no_grad()
    def settle(self) -> None:
        count, above, total = self.new_3.unbind()
        moved = self.nats_1 + RATE * (above / count.clamp(min=1) - self.share)
        began = total / count.clamp(min=1)  # the mean is a start
        found = torch.where(self.nats_1 < 0, began, moved.clamp(min=0.0))
        self.nats_1.copy_(torch.where(count > 0, found, self.nats_1))
        self.new_3.zero_()


def add_ranks(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
