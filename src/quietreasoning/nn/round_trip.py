"""How well states were told: figures as sums and counts, and the baselines every figure stands beside.

Shapes: N states of width D; M kept pairs; C width of a context from which states are told.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.nn.compressor import regression
from quietreasoning.nn.moments import Moments
from quietreasoning.nn.row_gather import full_precision

_LEAST = 1e-12  # a state of length nothing has no direction: its cosine is 0


@dataclass(frozen=True)
class RoundTrip:
    """Sums over states, float64; `+` joins batches and ranks.

    A cosine alone flatters: of states that share a large mean, the mean vector has one near 1, and no cosine
    sees a wrong length. So it stands beside the centred figures, where the mean vector scores 0.
    """

    count: Tensor
    cosine: Tensor  # between state and what was told
    centred_cosine: Tensor  # after the mean was taken off both
    relative_error: Tensor  # |x - x_hat| / |x|
    norm_ratio: Tensor  # |x_hat| / |x|
    squared_error: Tensor  # |x - x_hat|^2
    variance: Tensor  # |x - mean|^2

    def __add__(self, other: RoundTrip) -> RoundTrip:
        return RoundTrip(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (sum, count), to be divided once over everything. `unexplained` is 1 - centred R^2."""
        means = ("cosine", "centred_cosine", "relative_error", "norm_ratio")
        return {name: (getattr(self, name), self.count) for name in means} | {
            "unexplained": (self.squared_error, self.variance)
        }

    def figures(self) -> dict[str, float]:
        """Means over states, and centred_r2 = 1 - sum |x - x_hat|^2 / sum |x - mean|^2; of none nan."""
        found = {name: float(total / count) for name, (total, count) in self.pairs().items()}
        return found | {"centred_r2": 1 - found.pop("unexplained")}


@torch.no_grad()
def round_trip(states: Tensor, told: Tensor, mean_D: Tensor, counted: Tensor | None = None) -> RoundTrip:
    """Compare states [..., D] with what was told of them, where `counted` [...] is True, or everywhere.

    mean_D: of the states the teller was made from, not of these: then R^2 is 0 for whoever always says the
    mean. What is not counted is never read. A state shows in no other state's figures.
    """
    if told.shape != states.shape or mean_D.shape != states.shape[-1:]:
        raise ValueError(
            f"states {tuple(states.shape)}, told {tuple(told.shape)} mean {tuple(mean_D.shape)} do not fit; "
            "all must be of one width"
        )
    if counted is not None:
        states, told = states[counted], told[counted]
    x_ND, y_ND = (part.reshape(-1, len(mean_D)).double() for part in (states, told))
    mean_D = mean_D.to(x_ND)
    length_N = x_ND.norm(dim=1).clamp(min=_LEAST)
    error_N = (x_ND - y_ND).norm(dim=1)
    return RoundTrip(
        torch.tensor(float(len(x_ND)), dtype=torch.float64, device=x_ND.device),
        F.cosine_similarity(x_ND, y_ND, dim=1, eps=_LEAST).sum(),
        F.cosine_similarity(x_ND - mean_D, y_ND - mean_D, dim=1, eps=_LEAST).sum(),
        (error_N / length_N).sum(),
        (y_ND.norm(dim=1) / length_N).sum(),
        error_N.square().sum(),
        (x_ND - mean_D).square().sum(),
    )


class MeanVector(nn.Module):
    """Always says the mean of the states it was made from: what a high cosine may amount to."""

    def __init__(self, moments: Moments):
        super().__init__()
        self.register_buffer("mean_D", moments.mean_D().float())

    def forward(self, context: Tensor) -> Tensor:
        """[..., C] -> [..., D]; the context is not read."""
        return self.mean_D.expand(*context.shape[:-1], -1)


class NearestNeighbour(nn.Module):
    """Says the state that was kept with the nearest context: what remembering alone reaches.

    Nearest by squared distance; whitened contexts make every direction count alike. Of equals, the first.
    """

    def __init__(self, contexts_MC: Tensor, states_MD: Tensor, chunk: int = 1024):
        """chunk: contexts whose distances to all M are held at a time."""
        super().__init__()
        if len(contexts_MC) != len(states_MD) or not len(states_MD):
            raise ValueError(
                f"{len(contexts_MC)} contexts for {len(states_MD)} states; keep at least one pair"
            )
        self.chunk = chunk
        self.register_buffer("contexts_MC", contexts_MC.float())
        self.register_buffer("states_MD", states_MD)

    @torch.no_grad()
    def forward(self, context: Tensor) -> Tensor:
        """[..., C] -> [..., D]."""
        flat_NC = context.reshape(-1, context.shape[-1]).float()
        with full_precision(flat_NC):
            nearest = [self._nearest(part_NC) for part_NC in flat_NC.split(self.chunk)]
        return self.states_MD[torch.cat(nearest)].unflatten(0, context.shape[:-1])

    def _nearest(self, part_NC: Tensor) -> Tensor:
        # not by |a|^2 - 2ab + |b|^2, which cancels where both have a large mean
        distance_NM = torch.cdist(part_NC, self.contexts_MC, compute_mode="donot_use_mm_for_euclid_dist")
        return distance_NM.argmin(1)


def ridge(moments: Moments, inputs: int, penalty: float = 1e-3) -> nn.Module:
    """Ridge regression of y on x from the moments of [x; y]: what any linear map of the context reaches.

    penalty: relative to the mean variance of x; choose it on validation problems. See `regression`.
    """
    return regression(moments, inputs, ridge=penalty, whiten=False)
