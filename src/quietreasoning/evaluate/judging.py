"""What a gate says: pass, fail or inconclusive, by where the interval of a figure lies. No models here.

A figure passes when its whole 95 % interval is beyond the threshold and fails when none of it is; in between,
or with too few rows, nothing was shown. A trial is as good as its worst figure, a gate as its worst trial.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from quietreasoning.evaluate.statistics import Interval

PASS, FAIL, OPEN, NONE, SHOWN = "pass", "fail", "inconclusive", "not applicable", "reported"
Verdict = Literal["pass", "fail", "inconclusive", "not applicable", "reported"]
LEAST_ROWS = 10  # clusters below which a bootstrap says nothing
DRAWS, HELD = 10_000, 4_000_000  # resamples, and how many of their numbers are held at a time


class Measured(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """One line of a trial. verdict: None where it is shown and decides nothing."""

    what: str
    measured: Measured
    n: int
    unit: str  # of what n counts: "rows", "thoughts", "answers"
    needs: float | None = None  # the threshold
    inclusive: bool = False  # the threshold itself is good enough
    verdict: Verdict | None = None
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """One test of a gate. note: what a reader must know of it."""

    name: str
    figures: tuple[Figure, ...]
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        found = worst(figure.verdict for figure in self.figures if figure.verdict is not None)
        return SHOWN if found == NONE and self.figures else found


@dataclass(frozen=True)
class Judgement:
    """What a gate found. about: run, method, task, split, seed and the like."""

    gate: str
    trials: tuple[Trial, ...]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """ "pass" only where every trial that applies has passed."""
        found = worst(trial.verdict for trial in self.trials)
        return OPEN if found == NONE else found

    def as_dict(self) -> dict[str, Any]:
        """For JSON: one row a figure, or a trial without figures."""
        rows = []
        for trial in self.trials:
            shared = {"gate": self.gate, "test": trial.name, "test_verdict": trial.verdict}
            for figure in trial.figures or (None,):
                rows.append(shared | _row(figure, trial.note))
        return {"gate": self.gate, "verdict": self.verdict, **self.about, "rows": rows}


def _row(figure: Figure | None, note: str) -> dict[str, Any]:
    if figure is None:
        names = ("what", "value", "low", "high", "needs", "n", "unit", "verdict")
        return dict.fromkeys(names) | {"note": note}
    notes = "; ".join(part for part in (figure.note, note) if part)
    shared = {name: getattr(figure, name) for name in ("what", "needs", "n", "unit", "verdict")}
    return shared | figure.measured._asdict() | {"note": notes}


def judge(interval: Interval | Measured, needs: float, *, inclusive: bool = False) -> Verdict:
    """inclusive: the threshold itself is good enough."""
    if interval.low > needs or (inclusive and interval.low == needs):
        return PASS
    return FAIL if interval.high < needs or (not inclusive and interval.high == needs) else OPEN


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The first of fail, inconclusive, pass that is there; without any of them "not applicable"."""
    there = set(verdicts)
    return next((verdict for verdict in (FAIL, OPEN, PASS) if verdict in there), NONE)


def resampled(sums_RC: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Sums [draws, C] over as many rows drawn again, with replacement, of what each row adds [R, C]."""
    rows = len(sums_RC)
    generator, found = np.random.Generator(np.random.Philox(seed)), []
    size = max(1, HELD // rows)
    for first in range(0, draws, size):
        times = generator.multinomial(rows, np.full(rows, 1 / rows), size=min(size, draws - first))
        found.append(times @ sums_RC)
    return np.concatenate(found)


def ratio(totals_R: np.ndarray, counts_R: np.ndarray, seed: int) -> Measured:
    """sum(totals) / sum(counts), with a percentile interval over resampled rows."""
    total, count = resampled(np.stack([totals_R, counts_R], 1), seed).T
    low, high = np.quantile(total / count, [0.025, 0.975])
    return Measured(float(totals_R.sum() / counts_R.sum()), float(low), float(high))


def clustered_mean(values_N: np.ndarray, row_N: np.ndarray, seed: int) -> Measured:
    """Mean of the values; its interval resamples rows, since values of a row belong together."""
    _, index_N = np.unique(row_N, return_inverse=True)
    return ratio(np.bincount(index_N, weights=values_N), np.bincount(index_N), seed)
