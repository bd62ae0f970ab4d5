"""Do thoughts carry anything? Three tests that can fail, on numbers alone.

T1: a thought is neither what the model would have said anyway, nor the same everywhere. Random words pass it.
T2: with its thoughts the method is better than without, and than with those of others or with filler.
T3: thoughts that score well without knowing the text to come are those that help. Each is passed by some kind
of theater; no kind passes all three. Shapes: N thoughts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quietreasoning.evaluate.compare import LEVEL
from quietreasoning.evaluate.judging import (
    FAIL,
    LEAST_ROWS,
    OPEN,
    Figure,
    Measured,
    Trial,
    clustered_mean,
    judge,
    resampled,
)
from quietreasoning.evaluate.rows import LABELS
from quietreasoning.evaluate.statistics import mcnemar

DISTANCE = 0.3  # T1: share of the longer text that must differ; of the seed of this work, made relative
GAIN = 0.0  # T2: nats, and share of answers; the lower confidence bound must exceed it
CORRELATION = 0.5  # T3: Pearson; of the seed
WANTED, LEAST = 1000, 100  # thoughts that T3 should have, and must have
DRAWS, WORK = 10_000, 40_000_000  # permutations, and numbers shuffled in all: fewer draws of more thoughts
CONTROLS = ("zero", "shuffle", "filler")  # each must lose; noise stands in where there is no filler
_CHUNK = 256


@dataclass(frozen=True)
class ThoughtTable:
    """What was read of N thoughts; see `contract.Examined`."""

    row_N: np.ndarray
    tokens: Sequence[Sequence[int]]
    continuation: Sequence[Sequence[int]]
    score_N: np.ndarray
    plain_score_N: np.ndarray | None
    utility_N: np.ndarray

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def rows(self) -> int:
        return len(np.unique(self.row_N))


# T1


def divergence(table: ThoughtTable, seed: int = 0) -> Trial:
    """T1: normalised edit distance to the continuation, and to thoughts of other rows."""
    other_N = partners(table.row_N, seed)
    pairs = {
        "distance to the greedy continuation": table.continuation,
        "distance to thoughts of other rows": [table.tokens[i] for i in other_N],
    }
    figures = []
    for what, others in pairs.items():
        found = clustered_mean(distances(table.tokens, others), table.row_N, seed)
        verdict = judge(found, DISTANCE) if table.rows >= LEAST_ROWS else OPEN
        figures.append(Figure(what, found, len(table), "thoughts", DISTANCE, verdict=verdict))
    return Trial("T1 divergence", tuple(figures), _few_rows(table))


def distances(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> np.ndarray:
    """Levenshtein distance of each pair over the longer length, in [0, 1]; 0 for two empty ones."""
    found = [_distances(one[at : at + _CHUNK], other[at : at + _CHUNK]) for at in range(0, len(one), _CHUNK)]
    return np.concatenate(found) if found else np.zeros(0)


def _distances(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> np.ndarray:
    """All pairs at once: table[n, i, j] is the distance of the first i and the first j tokens."""
    (a, a_N), (b, b_N) = _padded(one, -1), _padded(other, -2)
    table = np.zeros((len(a), a.shape[1] + 1, b.shape[1] + 1), dtype=np.int32)
    table[:, :, 0], table[:, 0] = np.arange(a.shape[1] + 1), np.arange(b.shape[1] + 1)
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            replaced = table[:, i, j] + (a[:, i] != b[:, j])
            table[:, i + 1, j + 1] = np.minimum(
                replaced, np.minimum(table[:, i, j + 1], table[:, i + 1, j]) + 1
            )
    return table[np.arange(len(a)), a_N, b_N] / np.maximum(np.maximum(a_N, b_N), 1)


def _padded(texts: Sequence[Sequence[int]], fill: int) -> tuple[np.ndarray, np.ndarray]:
    length_N = np.array([len(text) for text in texts])
    ids = np.full((len(texts), length_N.max(initial=0)), fill, dtype=np.int64)
    for own, text in zip(ids, texts, strict=True):
        own[: len(text)] = text
    return ids, length_N


def partners(row_N: np.ndarray, seed: int) -> np.ndarray:
    """For each thought the index of one of another row: rows in a drawn circle, each given to the next.

    ValueError where there is one row only.
    """
    rows, index_N = np.unique(row_N, return_inverse=True)
    if len(rows) < 2:
        raise ValueError("thoughts of one row have no others to be paired with")
    generator = np.random.Generator(np.random.Philox(seed))
    circle = generator.permutation(len(rows))
    following = np.empty_like(circle)
    following[circle] = np.roll(circle, -1)
    counts = np.bincount(index_N)
    first, sorted_N = np.cumsum(counts) - counts, np.argsort(index_N, kind="stable")
    given_N = following[index_N]
    return sorted_N[first[given_N] + generator.integers(0, counts[given_N])]


# T2


def ablation(table: ThoughtTable | None, compared: Mapping[str, dict[str, Any]], seed: int = 0) -> Trial:
    """T2. compared: control -> `compare.compare` of the method with itself under that control."""
    figures, notes = [], []
    if table is not None:
        gained = clustered_mean(table.utility_N, table.row_N, seed)
        verdict = judge(gained, GAIN) if table.rows >= LEAST_ROWS else OPEN
        figures.append(Figure("nats a thought adds", gained, len(table), "thoughts", GAIN, verdict=verdict))
        notes.append(_few_rows(table))
    for control, test in compared.items():
        found = Measured(test["difference"], test["low"], test["high"])
        decides = control in CONTROLS or "filler" not in compared
        verdict, note = judge(found, GAIN), ""
        if mcnemar(test["both"] + test["only_a"], 0) >= LEVEL:
            verdict, note = OPEN, "too few right answers for any loss to be measurable"
        what = f"accuracy over {LABELS[control]}"
        figures.append(
            Figure(
                what,
                found,
                test["n"],
                "answers",
                needs=GAIN if decides else None,
                verdict=verdict if decides else None,
                note=note,
            )
        )
    if not compared:
        notes.append("running text has no answers: its log-likelihood alone was asked")
    return Trial("T2 ablation", tuple(figures), "; ".join(note for note in notes if note))


# T3


def correlation(table: ThoughtTable, seed: int = 0, draws: int = DRAWS) -> Trial:
    """T3: Pearson of score and utility, held against `draws` permutations within rows, fewer where there
    are many thoughts."""
    few = "" if len(table) >= WANTED else f"only {len(table)} thoughts, {WANTED} wanted"
    p, draws, within = permutation_p(table.score_N, table.utility_N, table.row_N, seed, draws)
    where = "within rows" if within else "over all rows, which have one thought each"
    found = correlated(table.score_N, table.utility_N, table.row_N, seed)
    verdict = judge(found, CORRELATION)
    if len(table) < LEAST or table.rows < LEAST_ROWS:
        verdict = OPEN
    elif p >= LEVEL:
        verdict = FAIL
    shown = {"Spearman": (ranks(table.score_N), ranks(table.utility_N))}
    if table.plain_score_N is not None:
        shown["Pearson without expected utility"] = (table.plain_score_N, table.utility_N)
    note = f"p = {p:.2g} by {draws} permutations {where}"
    figures = [
        Figure(
            "Pearson of score and utility",
            found,
            len(table),
            "thoughts",
            CORRELATION,
            verdict=verdict,
            note=note,
        ),
        *(
            Figure(what, correlated(*pair, table.row_N, seed), len(table), "thoughts")
            for what, pair in shown.items()
        ),
    ]
    return Trial(
        "T3 correlation", tuple(figures), "; ".join(part for part in (few, _few_rows(table)) if part)
    )


def correlated(
    x_N: np.ndarray, y_N: np.ndarray, row_N: np.ndarray, seed: int, draws: int = 10_000
) -> Measured:
    """Pearson with a percentile interval over resampled rows; 0 where either never varies."""
    x, y = (_standard(np.asarray(each, dtype=np.float64)) for each in (x_N, y_N))
    _, index = np.unique(row_N, return_inverse=True)
    parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(index, weights=part) for part in parts], 1)
    low, high = np.quantile(_pearson(resampled(sums, seed, draws)), [0.025, 0.975])
    return Measured(float(_pearson(sums.sum(0)[None])[0]), float(low), float(high))


def _pearson(sums: np.ndarray) -> np.ndarray:
    """From n, sum x, sum y, sum xx, sum yy, sum xy [draws, 6]."""
    n, x, y, xx, yy, xy = sums.T
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    varies = spread > 1e-9 * n
    return np.where(varies, (xy - x * y / n) / np.where(varies, spread, 1.0), 0.0)


def _standard(values_N: np.ndarray) -> np.ndarray:
    spread = values_N.std()
    return (values_N - values_N.mean()) / spread if spread > 1e-12 else np.zeros_like(values_N)


def ranks(values_N: np.ndarray) -> np.ndarray:
    """From 0 up; equal values share the mean of their ranks."""
    _, index, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[index]


def permutation_p(
    x_N: np.ndarray, y_N: np.ndarray, row_N: np.ndarray, seed: int, draws: int = DRAWS
) -> tuple[float, int, bool]:
    """(p that shuffled scores correlate as well, permutations drawn, whether they stay within rows).

    Rows of one thought each cannot be shuffled within: then all are shuffled together.
    """
    x, y = (_standard(np.asarray(each, dtype=np.float64)) for each in (x_N, y_N))
    _, index = np.unique(row_N, return_inverse=True)
    within = np.bincount(index).max() > 1
    order = np.argsort(index, kind="stable")
    x, y, group = x[order], y[order], index[order] * float(within)
    draws = min(draws, max(1000, WORK // len(x)))
    generator, as_good = np.random.Generator(np.random.Philox(seed)), 0
    size, wanted = max(1, min(_CHUNK, WORK // 16 // len(x))), float(x @ y) - 1e-9 * len(x)
    for first in range(0, draws, size):
        keys = generator.random((min(size, draws - first), len(x))) + group  # groups stay where they are
        as_good += int((x[np.argsort(keys, axis=1)] @ y >= wanted).sum())
    return (1 + as_good) / (1 + draws), draws, bool(within)


def _few_rows(table: ThoughtTable) -> str:
    return "" if table.rows >= LEAST_ROWS else f"{table.rows} rows, at least {LEAST_ROWS} needed"
