"""Which rows are worth a visit: the running share of right answers at each difficulty.

Shapes: B rows, G answers a row, L levels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quietreasoning.contract import IGNORE, Batch

LEVELS = 12  # rows with as many gold steps or more share the last one
KEPT = 0.9  # of what was seen, from step to step


class Levels(nn.Module):
    """A level is a number of gold steps. A level whose answers are right with probability p is visited with

        1 - p^G - (1 - p)^G,

    which is how often a group of G answers holds both right and wrong ones, and so tells anything; never
    less than `least`. What a forward sees only enters sums; they are taken in between optimizer steps, so
    that lanes and ranks change nothing.
    """

    def __init__(self, group: int, least: float):
        super().__init__()
        self.group, self.least = group, least
        for name in ("right_L", "seen_L", "new_right_L", "new_seen_L"):
            self.register_buffer(name, torch.zeros(LEVELS, dtype=torch.float64))

    def of(self, batch: Batch) -> Tensor:
        """The level of each row [B]."""
        steps_B = (batch.steps_BKS != IGNORE).any(-1).sum(1)
        return steps_B.clamp(max=LEVELS - 1)

    def visited(self, level_B: Tensor, uniform_B: Tensor) -> Tensor:
        """Whether each row is visited [B], by its own uniform number."""
        return uniform_B.to(level_B.device) < self.shares()[level_B]

    def shares(self) -> Tensor:
        """How often each level is visited [L]; one that was never seen: always."""
        pass_L = self.right_L / self.seen_L.clamp(min=1e-9)
        tells_L = 1 - pass_L**self.group - (1 - pass_L) ** self.group
        return tells_L.clamp(min=self.least).masked_fill(self.seen_L == 0, 1.0)

    @torch.no_grad()
    def observe(self, level_B: Tensor, right_BG: Tensor) -> None:
        """Add these groups to the sums, over ranks too: all must call it equally often."""
        counts_2L = torch.stack(
            [
                _per_level(level_B, right_BG.sum(1)),
                _per_level(level_B, torch.full_like(level_B, self.group)),
            ]
        )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts_2L)
        self.new_right_L += counts_2L[0]
        self.new_seen_L += counts_2L[1]

    @torch.no_grad()
    def settle(self) -> None:
        """Between optimizer steps: take the sums in; a level that was not visited forgets nothing."""
        kept_L = torch.where(self.new_seen_L > 0, KEPT, 1.0)
        self.right_L.mul_(kept_L).add_(self.new_right_L)
        self.seen_L.mul_(kept_L).add_(self.new_seen_L)
        self.new_right_L.zero_()
        self.new_seen_L.zero_()

    def pass_rates(self, level_B: Tensor, right_BG: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Metric of each level: right answers and answers, here and now."""
        right_L = _per_level(level_B, right_BG.sum(1))
        seen_L = _per_level(level_B, torch.full_like(level_B, self.group))
        return {f"pass_rate_{level}": (right_L[level], seen_L[level]) for level in range(LEVELS)}


def _per_level(level_B: Tensor, value_B: Tensor) -> Tensor:
    total_L = torch.zeros(LEVELS, dtype=torch.float64, device=level_B.device)
    return total_L.index_add(0, level_B, value_B.double())
