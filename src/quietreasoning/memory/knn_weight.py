"""How much the neighbours of a kNN-LM count: lambda, read off the query and off what it found.

A weight that reads the query alone cannot tell that what was found is of no use (arXiv 1911.00172 has a
constant). "Adaptive Nearest Neighbor Machine Translation" (arXiv 2105.13022) reads the distances and the
numbers of different values among the k nearest, "Efficient Nearest Neighbor Language Models" (arXiv
2109.04212) the state and the model's confidence. Departures: four figures stand for all k; distances count
relative to the query's squared length, so that a figure means the same in models of any width; the model's
confidence was tried and added nothing (docs/log.md); lambda ends at one half.

Shapes: B queries, K neighbours, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_LAMBDA = 0.5
NEAREST, FARTHEST = 1e-4, 1e4  # relative squared distances below and above which none is told from another


@dataclass(frozen=True)
class Evidence:
    """What B look-ups found: all that lambda may read."""

    query_BD: Tensor
    distances_BK: Tensor  # squared L2, to the query of the row itself
    tokens_BK: Tensor  # what followed; -1 where nothing was found
    log_knn_BV: Tensor  # log p_kNN of it

    def __len__(self) -> int:
        return len(self.query_BD)

    @property
    def some_B(self) -> Tensor:
        """Whether anything was found."""
        return (self.tokens_BK >= 0).any(1)

    @property
    def features_B4(self) -> Tensor:
        """Finite, float32: log of the nearest squared distance, relative to the query's squared length; how
        much farther (log) the nearest neighbour is that says something else, or the farthest where all say
        the same; the largest p_kNN; log of how many different tokens were found."""
        found_BK = self.tokens_BK >= 0
        size_B1 = self.query_BD.float().pow(2).sum(1, keepdim=True).clamp(min=torch.finfo(torch.float).tiny)
        far_BK = (self.distances_BK.float() / size_B1).clamp(max=FARTHEST).masked_fill(~found_BK, FARTHEST)
        nearest_B, at_B = far_BK.min(1)
        same_BK = self.tokens_BK == self.tokens_BK.gather(1, at_B[:, None])
        farthest_B = far_BK.masked_fill(~found_BK, 0.0).amax(1)
        other_B = far_BK.masked_fill(same_BK, FARTHEST).amin(1).minimum(farthest_B)
        sorted_BK = self.tokens_BK.sort(1).values
        new_BK = (sorted_BK >= 0) & (sorted_BK != F.pad(sorted_BK[:, :-1], (1, 0), value=-1))
        log_nearest_B = (nearest_B + NEAREST).log()
        return torch.stack(
            [
                log_nearest_B,
                (other_B + NEAREST).log() - log_nearest_B,
                self.log_knn_BV.amax(1).exp(),
                new_BK.sum(1).clamp(min=1).float().log(),
            ],
            1,
        )


class Lambda(nn.Module):
    """The neighbours' weight [B], 0.5 sigmoid(w . query + u . tanh(A features + a) + b); 0.25 at first."""

    def __init__(self, width: int, hidden: int = 16):
        super().__init__()
        self.query = nn.Linear(width, 1)
        self.found = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))
        for zero in (self.query.weight, self.query.bias, self.found[2].weight):
            nn.init.zeros_(zero)

    def forward(self, evidence: Evidence) -> Tensor:
        dtype = self.query.weight.dtype
        told_B1 = self.query(evidence.query_BD.to(dtype)) + self.found(evidence.features_B4.to(dtype))
        return MAX_LAMBDA * torch.sigmoid(told_B1)[:, 0].float()
