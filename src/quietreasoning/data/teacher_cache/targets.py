"""From a teacher's logits to what is kept of them.

Shapes: P positions, V vocabulary, K kept, N drawn, T temperatures, E kept entries of all positions together.

Top-k: the ids and their log-probabilities l at temperature 1, and for each temperature T the log-sum
r_T = log sum over all others of exp(l / T). Together they give p at T: log p_T(v) = l_v / T - Z with
Z = log(sum over kept of exp(l / T) + exp(r_T)). Without r_T no temperature but 1 could be had, since what
the tail weighs changes with it.
Drawn (random sampling knowledge distillation, arXiv 2503.16870): ids drawn from p_T, as shares n / N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.config import UserError

MOST_DRAWS = 256  # shares of so many are told apart in float16, so they read back exactly
_CELLS = 1 << 24  # logits that are looked at at once


@dataclass(frozen=True)
class Keep:
    """What is kept of a distribution. UserError, in the words of the command line, for what cannot be."""

    k: int = 64
    coverage: float | None = None  # as few as hold this mass, at most k
    draws: int | None = None  # in place of the likeliest k
    seed: int = 0  # of the draws
    temperatures: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1; 64 is usual")
        if self.coverage is not None and not 0 < self.coverage < 1:
            raise UserError(f"--coverage {self.coverage:g}: must lie between 0 and 1, such as 0.99")
        if self.draws is not None and not 1 <= self.draws <= MOST_DRAWS:
            raise UserError(f"--draws {self.draws}: must be 1 to {MOST_DRAWS}; 12 are usual")
        if self.draws is not None and self.coverage is not None:
            raise UserError("--draws takes no likeliest tokens, so --coverage has no effect; drop one")
        told = ", ".join(f"{t:g}" for t in self.temperatures)
        if not self.temperatures or not all(0 < t < float("inf") for t in self.temperatures):
            raise UserError(f"--temperature {told}: must be positive, such as 1")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise UserError(f"--temperature {told}: name each once")
        if self.draws is not None and len(self.temperatures) > 1:
            raise UserError(
                f"--temperature {told}: what is drawn at one temperature says nothing of another. Give one "
                "with --draws, or leave --draws out."
            )

    def told(self) -> dict[str, Any]:
        """For the header; what has no effect is null."""
        drawn = self.draws is not None
        return asdict(self) | {"k": None if drawn else self.k, "seed": self.seed if drawn else None}


@dataclass(frozen=True)
class Targets:
    """What is kept of P positions."""

    ids: NDArray[np.uint32]  # [E], position after position, the likeliest first; drawn ones ascend
    logps: NDArray[np.float16]  # [E], at temperature 1; of drawn ones log(n / N)
    counts: NDArray[np.int64]  # [P], entries of each
    rest: NDArray[np.float16]  # [P, T]; of drawn ones [P, 0]
    mass: float  # probability that is kept at temperature 1, summed over P; drawn: 0
    nll: float  # nats that the true next tokens cost the teacher, summed over P


@torch.no_grad()
def targets_of(
    logits_PV: Tensor, next_P: Tensor, keep: Keep, uniforms_PN: NDArray[np.float64] | None = None
) -> Targets:
    """What is kept of these positions. next_P: the token that truly follows each, for the figure alone.

    uniforms_PN: numbers in [0, 1), needed by draws. ValueError where a logit is no number.
    """
    logp_PV = logits_PV.float().log_softmax(-1)
    if logp_PV.isnan().any():
        raise ValueError("logits are not finite")
    nll = -logp_PV.gather(-1, next_P[:, None]).double().sum().item()
    if keep.draws is not None:
        return _drawn(logp_PV, keep, torch.from_numpy(uniforms_PN).to(logp_PV.device), nll)
    value_PK, id_PK = logp_PV.topk(min(keep.k, logp_PV.shape[-1]))
    share_PK = value_PK.double().exp()
    kept_PK = torch.ones_like(id_PK, dtype=torch.bool)
    if keep.coverage is not None:
        kept_PK = share_PK.cumsum(-1) - share_PK < keep.coverage  # not yet covered by those before
    left_PV = logp_PV.scatter(-1, id_PK, value_PK.masked_fill(kept_PK, -torch.inf))
    rest_PT = torch.stack([(left_PV / t).logsumexp(-1) for t in keep.temperatures], -1)
    return Targets(
        id_PK[kept_PK].cpu().numpy().astype(np.uint32),
        value_PK[kept_PK].cpu().numpy().astype(np.float16),
        kept_PK.sum(-1).cpu().numpy(),
        rest_PT.cpu().numpy().astype(np.float16),
        share_PK[kept_PK].sum().item(),
        nll,
    )


def _drawn(logp_PV: Tensor, keep: Keep, uniforms_PN: Tensor, nll: float) -> Targets:
    """In float64: over a large vocabulary float32 sums would lose the unlikely tokens."""
    share_PV = (logp_PV.double() / keep.temperatures[0]).softmax(-1).cumsum(-1)
    found_PN = torch.searchsorted(share_PV, uniforms_PN * share_PV[:, -1:], right=True)
    found_PN = found_PN.clamp(max=logp_PV.shape[-1] - 1).sort(-1).values.cpu().numpy()
    first_PN = np.diff(found_PN, prepend=-1) != 0  # a run of equal ids begins; each position begins one
    runs = np.diff(np.flatnonzero(first_PN), append=first_PN.size)
    return Targets(
        found_PN[first_PN].astype(np.uint32),
        np.log(runs / keep.draws).astype(np.float16),
        first_PN.sum(-1),
        np.zeros((len(found_PN), 0), np.float16),
        0.0,
        nll,
    )


def chunks(positions: int, vocabulary: int) -> list[slice]:
    """Positions in parts whose logits fit into memory."""
    size = max(1, _CELLS // vocabulary)
    return [slice(first, first + size) for first in range(0, positions, size)]


def joined(parts: Sequence[Targets]) -> Targets:
    """Targets one after another."""
    arrays = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "logps", "counts", "rest")
    )
    return Targets(*arrays, sum(p.mass for p in parts), sum(p.nll for p in parts))
