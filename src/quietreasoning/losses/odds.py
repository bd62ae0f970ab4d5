"""Probabilities of events that may be all but certain or all but impossible, as log p and log (1 - p).

Each of the two keeps its digits where the other is near 0, which one alone cannot: in fp32 a probability of
1 - e^-20 is 1, and log (1 - p) would be -inf.
Shapes: `...` is any, N positions, D width, J ids, V vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quietreasoning.losses.divergence import Head
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
    return said_one_of(logits_V, ids[..., None])


def said_one_of(logits_V: Tensor, ids_J: Tensor) -> Event:
    """That the next token is one of the ids [..., J], no two alike and not all there are; as `said`."""
    logits_V = statistic(logits_V)
    own = logits_V.gather(-1, ids_J).logsumexp(-1)
    z = own - logits_V.scatter(-1, ids_J, -math.inf).logsumexp(-1)
    return Event(F.logsigmoid(z), F.logsigmoid(-z))


def heard(hidden_ND: Tensor, head: Head, ids_J: Tensor, *, chunk: int = 1024) -> Event:
    """That each state is followed by one of the ids [J]: two columns [N].

    Beyond `chunk` rows the logits are made again in the backward, so no more than a chunk's are ever held.
    """

    def part(hidden_CD: Tensor) -> Event:
        return said_one_of(head(hidden_CD), ids_J.expand(len(hidden_CD), -1))

    whole = len(hidden_ND) <= chunk or not torch.is_grad_enabled()
    parts = [
        part(rows_CD) if whole else checkpoint(part, rows_CD, use_reentrant=False)
        for rows_CD in hidden_ND.split(chunk)
    ]
    return Event(*(torch.cat(column) for column in zip(*parts, strict=True)))


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
