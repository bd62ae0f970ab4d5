"""Which of two answers, and which way to write one: DPO, SimPO, likelihood and unlikelihood of spans.

DPO (arXiv 2305.18290, equation 7), SimPO (2405.14734, equation 6), unlikelihood (1908.04319, equation 4).
Every function returns sums and counts, and no row sees another.
Shapes: P pairs, N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.losses.odds import said
from quietreasoning.losses.rows import statistic


class Preferred(NamedTuple):
    total: Tensor  # what is minimised, with gradient
    ahead: Tensor  # pairs whose chosen answer is ahead already
    margin: Tensor  # sum of how far, without gradient
    count: Tensor  # pairs


def dpo(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    beta: float = 0.1,
    *,
    counted_P: Tensor | None = None,
) -> Preferred:
    """Sum over pairs of -log sigmoid(beta ((chosen - reference_chosen) - (rejected - reference_rejected))).

    Each is log p of a whole answer, the sum over its tokens, in nats; the reference's get no gradient. Pairs
    that do not count may hold anything. ValueError where beta <= 0.
    """
    _positive("beta", beta)
    own_P = statistic(chosen_P) - statistic(rejected_P)
    reference_P = (statistic(reference_chosen_P) - statistic(reference_rejected_P)).detach()
    return _preferred(beta * (own_P - reference_P), 0.0, counted_P)


def simpo(
    chosen_P: Tensor,
    rejected_P: Tensor,
    chosen_length_P: Tensor,
    rejected_length_P: Tensor,
    beta: float = 2.0,
    gamma: float = 1.0,
    *,
    counted_P: Tensor | None = None,
) -> Preferred:
    """Sum over pairs of -log sigmoid(beta (chosen / its length - rejected / its length) - gamma).

    chosen, rejected: log p of a whole answer, as for `dpo`; lengths in tokens. There is no reference. A pair
    with an empty answer does not count: its mean would be 0, better than that of any text. ValueError where
    beta <= 0 or gamma < 0.
    """
    _positive("beta", beta)
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma={gamma} is no margin; give 0 or more, such as half of beta")
    full_P = (chosen_length_P > 0) & (rejected_length_P > 0)
    mean_P = statistic(chosen_P) / chosen_length_P.clamp(min=1)
    margin_P = beta * (mean_P - statistic(rejected_P) / rejected_length_P.clamp(min=1))
    return _preferred(margin_P, gamma, full_P if counted_P is None else full_P & counted_P)


def _preferred(margin_P: Tensor, gamma: float, counted_P: Tensor | None) -> Preferred:
    if counted_P is None:
        counted_P = torch.ones_like(margin_P, dtype=torch.bool)
    margin_P = margin_P.masked_fill(~counted_P, 0.0)
    loss_P = -F.logsigmoid(margin_P - gamma).masked_fill(~counted_P, 0.0)
    told_P = margin_P.detach()
    return Preferred(loss_P.sum(), (told_P > 0).sum(), told_P.sum(), counted_P.sum())


def ramp(step: float, weight: float, warmup_steps: float = 5000, start_weight: float = 0.1) -> float:
    """The weight of a term at `step` (or epoch): from start_weight in a straight line to weight at
    warmup_steps, then that. ValueError where step or warmup_steps is below 0."""
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"step={step}, warmup_steps={warmup_steps}: give 0 or more")
    share = 1.0 if step >= warmup_steps else step / warmup_steps
    return start_weight + share * (weight - start_weight)


def unlikelihood(logits_NV: Tensor, ids_N: Tensor, counted_N: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of -log(1 - q(id)) over the tokens that count, how many), from logits.

    Only the one id is punished, not the vocabulary. Its slope in the id's logit is q, never more than 1, and
    stays there as q goes to 1, where 1 - q rounds to 0.
    """
    counted_N = counted_N & (ids_N >= 0)
    nats_N = -said(logits_NV, ids_N.clamp(min=0)).log_not
    return nats_N.masked_fill(~counted_N, 0.0).sum(), counted_N.sum()


def likelihood(logits_NV: Tensor, ids_N: Tensor, counted_N: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of -log q(id) over the tokens that count, how many), from logits."""
    counted_N = counted_N & (ids_N >= 0)
    nats_N = -said(logits_NV, ids_N.clamp(min=0)).log_p
    return nats_N.masked_fill(~counted_N, 0.0).sum(), counted_N.sum()


def span_terms(
    logits_NV: Tensor,
    labels_N: Tensor,
    classes_N: Tensor,
    positive: Sequence[int],
    negative: Sequence[int],
    pos: float = 1.0,
    neg: float = 1.0,
) -> dict[int, tuple[Tensor, Tensor]]:
    """For each class its (sum, tokens): pos * likelihood of positive ones, neg * unlikelihood of negative.

    labels_N: the token that logits_N predict, below 0 where none is learned; classes_N: that token's class.
    Each class has a count of its own, so that a short span is heard beside a long one. ValueError where a
    class is both, or a weight is below 0.
    """
    both = set(positive) & set(negative)
    if both:
        raise ValueError(f"class {min(both)} is to be both likelier and less likely; give it once")
    for name, weight in (("pos", pos), ("neg", neg)):
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name}={weight} is no weight; give 0 or more")
    terms = {}
    for classes, loss, weight in ((positive, likelihood, pos), (negative, unlikelihood, neg)):
        for kind in classes:
            total, count = loss(logits_NV, labels_N, classes_N == kind)
            terms[kind] = (weight * total, count)
    return terms


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value} scales nothing; give a number above 0")
