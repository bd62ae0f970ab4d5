"""Grokfast (arXiv 2405.20233): the slow part of each gradient, made larger before any optimizer sees it.

    mu = a * mu + (1 - a) * g;  g_hat = g + strength * mu / (1 - a^t)

mu starts at zero, is fp32 whatever the gradients are, and is corrected for its start as Adam's moments are
(the paper starts it at the first gradient: the same first step, another weight of that gradient after it).
A gradient that never changes grows 1 + strength fold, one that alternates hardly: its gain at frequency w is
|1 + strength * (1 - a) / (1 - a * exp(-iw))|, so 1 + strength * (1 - a) / (1 + a) at the fastest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PREFIX = "grokfast_"  # of its names in a checkpoint
LONGEST, SHORTEST, UNKNOWN = 0.99, 0.8, 0.98  # decays: the paper's range, and its choice


def decay_for(steps: int | None) -> float:
    """1 - 10 / steps in [0.8, 0.99]: averages over a tenth of the stage; 0.98 if its length is not known."""
    return UNKNOWN if not steps else min(LONGEST, max(SHORTEST, 1.0 - 10.0 / steps))


class Grokfast:
    """Filters `p.grad` of its parameters in place. A parameter without gradient keeps its average.

    Sparse gradients do not belong here: a row that is not read has no gradient, not one of zero.
    """

    def __init__(self, params: Iterable[nn.Parameter], decay: float, strength: float):
        self.params = list(params)
        self.decay = decay
        self.strength = strength
        self.means: dict[nn.Parameter, Tensor] = {}
        self.counts: dict[nn.Parameter, int] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Call it after clipping, before the optimizers."""
        at: dict[int, list[nn.Parameter]] = {}  # parameters by how many gradients they have had
        for p in self.params:
            if p.grad is not None:
                self.counts[p] = self.counts.get(p, 0) + 1
                if p not in self.means:
                    self.means[p] = torch.zeros_like(p.grad, dtype=_wide(p.grad))
                at.setdefault(self.counts[p], []).append(p)
        for count, params in at.items():
            means = [self.means[p] for p in params]
            grads = [p.grad.to(mean.dtype) for p, mean in zip(params, means, strict=True)]
            torch._foreach_lerp_(means, grads, 1.0 - self.decay)
            torch._foreach_add_(grads, means, alpha=self.strength / (1.0 - self.decay**count))
            for p, filtered in zip(params, grads, strict=True):
                if filtered is not p.grad:
                    p.grad.copy_(filtered)

    def state(self, names: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
        return {
            name: {f"{PREFIX}mean": self.means[p], f"{PREFIX}count": self.counts[p]}
            for name, p in names.items()
            if p in self.means
        }

    def load_state(self, p: nn.Parameter, held: Mapping[str, Any]) -> None:
        """What `state` says of one parameter, if anything."""
        if f"{PREFIX}mean" in held:
            self.means[p], self.counts[p] = held[f"{PREFIX}mean"], int(held[f"{PREFIX}count"])


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
