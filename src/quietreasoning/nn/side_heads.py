"""Small heads beside a model: when to stop thinking, and whether the answer will be right.

They read states that are there anyway, and by default leave no gradient in them: the trunk learns nothing
from a head. Shapes: B rows, T positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

POOLS = ("last", "mean")


def pooled(hidden_BTD: Tensor, real_BT: Tensor, how: str = "last") -> Tensor:
    """[B, D]: the state of each row's last real position, or the mean over its real ones.

    real_BT: bool; padding may stand on either side and hold anything. A row without a real position gives
    zeros. ValueError for another `how`.
    """
    if how not in POOLS:
        raise ValueError(f"pool={how!r} is unknown; choose one of {', '.join(POOLS)}")
    hidden_BTD = hidden_BTD.masked_fill(~real_BT[..., None], 0)
    if how == "mean":
        return hidden_BTD.sum(1) / real_BT.sum(1, keepdim=True).clamp(min=1)
    at_BT = torch.arange(real_BT.shape[1], device=real_BT.device) * real_BT
    return hidden_BTD.gather(1, at_BT.argmax(1)[:, None, None].expand(-1, 1, hidden_BTD.shape[2]))[:, 0]


class SideHead(nn.Module):
    """One logit from a state, by a linear map or with one hidden layer between."""

    def __init__(self, width: int, hidden: int, detach: bool, pool: str = "last"):
        """hidden: units of the layer between; 0: none. detach: no gradient reaches the state."""
        super().__init__()
        self.detach, self.pool = detach, pool
        self.up = nn.Linear(width, hidden) if hidden else None
        self.out = nn.Linear(hidden or width, 1)

    def forward(self, hidden: Tensor, real_BT: Tensor | None = None) -> Tensor:
        """Logits [...] of states [..., D]; with real_BT, one logit [B] of the pooled states [B, T, D]."""
        if self.detach:
            hidden = hidden.detach()
        if real_BT is not None:
            hidden = pooled(hidden, real_BT, self.pool)
        hidden = hidden.to(self.out.weight.dtype)  # the backbone may hold its weights in bf16
        if self.up is not None:
            hidden = nn.functional.gelu(self.up(hidden))
        return self.out(hidden)[..., 0]


class HaltHead(SideHead):
    """The hazard's logit: stop thinking here, given that one has come so far. Linear unless `hidden`."""

    def __init__(self, width: int, hidden: int = 0, detach: bool = True, pool: str = "last"):
        super().__init__(width, hidden, detach, pool)


class SelfEvaluationHead(SideHead):
    """The logit of being right: D -> D/2 -> 1. Its sigmoid is the confidence."""

    def __init__(self, width: int, detach: bool = True, pool: str = "last"):
        super().__init__(width, max(1, width // 2), detach, pool)
