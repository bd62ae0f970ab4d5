"""Verdicts on baking: half baked, unbaked and mute models do not pass."""

import numpy as np
import pytest

from quietreasoning.data.example import Example
from quietreasoning.data.strategies.forms import CHAIN, DOUBT
from quietreasoning.evaluate.baking import Rates, convergence, forgetting, rates, unprompted

BEFORE = np.random.default_rng(0).uniform(5, 15, 60)


@pytest.mark.parametrize(
    ("left", "verdict"), [(0.05, "pass"), (0.5, "fail"), (1.0, "fail"), (1.4, "fail"), (0.15, "inconclusive")]
)
def test_convergence_is_the_share_that_is_gone(left, verdict):
    spread = np.random.default_rng(1).normal(1, 0.2, len(BEFORE))
    trial = convergence(BEFORE, BEFORE * left * spread / np.mean(BEFORE * spread) * BEFORE.mean())
    found = trial.figures[0].measured
    assert trial.verdict == verdict and found.value == pytest.approx(1 - left)
    assert found.low <= found.value <= found.high


def test_too_little_to_bake_and_too_few_questions_are_inconclusive():
    assert convergence(BEFORE * 0, BEFORE * 0).verdict == "inconclusive"
    assert "nothing to bake" in convergence(BEFORE * 0, BEFORE).note
    assert convergence(BEFORE[:9], BEFORE[:9] * 0.01).verdict == "inconclusive"


GOOD = Rates(200, 190, 195, 150, 0.2)


@pytest.mark.parametrize(
    ("student", "wanted"),
    [
        (GOOD, ["pass", "pass", "pass"]),
        (Rates(200, 190, 195, 60, 0.2), ["pass", "pass", "fail"]),
        (Rates(200, 0, 0, 0, 0.0), ["fail"] * 3),
        (Rates(200, 168, 195, 150, 0.2), ["inconclusive", "pass", "pass"]),
    ],
)
def test_rates_of_unprompted_answers_decide_and_the_teachers_stand_beside(student, wanted):
    trial = unprompted(student, GOOD)
    assert [figure.verdict for figure in trial.figures[::2]] == wanted
    assert all(figure.verdict is None and "teacher" in figure.what for figure in trial.figures[1::2])
    assert "by chance 0." in trial.figures[4].note


def test_rates_are_counted_by_the_validators():
    said = [
        "<think> <step> 3 + 2 = 5 .\n<step> so 5 </think>\n#### 5",
        "<think> <step> alone </think>\n#### 5",  # one step is no chain
        "#### 5",
    ]
    asked = [
        Example(str(i), "", (), (), "5", {"acceptable": (a,)}) for i, a in enumerate((CHAIN, CHAIN, DOUBT))
    ]
    found = rates(said, asked)
    assert found == Rates(3, 1, 2, 1, 2 / 9)
    with pytest.raises(ValueError, match="no answers"):
        rates([], [])


def test_forgetting_is_told_and_decides_nothing():
    tokens = np.full(60, 4)
    trial = forgetting(-BEFORE, -BEFORE * 1.5, tokens)
    start, now, rise = (figure.measured.value for figure in trial.figures)
    assert rise == pytest.approx(now - start) and rise > 0 and trial.verdict == "reported"
