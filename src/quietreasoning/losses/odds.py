"""Probabilities of events that may be all but certain or all but impossible, as log p and log (1 - p).

Each of the two keeps its digits where the other is near 0, which one alone cannot: in fp32 a probability of
1 - e^-20 is 1, and log (1 - p) would be -inf.
Shapes: `...` is any, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.losses.rows import statistic

RARE, SMALL = -12.0, 1e-3  # below them the first terms of a series are exact to fp64's digits


class Event(NamedTuple):
    """log p and log (1 - p), of one shape."""

    log_p: Tensor
    log_not: Tensor

    @property
    def opposite(self) -> Event:
        return Event(self.log_not, self.log_p)


def log1mexp(x: Tensor) -> Tensor:
    """log (1 - e^x) of x <= 0; -inf at 0. log (-expm1 x) near 0, log1p (-e^x) elsewhere (Maechler 2012)."""
    near = x > -math.log(2)
    inner = torch.where(near, x, -1.0)  # what is not taken must not spoil the gradient
    outer = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(inner)), torch.log1p(-torch.exp(outer)))


def said(logits_V: Tensor, ids: Tensor) -> Event:
    """That the next token is ids [...], from logits [..., V], at least fp32.

    With z = its logit - logsumexp of all others, log p = log sigmoid(z), log (1 - p) = log sigmoid(-z): both
    exact for any z, which a log p of 0 is not. The vocabulary must have two ids at least.
    """
    logits_V, ids_1 = statistic(logits_V), ids[..., None]
    own = logits_V.gather(-1, ids_1)[..., 0]
    z = own - logits_V.scatter(-1, ids_1, -math.inf).logsumexp(-1)
    return Event(F.logsigmoid(z), F.logsigmoid(-z))


def any_of(events: Event, counted: Tensor | None = None) -> Event:
    """That one of the independent events along the last dimension happens: 1 - prod (1 - p), [...].

    counted: bool, of the events' shape; others never happen. Where none counts p is 0, without a gradient.
    """
    log_p, log_not = events
    if counted is None:
        counted = torch.ones_like(log_p, dtype=torch.bool)
    log_none = log_not.masked_fill(~counted, 0.0).sum(-1)
    rate = _log_rate(log_p, log_not).masked_fill(~counted, -math.inf)
    there = counted.any(-1)
    log_u = rate.masked_fill(~there[..., None], 0.0).logsumexp(-1)  # u = - log of none
    low = log_u < math.log(SMALL)
    small = torch.where(low, log_u, 2 * math.log(SMALL)).exp()
    # 1 - e^-u = u (1 - u / 2 + u^2 / 6 - ...): log u stays where u itself has gone to 0
    near = log_u - small / 2 + small * small / 24
    far = log1mexp(-torch.where(low, 1.0, -log_none))
    log_any = torch.where(low, near, far)
    return Event(torch.where(there, log_any, -math.inf), log_none)


def all_of(events: Event) -> Event:
    """That all independent events along the last dimension happen: prod p, [...]."""
    return any_of(events.opposite).opposite


def _log_rate(log_p: Tensor, log_not: Tensor) -> Tensor:
    """log (- log (1 - p)) = log p + p / 2 + 5 p^2 / 24 + ..., also where 1 - p has rounded to 1."""
    rare = log_p < RARE
    p = torch.where(rare, log_p, 2 * RARE).exp()
    usual = torch.log(-torch.where(rare, -1.0, log_not))
    return torch.where(rare, log_p + p / 2 + 5 * p * p / 24, usual)
