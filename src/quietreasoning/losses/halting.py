"""When to stop thinking: PonderNet's prior (arXiv 2107.05407).

R rows (a row is one workspace update of one sequence), T inner steps, numbered from 1. p_RT is the
probability that step t is the last one, and sums to one over t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.losses.rows import statistic, sum_rows

TINY = 1e-9


def geometric_prior(rate: float, steps: int, device: torch.device | str | None = None) -> Tensor:
    """(T,): rate * (1 - rate)^(t - 1), the last step takes the remainder, as it does in p.

    The paper cuts the geometric distribution at T; giving the tail to step T instead keeps the mean at
    1 + x + ... + x^(T-1) with x = 1 - rate.
    """
    if not 0 < rate < 1 or steps < 1:
        raise ValueError(
            f"rate={rate}, steps={steps}: no geometric prior; give 0 < rate < 1 and at least 1 step, "
            "or a mean to rate_for_mean"
        )
    reach_T = (1 - rate) ** torch.arange(steps, dtype=torch.float32, device=device)
    return torch.cat([reach_T[:-1] * rate, reach_T[-1:]])


def rate_for_mean(mean: float, steps: int) -> float:
    """The rate whose prior runs `mean` steps: 1 + x + ... + x^(T-1) = mean, rate = 1 - x. 1.2 of 3: 0.829."""
    if mean == steps == 1:
        return 0.5  # the only step is the last one, whatever the rate
    if not 1 < mean < steps:
        raise ValueError(
            f"mean={mean}: no rate has it; give a mean between 1 and steps={steps}, both left out"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        x = (low + high) / 2
        low, high = (x, high) if sum(x**t for t in range(steps)) < mean else (low, x)
    return 1 - (low + high) / 2


def halting_kl(p_RT: Tensor, rate: float, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of KL(p || geometric prior) in nats, and how many rows (2107.05407, section 2)."""
    p_RT = statistic(p_RT)
    prior_T = geometric_prior(rate, p_RT.shape[1], p_RT.device)
    kl_R = (p_RT * (p_RT.clamp(min=TINY).log() - prior_T.log())).sum(1)
    return sum_rows(kl_R, rows_R)
