"""Intervals against known numbers, tests against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietreasoning.evaluate.statistics import (
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_counts,
    student_t,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (485, 500, 0.9511, 0.9817),  # 97.0 of 500
        (923, 1319, 0.6745, 0.7239),  # 70.0 of 1,319
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_known(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(pair):
    """The bounds are the shares p at which |share - p| equals z standard errors of p."""
    correct, n = pair
    for p in wilson(correct, n):
        if 0 < p < 1:
            assert abs(correct / n - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), rel=1e-5)
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1


def test_wilson_refuses_and_knows_nothing_of_nothing():
    assert wilson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="correct=3, n=2"):
        wilson(3, 2)


@pytest.mark.parametrize(("b", "c"), list(itertools.product(range(7), repeat=2)))
def test_mcnemar_brute_force(b, c):
    """Count all 2^(b+c) ways the discordant items could have fallen."""
    n = b + c
    heads = [sum(flips) for flips in itertools.product((0, 1), repeat=n)]
    as_far = sum(abs(2 * k - n) >= abs(b - c) for k in heads) / 2**n
    equal = sum(abs(2 * k - n) == abs(b - c) for k in heads) / 2**n
    assert mcnemar(b, c, mid=False) == pytest.approx(as_far)
    # mid-p takes half of the observed outcome's probability, on both sides
    assert mcnemar(b, c) == pytest.approx(1.0 if b == c else as_far - equal / 2)


def test_mcnemar_large_and_published():
    assert mcnemar(3000, 3000) == pytest.approx(1.0)
    assert mcnemar(4000, 1000) < 1e-200
    # Fagerland et al. 2013, airway hyper-responsiveness: b=1, c=7
    assert mcnemar(1, 7, mid=False) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar(1, 7) == pytest.approx(0.0391, abs=5e-5)


def test_bootstrap_matches_item_resampling():
    scores = np.array([1] * 30 + [-1] * 10 + [0] * 60)
    generator = np.random.default_rng(1)
    means = scores[generator.integers(0, 100, size=(20_000, 100))].mean(1)
    ours = paired_bootstrap(30, 10, 100)
    assert ours.value == pytest.approx(0.2)
    assert ours[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.011)


def test_bootstrap_seeded_and_antisymmetric():
    assert paired_bootstrap(5, 9, 50, seed=3) == paired_bootstrap(5, 9, 50, seed=3)
    a, b = paired_bootstrap(40, 9, 500), paired_bootstrap(9, 40, 500)
    assert a.value == -b.value
    assert (a.low, a.high) == pytest.approx((-b.high, -b.low), abs=0.004)
    assert paired_bootstrap(0, 0, 20)[:] == (0, 0, 0)
    with pytest.raises(ValueError, match="n=3"):
        paired_bootstrap(3, 1, 3)


def test_bootstrap_covers():
    """About 95 of 100 intervals hold the true difference."""
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        b, c, _ = generator.multinomial(300, [0.15, 0.08, 0.77])
        _, low, high = paired_bootstrap(int(b), int(c), 300, draws=1000, seed=i)
        hits += low <= 0.07 <= high
    assert 180 <= hits <= 199


def test_paired_counts():
    assert paired_counts([1, 1, 0, 0], [1, 0, 1, 0]) == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="3 and 2"):
        paired_counts([1, 1, 0], [1, 0])


@pytest.mark.parametrize(
    ("df", "t"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (99, 1.9842)],
)
def test_student_t_known(df, t):
    assert student_t(df) == pytest.approx(t, abs=5e-5)


def test_mean_interval():
    assert mean_interval([0.97], 500) == pytest.approx(wilson(485, 500))
    # seeds agree: the items' doubt stays
    assert mean_interval([1.0, 1.0, 1.0], 500) == pytest.approx(wilson(500, 500))
    # seeds differ: mean .8, standard error .0577, t(2) = 4.3027
    low, high = mean_interval([0.7, 0.8, 0.9], 1000)
    assert (low, high) == pytest.approx((0.8 - 4.3027 * 0.057735, 1.0), abs=1e-4)
