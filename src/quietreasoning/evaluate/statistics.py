"""Intervals and paired tests. Pure functions over counts; numpy only for the seeded bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """a minus b, as accuracies, with a 95 % interval."""

    value: float
    low: float
    high: float


def wilson(correct: int, n: int, z: float = Z95) -> Interval:
    """Score interval of a proportion (Wilson 1927). No observation gives (0, 1).

    Raises ValueError unless 0 <= correct <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"wilson needs 0 <= correct <= n, got correct={correct}, n={n}")
    return wilson_share(correct / n, n, z) if n else Interval(0.0, 1.0)


def wilson_share(share: float, n: float, z: float = Z95) -> Interval:
    """The same for a share that is no whole count, such as a mean over seeds."""
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # rounding would leave 1e-17 where the formula gives exactly 0 or 1
    return Interval(0.0 if share == 0 else low, 1.0 if share == 1 else high)


def mcnemar(only_a: int, only_b: int, mid: bool = True) -> float:
    """Two-sided p that a and b err equally often, from the items that only one of them solves.

    Binomial, no normal approximation. mid=True gives the mid-p variant (Fagerland et al. 2013), which
    keeps the level without the exact test's caution; mid=False gives the exact test.
    """
    n, least = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    term, tail = 1, 0
    for i in range(least + 1):  # binomial coefficients as exact integers
        tail += term
        last, term = term, term * (n - i) // (i + 1)
    if mid:
        return (2 * tail - last) / 2**n
    return min(1.0, 2 * tail / 2**n)


def paired_counts(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int, int, int]:
    """Items solved by both, by a alone, by b alone, by neither. ValueError where lengths differ."""
    if len(a) != len(b):
        raise ValueError(f"a paired test needs the same items, got {len(a)} and {len(b)}")
    both = sum(x and y for x, y in zip(a, b, strict=True))
    only_a, only_b = sum(map(bool, a)) - both, sum(map(bool, b)) - both
    return both, only_a, only_b, len(a) - both - only_a - only_b


def paired_bootstrap(only_a: int, only_b: int, n: int, *, draws: int = 10_000, seed: int = 0) -> Difference:
    """Accuracy of a minus that of b on the same n items; percentile interval over resampled items.

    Resampling items that score -1, 0 or 1 is a multinomial draw of their counts, so no item is touched.
    Without any item on which the two differ the interval is (0, 0): say "no answer changed" instead.
    """
    if n < 1 or only_a + only_b > n:
        raise ValueError(f"paired_bootstrap needs 1 <= only_a + only_b <= n, got {only_a}, {only_b}, n={n}")
    generator = np.random.Generator(np.random.Philox(seed))
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    counts = generator.multinomial(n, shares, size=draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [0.025, 0.975])
    return Difference((only_a - only_b) / n, float(low), float(high))


def ratio_bootstrap(
    totals: np.ndarray, counts: np.ndarray, *, draws: int = 10_000, seed: int = 0
) -> Interval:
    """95 % percentile interval of sum(totals) / sum(counts) over resampled items; one item gives a point."""
    if len(totals) != len(counts) or len(totals) < 1:
        raise ValueError(f"ratio_bootstrap needs equally many, got {len(totals)} and {len(counts)}")
    generator = np.random.Generator(np.random.Philox(seed))
    times = generator.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=draws)
    low, high = np.quantile((times @ totals) / (times @ counts), [0.025, 0.975])
    return Interval(float(low), float(high))


def student_t(df: int, level: float = 0.95) -> float:
    """Two-sided quantile of Student's t for whole degrees of freedom (finite series, then bisection)."""
    if df < 1:
        raise ValueError(f"student_t needs df >= 1, got {df}")

    def inside(t: float) -> float:  # P(|T| < t), Abramowitz & Stegun 26.7.3 and 26.7.4
        theta = math.atan(t / math.sqrt(df))
        sine, cosine = math.sin(theta), math.cos(theta)
        total, term = 0.0, cosine if df % 2 else 1.0
        for i in range(2 + df % 2, df + 1, 2):
            total += term
            term *= cosine * cosine * (i - 1) / i
        return 2 / math.pi * (theta + sine * total) if df % 2 else sine * total

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return high


def seed_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """95 % interval of the mean of one figure over seeds, each with its own interval over items.

    The wider, at each end, of Student's t over the seeds and the mean reach of the items' intervals.
    """
    mean = sum(values) / len(values)
    low = mean - sum(x - i.low for x, i in zip(values, intervals, strict=True)) / len(values)
    high = mean + sum(i.high - x for x, i in zip(values, intervals, strict=True)) / len(values)
    if len(values) == 1:
        return Interval(low, high)
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1) / len(values))
    reach = student_t(len(values) - 1) * spread
    return Interval(min(low, mean - reach), max(high, mean + reach))


def mean_interval(shares: Sequence[float], n: int) -> Interval:
    """95 % interval of the mean accuracy of several seeds, each measured on n items.

    Two doubts, and the wider one at each end: which seed (Student's t over the seeds' accuracies) and
    which items (Wilson at n, as if the seeds shared their items). Three seeds at 100 % are thus not
    certain. One seed is plain Wilson.
    """
    mean = sum(shares) / len(shares)
    items = wilson_share(min(1.0, mean), n)
    if len(shares) == 1:
        return items
    spread = math.sqrt(sum((x - mean) ** 2 for x in shares) / (len(shares) - 1) / len(shares))
    reach = student_t(len(shares) - 1) * spread
    return Interval(max(0.0, min(items.low, mean - reach)), min(1.0, max(items.high, mean + reach)))
