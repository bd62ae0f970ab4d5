"""The divergence family of knowledge distillation, per position and from logits.

p is the teacher, q the student, both after division by the temperature T:

    beta = 0             KL(p || q) = sum p log(p / q)
    beta = 1             KL(q || p)
    0 < beta < 1         beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q
    skew                 KL(p || s p + (1 - s) q)
    total variation      sum |p - q| / 2

The generalised Jensen-Shannon divergence is that of GKD (arXiv 2306.13649), skew KL that of DistiLLM (arXiv
2402.03898), T^2 that of Hinton et al. (arXiv 1503.02531).
Shapes: N positions, V vocabulary. The teacher never gets a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quietreasoning.losses.divergence import forward_kl
from quietreasoning.losses.rows import statistic

KINDS = ("jsd", "skew", "tv")
FLOOR = -1e30
"""Stands for -inf in logits: its probability is exactly 0, and 0 * FLOOR is 0 where 0 * -inf is NaN."""

Temperature = float | Tensor  # one, or one for each position [N]


@dataclass(frozen=True)
class Divergence:
    """Which divergence, at which temperature. ValueError names a value that is out of range or unused.

    kind: "jsd" takes `beta` in [0, 1] (0 forward KL, 1 reverse KL) and `scaled`; "skew" takes `skew` in (0,
    1); "tv" takes neither. temperature: above 0.
    scaled: divide a beta strictly between 0 and 1 by beta (1 - beta). The default, False, is the published
    form, whose value goes to 0 at both ends, so the ends themselves are jumps in scale; True makes them
    limits, and a sweep over beta keeps the weight of the term.
    """

    kind: str = "jsd"
    beta: float = 0.0
    skew: float = 0.0
    scaled: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is no divergence; give one of {', '.join(KINDS)}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta} is no share; give 0 (forward KL) to 1 (reverse KL)")
        if self.kind != "jsd" and (self.beta or self.scaled):
            raise ValueError(
                f"beta={self.beta}, scaled={self.scaled} mean nothing to kind={self.kind!r}; "
                "leave them out, or give kind='jsd'"
            )
        if self.kind == "skew" and not 0 < self.skew < 1:
            raise ValueError(f"skew={self.skew} is no skew; give a share between 0 and 1, such as 0.1")
        if self.kind != "skew" and self.skew:
            raise ValueError(f"skew={self.skew} means nothing to kind={self.kind!r}; give kind='skew'")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} divides no logits; give a number above 0")

    @property
    def forward(self) -> bool:
        """Is it KL(p || q)?"""
        return self.kind == "jsd" and self.beta == 0

    @property
    def reverse(self) -> bool:
        """Is it KL(q || p)?"""
        return self.kind == "jsd" and self.beta == 1


def divergence(
    teacher_NV: Tensor, student_NV: Tensor, choice: Divergence, temperature_N: Tensor | None = None
) -> Tensor:
    """The chosen divergence of each position [N] in nats, times T^2, from logits.

    temperature_N: one for each position in place of the choice's, which must then be 1; it gets no gradient.
    T^2 keeps the gradient's scale as T grows (total variation is of first order in p - q: there it is T).
    fp32 at least, fp64 stays. Logits of -inf are probabilities of 0. Where the two tables differ in length
    the longer one is cut: the softmax then is that of a table with -inf, and not with 0, beyond the common
    ids. ValueError where the positions differ, no id is common, or two temperatures are given.
    """
    temperature = chosen_temperature(choice, temperature_N)
    teacher_NV, student_NV = common_ids(teacher_NV.detach(), student_NV)
    apart_N = measure(choice)(cooled(teacher_NV, temperature), cooled(student_NV, temperature))
    return apart_N * heat(choice, temperature)


def measure(choice: Divergence) -> Callable[[Tensor, Tensor], Tensor]:
    """(teacher [N, V], student [N, V]) -> the divergence [N] without its temperature, from finite logits of
    at least fp32. Called on what nothing else holds, it lets go of both as soon as it has their logs."""
    if choice.forward:
        return forward_kl
    if choice.reverse:
        return _reverse_kl
    return _total_variation if choice.kind == "tv" else partial(_mixture, choice)


def _reverse_kl(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    return forward_kl(student_NV, teacher_NV)


def _total_variation(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    return 0.5 * (teacher_NV.softmax(-1) - student_NV.softmax(-1)).abs().sum(-1)


def _mixture(choice: Divergence, teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """Jensen-Shannon and skew KL. The mixture enters as its log-ratio to p and to q: near 1 that keeps the
    digits that log m - log p would lose."""
    teacher_NV, student_NV = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    gap_NV = teacher_NV - student_NV
    share = choice.skew if choice.kind == "skew" else choice.beta
    log_share, log_rest = gap_NV.new_tensor(share).log(), gap_NV.new_tensor(-share).log1p()
    kl_p_N = -(teacher_NV.exp() * torch.logaddexp(log_share, log_rest - gap_NV)).sum(-1)
    if choice.kind == "skew":
        return kl_p_N
    kl_q_N = -(student_NV.exp() * torch.logaddexp(log_share + gap_NV, log_rest)).sum(-1)
    if choice.scaled:
        return kl_p_N / (1 - share) + kl_q_N / share
    return share * kl_p_N + (1 - share) * kl_q_N


def common_ids(teacher_NV: Tensor, student_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Both over the first ids, which both have. ValueError where rows differ or no id is common."""
    if teacher_NV.shape[:-1] != student_NV.shape[:-1]:
        raise ValueError(
            f"teacher {tuple(teacher_NV.shape)} and student {tuple(student_NV.shape)} differ in positions"
        )
    common = min(teacher_NV.shape[-1], student_NV.shape[-1])
    if common < 1:
        raise ValueError(
            f"teacher {tuple(teacher_NV.shape)} and student {tuple(student_NV.shape)} have no ids in common"
        )
    return teacher_NV[..., :common], student_NV[..., :common]


def chosen_temperature(choice: Divergence, temperature_N: Tensor | None) -> Temperature:
    """The choice's, or one for each position. ValueError where both are given."""
    if temperature_N is None:
        return choice.temperature
    if choice.temperature != 1:
        raise ValueError(f"temperature={choice.temperature} and one for each position; leave one of them out")
    return temperature_N.detach()


def cooled(logits_NV: Tensor, temperature: Temperature) -> Tensor:
    """Logits over T, at least fp32 and finite."""
    logits_NV = statistic(logits_NV)
    if isinstance(temperature, Tensor):
        logits_NV = logits_NV / temperature.to(logits_NV)[:, None]
    elif temperature != 1:
        logits_NV = logits_NV / temperature
    return logits_NV.clamp(min=FLOOR)


def heat(choice: Divergence, temperature: Temperature) -> Temperature:
    """What keeps a divergence's gradient at its scale: T^2, or T for total variation."""
    return temperature if choice.kind == "tv" else temperature**2


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy [N] in nats, detached."""
    logp_NV = cooled(logits_NV.detach(), 1.0).log_softmax(-1)
    return -(logp_NV.exp() * logp_NV).sum(-1)
