"""Halting as a hazard: at each step one stops with probability h_k, given that one has come so far.

    P(halt = k) = h_k prod_{j<k} (1 - h_j),  h_k = sigmoid(z_k);  the last step takes what is left

R rows, T steps, numbered from 1. z_RT are logits; that of the last step is never read. All is computed from
log-sigmoids, in fp32 or wider, so that finite logits of any size give finite losses and slopes. Every loss is
(sum over the rows that count, number of those rows). A row that does not count may hold anything: it adds
exactly zero, with its graph. The form is PonderNet's (arXiv 2107.05407), the likelihood that of discrete-time
survival analysis (Singer & Willett 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from quietreasoning.losses.halting import halting_kl
from quietreasoning.losses.rows import statistic, sum_rows


def halting_log_probs(z_RT: Tensor) -> Tensor:
    """log P(halt = k) of every step [R, T], in nats; its exponentials sum to one over T."""
    halts_RT, reached_RT = _halts_and_reached(statistic(z_RT))
    return halts_RT + reached_RT


def survival_loss(
    z_RT: Tensor, step_R: Tensor, rows_R: Tensor, halts_R: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """-log h_k - sum_{j<k} log(1 - h_j), without h_k where k is the last step; nothing after k is read.

    step_R: k, the step to halt at, 1 to T. halts_R: False where nothing is known but that step k was survived
    (censored); such a row adds -sum_{j<=k} log(1 - h_j), and one of step 0 adds zero. ValueError where a row
    that counts has a step out of range.
    """
    steps = z_RT.shape[1]
    halts_R = torch.ones_like(rows_R) if halts_R is None else halts_R
    low_R = halts_R.long()  # a step that is survived may be 0: nothing is known
    if bool((rows_R & ((step_R < low_R) | (step_R > steps))).any()):
        raise ValueError(f"a target step is out of range: give 1 to {steps}, or 0 where it is only survived")
    z_RT = _counted(z_RT, rows_R)
    halts_RT, reached_RT = _halts_and_reached(z_RT)
    through_RT = torch.cat([reached_RT, reached_RT[:, -1:]], 1)  # after the last step nothing is survived
    survived_R = through_RT.gather(1, step_R.clamp(0, steps)[:, None])[:, 0]
    column_R1 = (step_R.clamp(1, steps) - 1)[:, None]
    halted_R = (halts_RT + reached_RT).gather(1, column_R1)[:, 0]
    return sum_rows(-torch.where(halts_R, halted_R, survived_R), rows_R)


def soft_survival_loss(z_RT: Tensor, target_RT: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """-sum_k pi_k log P(k). target_RT: pi, which sums to one over T; without gradient."""
    target_RT = target_RT.detach().masked_fill(~rows_R[:, None], 0)
    logp_RT = halting_log_probs(_counted(z_RT, rows_R))
    return sum_rows(-(target_RT.to(logp_RT.dtype) * logp_RT).sum(1), rows_R)


def expected_loss(
    z_RT: Tensor, loss_RT: Tensor, rows_R: Tensor, rate: float | None = None, kl: float = 0.0
) -> tuple[Tensor, Tensor]:
    """sum_k P(k) loss_k, and `kl` times KL(P || geometric prior of `rate`) (2107.05407, equation 5).

    loss_RT: the task's loss after each step, with whatever graph it has. ValueError for kl without a rate.
    """
    if kl and rate is None:
        raise ValueError(f"kl={kl} needs the rate of the prior: see halting.rate_for_mean")
    p_RT = halting_log_probs(_counted(z_RT, rows_R)).exp()
    counted_RT = loss_RT.masked_fill(~rows_R[:, None], 0)
    total, count = sum_rows((p_RT * counted_RT).sum(1), rows_R)
    return (total + kl * halting_kl(p_RT, rate, rows_R)[0] if kl else total), count


@torch.no_grad()
def utility_target(score_RT: Tensor, cost: float | Tensor, temperature: float = 0.0) -> Tensor:
    """pi_RT from u_k = score_k - cost * k: where to stop if a step costs `cost` in units of the score.

    cost: a number a step, or what the steps up to each one cost together [T]. temperature: 0 puts all on the
    best step, the earliest of equals; else pi_k is proportional to exp((u_k - max u) / temperature).
    """
    score_RT = statistic(score_RT)
    if not isinstance(cost, Tensor):
        cost = cost * torch.arange(1, score_RT.shape[1] + 1, device=score_RT.device)
    utility_RT = score_RT - cost
    if temperature > 0:
        return (utility_RT / temperature).softmax(1)
    best_R1 = (utility_RT == utility_RT.max(1, keepdim=True).values).to(torch.uint8).argmax(1, keepdim=True)
    return torch.zeros_like(utility_RT).scatter(1, best_R1, 1.0)


def curriculum_step(stage: int, steps: int) -> int:
    """The step to halt at: all of them in stage 0, int(0.75 steps) in stage 1, int(0.5 steps) from 2 on; at
    least 1. ValueError for what is no stage or no number of steps."""
    if stage < 0 or steps < 1:
        raise ValueError(f"stage={stage}, steps={steps}: give a stage from 0 and at least 1 step")
    share = (1.0, 0.75, 0.5)[min(stage, 2)]
    return max(1, int(share * steps))


@torch.no_grad()
def first_above(z_RT: Tensor, threshold: float) -> Tensor:
    """The step [R] that halts: the first whose hazard is above `threshold`, else the last."""
    above_RT = statistic(z_RT).sigmoid() > threshold
    above_RT[:, -1] = True
    return above_RT.to(torch.uint8).argmax(1) + 1


def _halts_and_reached(z_RT: Tensor) -> tuple[Tensor, Tensor]:
    """log h_k [R, T], zero at the last step, and log prod_{j<k} (1 - h_j) [R, T]."""
    first_RT, none_R1 = z_RT[:, :-1], torch.zeros_like(z_RT[:, :1])
    halts_RT = torch.cat([logsigmoid(first_RT), none_R1], 1)
    reached_RT = torch.cat([none_R1, logsigmoid(-first_RT).cumsum(1)], 1)
    return halts_RT, reached_RT


def _counted(z_RT: Tensor, rows_R: Tensor) -> Tensor:
    """Logits of rows that count, zero elsewhere, in fp32 or wider; the graph stays."""
    return statistic(z_RT).masked_fill(~rows_R[:, None], 0)
