"""Has an instruction gone into the weights? Figures and verdicts on numbers alone.

Shapes: N held-out questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quietreasoning.data.example import Example
from quietreasoning.data.strategies.validators import appropriate, usage, validate
from quietreasoning.evaluate.judging import LEAST_ROWS, OPEN, Figure, Measured, Trial, judge, ratio
from quietreasoning.evaluate.statistics import wilson

CONVERGENCE = 0.85  # share of the divergence that must be gone; the "85 %" of the seed of this work
VALID = 0.85  # share of answers whose thought must be well formed; of the seed
USAGE = 0.8  # share that must think at all; of the seed
APPROPRIATE = 0.6  # share that must think in a way that fits the question; of the seed
NOTHING = 1e-6  # nats a trajectory: an instruction that changes no more cannot be baked


def convergence(before_N: np.ndarray, now_N: np.ndarray, seed: int = 0) -> Trial:
    """1 - mean KL now / mean KL at the start, of the model without the instruction from the teacher."""
    name, n = "convergence", len(before_N)
    if before_N.mean() < NOTHING:
        note = f"the instruction changed {before_N.mean():.2g} nats at the start: there was nothing to bake"
        figure = Figure(name, Measured(0.0, 0.0, 0.0), n, "questions", CONVERGENCE, True, OPEN)
        return Trial("baked", (figure,), note)
    left = ratio(now_N, before_N, seed)
    found = Measured(1 - left.value, 1 - left.high, 1 - left.low)
    verdict = judge(found, CONVERGENCE, inclusive=True) if n >= LEAST_ROWS else OPEN
    note = f"KL a trajectory {before_N.mean():.3g} -> {now_N.mean():.3g} nats"
    return Trial("baked", (Figure(name, found, n, "questions", CONVERGENCE, True, verdict, note),))


@dataclass(frozen=True)
class Rates:
    """Counts of N written answers, tags kept."""

    n: int
    valid: int
    thinks: int
    fits: int
    chance: float  # share that would fit with the questions' annotations shuffled


def rates(texts: Sequence[str], examples: Sequence[Example]) -> Rates:
    """ValueError without texts."""
    if not texts:
        raise ValueError("no answers to judge")
    suited = appropriate(texts, examples)
    n = len(texts)
    valid = sum(bool(validate(text)) for text in texts)
    return Rates(n, valid, round(usage(texts) * n), round(suited.share * n), suited.chance)


def unprompted(student: Rates, teacher: Rates) -> Trial:
    """What the model writes without the instruction, beside what it wrote at the start with it."""
    figures = []
    for what, count, needs, inclusive in (
        ("valid thoughts", "valid", VALID, True),
        ("answers that think", "thinks", USAGE, False),
        ("strategy fits the question", "fits", APPROPRIATE, False),
    ):
        own, told = (
            Measured(getattr(r, count) / r.n, *wilson(getattr(r, count), r.n)) for r in (student, teacher)
        )
        note = f"by chance {student.chance:.2f}" if count == "fits" else ""
        verdict = judge(own, needs, inclusive=inclusive)
        figures.append(Figure(what, own, student.n, "answers", needs, inclusive, verdict, note))
        figures.append(Figure("  the teacher, told", told, teacher.n, "answers"))
    return Trial("unprompted answers", tuple(figures))


def forgetting(before_N: np.ndarray, now_N: np.ndarray, tokens_N: np.ndarray, seed: int = 0) -> Trial:
    """Nats a token of gold text, at the start and now, and their difference; decides nothing.

    before, now: log-likelihood of each question's gold text, summed over its tokens.
    """
    figures = []
    for what, nats_N in (
        ("at the start", -before_N),
        ("now", -now_N),
        ("rise", before_N - now_N),
    ):
        found = ratio(nats_N, tokens_N, seed)
        figures.append(Figure(f"gold text, {what}", found, len(nats_N), "questions"))
    return Trial(
        "forgetting",
        tuple(figures),
        "nats a token of the gold steps and answers, without the instruction; no threshold",
    )
