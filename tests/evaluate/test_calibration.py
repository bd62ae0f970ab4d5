"""Calibration against closed forms."""

import numpy as np
import pytest

from quietreasoning.evaluate.calibration import (
    brier,
    choose_threshold,
    expected_calibration_error,
    halting_steps,
    risk_coverage,
    trust,
)

DRAW = np.random.Generator(np.random.Philox(0))
CONFIDENCE = DRAW.uniform(size=400)
RIGHT = DRAW.uniform(size=400) < CONFIDENCE**2


def test_the_error_of_one_confidence_is_its_distance_to_the_accuracy():
    right = [True] * 6 + [False] * 4
    for mass in (False, True):
        assert expected_calibration_error([0.9] * 10, right, equal_mass=mass) == pytest.approx(0.3)
        assert expected_calibration_error([0.6] * 10, right, equal_mass=mass) == pytest.approx(0)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0
    assert expected_calibration_error([1.0, 0.0], [False, True]) == 1


def test_bins_by_hand():
    confidence, right = [0.1, 0.3, 0.6, 0.9], [False, True, True, True]
    halves = (2 / 4) * abs(0.5 - 0.2) + (2 / 4) * abs(1 - 0.75)
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(halves)
    assert expected_calibration_error(confidence, right, bins=2, equal_mass=True) == pytest.approx(halves)
    skewed = [0.6, 0.7, 0.8, 0.9]  # one bin by width, two by mass
    one, two = abs(0.75 - 0.75), 0.5 * abs(0.5 - 0.65) + 0.5 * abs(1 - 0.85)
    assert expected_calibration_error(skewed, right, bins=2) == pytest.approx(one)
    assert expected_calibration_error(skewed, right, bins=2, equal_mass=True) == pytest.approx(two)


def test_equal_confidences_are_never_torn_apart():
    confidence, right = np.array([0.5] * 9 + [0.9]), np.array([True, False] * 5)
    for order in (np.arange(10), DRAW.permutation(10)):
        found = expected_calibration_error(confidence[order], right[order], bins=4, equal_mass=True)
        assert found == pytest.approx(0.9 * abs(5 / 9 - 0.5) + 0.1 * 0.9)


def test_the_parts_of_the_brier_score_add_up():
    for bins in (1, 7, 15):
        parts = brier(CONFIDENCE, RIGHT, bins=bins)
        assert parts.score == pytest.approx(np.mean((CONFIDENCE - RIGHT) ** 2))
        whole = parts.reliability - parts.resolution + parts.uncertainty + parts.within
        assert whole == pytest.approx(parts.score, abs=1e-12)
    levels = np.round(CONFIDENCE, 1) * 0.9  # one number a bin: nothing is left within
    assert brier(levels, RIGHT, bins=100).within == pytest.approx(0, abs=1e-12)
    knows_nothing = brier(np.full(10, 0.6), [True] * 6 + [False] * 4)
    assert knows_nothing.reliability == pytest.approx(0, abs=1e-12) and knows_nothing.resolution < 1e-12
    assert knows_nothing.score == pytest.approx(0.24) == knows_nothing.uncertainty


def test_risk_at_every_coverage():
    found = risk_coverage([0.9, 0.2, 0.7], [True, False, False])
    assert found.coverage_N == pytest.approx([1 / 3, 2 / 3, 1]) and found.risk_N == pytest.approx(
        [0, 0.5, 2 / 3]
    )
    assert found.area == pytest.approx((0 + 0.5 + 2 / 3) / 3)
    assert risk_coverage(np.full(8, 0.5), [True] * 6 + [False] * 2).area == pytest.approx(0.25)
    perfect = risk_coverage(RIGHT.astype(float), RIGHT)
    assert (
        perfect.area
        < risk_coverage(CONFIDENCE, RIGHT).area
        < 1 - RIGHT.mean()
        < risk_coverage(1 - CONFIDENCE, RIGHT).area
    )


def test_what_an_evaluation_tells():
    found = trust(CONFIDENCE, RIGHT)
    assert found["ece"] == expected_calibration_error(CONFIDENCE, RIGHT)
    assert found["brier"] == brier(CONFIDENCE, RIGHT).score
    assert found["risk_area"] == risk_coverage(CONFIDENCE, RIGHT).area < found["error"] == 1 - RIGHT.mean()
    assert found["brier_of_the_mean"] == pytest.approx(np.var(RIGHT)) and found["ece_mass"] > 0


def test_steps_until_a_hazard_passes():
    assert halting_steps([[0.2, 0.6, 0.9], [0.1, 0.1, 0.1], [0.5, 0.51, 0.0]], 0.5).tolist() == [2, 3, 2]


def test_the_threshold_saves_what_the_drop_allows():
    hazard = np.array([[0.9, 0.1, 0.0], [0.3, 0.8, 0.0], [0.2, 0.3, 0.0], [0.6, 0.2, 0.0]])
    right = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]])
    free = choose_threshold(hazard, right, 0.0)
    assert (free.accuracy, free.steps, free.full_accuracy, free.full_steps) == (1.0, 9 / 4, 1.0, 3)
    assert halting_steps(hazard, free.threshold).tolist() == [1, 2, 3, 3]
    quarter = choose_threshold(hazard, right, 0.25)
    assert quarter.accuracy == 0.75 and halting_steps(hazard, quarter.threshold).tolist() == [1, 2, 3, 1]
    assert choose_threshold(hazard, right, 1.0).steps == 1
    never = choose_threshold(np.full((2, 3), 0.5), [[0, 0, 1]] * 2, 0.0)
    assert (never.steps, halting_steps(np.full((2, 3), 0.5), never.threshold).tolist()) == (3, [3, 3])
    assert choose_threshold([[0.4]], [[1]], 0.0).steps == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: brier([0.1, 1.2], [True, False]), r"not in \[0, 1\]"),
        (lambda: risk_coverage([], []), "and some"),
        (lambda: expected_calibration_error([0.1], [True, False]), "as many"),
        (lambda: expected_calibration_error([0.1], [True], bins=0), "bins=0"),
        (lambda: choose_threshold([[0.1]], [[1, 0]], 0.0), "one shape"),
        (lambda: choose_threshold([[0.1]], [[1]], -0.1), "negative"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
