"""Each kind of planted theater fails the test made for it; a planted helpful thought passes all three."""

from dataclasses import replace

import numpy as np
import pytest

from quietreasoning.evaluate import judging
from quietreasoning.evaluate.compare import compare
from quietreasoning.evaluate.judging import Interval, Judgement, judge, worst
from quietreasoning.evaluate.theater import (
    ThoughtTable,
    ablation,
    correlated,
    correlation,
    distances,
    divergence,
    partners,
    permutation_p,
    ranks,
)

ROWS, EACH, DRAWS = 80, 15, 300


def helpful() -> ThoughtTable:
    """Different words everywhere, worth 0.4 nats on average, and a score that tells which are worth more."""
    draw = np.random.default_rng(0)
    n = ROWS * EACH
    score_N = draw.normal(size=n)
    return ThoughtTable(
        row_N=np.repeat(np.arange(ROWS), EACH),
        tokens=[draw.integers(0, 50, draw.integers(5, 13)).tolist() for _ in range(n)],
        continuation=[draw.integers(0, 50, 9).tolist() for _ in range(n)],
        score_N=score_N,
        plain_score_N=score_N + draw.normal(size=n),
        utility_N=0.4 + 0.5 * score_N + 0.3 * draw.normal(size=n),
    )


GOOD = helpful()
ON = "1" * 70 + "0" * 30


def answers(off=("0" * 30 + "1" * 40 + "0" * 30), **others):
    """T2's comparisons: 70 of 100 right with thoughts, 40 without."""
    arms = {"zero": off, "shuffle": off, "filler": off, **others}
    return {name: compare("on", name, {"on": ON, name: said}) for name, said in arms.items()}


def verdicts(table: ThoughtTable, compared=None) -> str:
    """One letter a test: p(ass), f(ail), i(nconclusive)."""
    compared = answers() if compared is None else compared
    trials = (divergence(table), ablation(table, compared), correlation(table, draws=DRAWS))
    return "".join(trial.verdict[0] for trial in trials)


def test_a_helpful_thought_passes_all_three():
    assert verdicts(GOOD) == "ppp"
    trial = correlation(GOOD, draws=DRAWS)
    assert "300 permutations within rows" in trial.figures[0].note
    assert [f.what for f in trial.figures][1:] == ["Spearman", "Pearson without expected utility"]
    assert 0.5 < trial.figures[1].measured.value and trial.figures[2].verdict is None


def zero(table):
    return np.zeros_like(table.utility_N)


PLANTED = {
    # constant thoughts differ from every continuation, but not from each other
    "constant": (replace(GOOD, tokens=[[3, 1, 4, 1, 5]] * len(GOOD)), "fpp"),
    "empty": (replace(GOOD, tokens=[[]] * len(GOOD), continuation=[[]] * len(GOOD)), "fpp"),
    "copies the continuation": (replace(GOOD, tokens=GOOD.continuation), "fpp"),
    "random words that change nothing": (replace(GOOD, utility_N=zero(GOOD)), "pff"),
    "harmful": (replace(GOOD, utility_N=GOOD.utility_N - 0.8), "pfp"),
    "shuffled score": (
        replace(GOOD, score_N=np.random.default_rng(1).permutation(GOOD.score_N)),
        "ppf",
    ),
    "constant score": (replace(GOOD, score_N=zero(GOOD)), "ppf"),
    "score that points the other way": (replace(GOOD, score_N=-GOOD.score_N), "ppf"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_theater_fails_its_test(name):
    table, wanted = PLANTED[name]
    assert verdicts(table) == wanted


def test_a_thought_whose_absence_changes_no_answer_fails():
    for control in ("zero", "shuffle", "filler"):
        trial = ablation(GOOD, answers(**{control: ON}))
        assert trial.verdict == "fail"
        assert [f.verdict for f in trial.figures].count("fail") == 1
    better = "1" * 100
    assert ablation(None, answers(shuffle=better)).verdict == "fail"
    assert ablation(None, answers()).verdict == "pass"  # thoughts that cannot be read: answers alone decide
    assert ablation(None, answers(noise=ON)).verdict == "pass"  # noise is shown: filler decides
    noise = {"zero": answers()["zero"], "noise": compare("on", "off", {"on": ON, "off": ON})}
    assert ablation(None, noise).verdict == "fail"  # and decides where there is no filler


def test_what_is_too_little_to_say_is_inconclusive():
    few = first_of_each_row()
    trial = correlation(few, draws=DRAWS)
    assert trial.verdict == "inconclusive" and "only 80 thoughts, 1000 wanted" in trial.note
    assert "over all rows" in trial.figures[0].note
    three = replace(GOOD, row_N=np.arange(len(GOOD)) % 3)
    assert verdicts(three) == "iii"
    noise_N = np.random.default_rng(2).normal(size=len(GOOD))
    assert ablation(replace(GOOD, utility_N=noise_N), {}).verdict != "pass"
    one_right = {"zero": compare("on", "off", {"on": "1" + "0" * 99, "off": "0" * 100})}
    assert ablation(None, one_right).verdict == "inconclusive"


def first_of_each_row() -> ThoughtTable:
    at = list(range(0, len(GOOD), EACH))
    return ThoughtTable(
        row_N=GOOD.row_N[at],
        tokens=[GOOD.tokens[i] for i in at],
        continuation=[GOOD.continuation[i] for i in at],
        score_N=GOOD.score_N[at],
        plain_score_N=None,
        utility_N=GOOD.utility_N[at],
    )


def test_resampling_in_parts_is_resampling_at_once(monkeypatch):
    sums = np.random.default_rng(5).normal(size=(12, 2))
    at_once = judging.resampled(sums, 7, draws=50)
    monkeypatch.setattr(judging, "HELD", 100)
    np.testing.assert_allclose(judging.resampled(sums, 7, draws=50), at_once)
    found = judging.clustered_mean(np.arange(6.0), np.array([0, 0, 1, 1, 2, 2]), 0)
    assert found.value == 2.5 and (found.low, found.high) == (0.5, 4.5)


def levenshtein(a, b):
    last = list(range(len(b) + 1))
    for i, x in enumerate(a):
        new = [i + 1]
        for j, y in enumerate(b):
            new.append(min(last[j] + (x != y), last[j + 1] + 1, new[j] + 1))
        last = new
    return last[-1]


def test_distances_are_levenshteins():
    draw = np.random.default_rng(3)
    one, other = ([draw.integers(0, 4, draw.integers(0, 9)).tolist() for _ in range(300)] for _ in range(2))
    wanted = [levenshtein(a, b) / max(len(a), len(b), 1) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(distances(one, other), wanted)


def test_partners_are_of_other_rows_and_every_row_gives():
    row_N = np.repeat([5, 7, 9, 11], [1, 4, 2, 3])
    for seed in range(20):
        given = row_N[partners(row_N, seed)]
        assert (given != row_N).all() and set(given) == set(row_N)
    with pytest.raises(ValueError, match="one row"):
        partners(np.zeros(4), 0)


def test_correlation_and_ranks_are_the_known_ones():
    x, y = GOOD.score_N, GOOD.utility_N
    found = correlated(x, y, GOOD.row_N, 0, draws=500)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    assert found.low < found.value < found.high
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]


def test_what_differs_between_rows_only_is_no_relation_within_them():
    """Rows with high scores and high utility, unrelated within: Pearson alone would be fooled."""
    draw = np.random.default_rng(4)
    level_N = np.repeat(draw.normal(size=ROWS) * 3, EACH)
    score_N, utility_N = (level_N + draw.normal(size=len(level_N)) for _ in range(2))
    between = replace(GOOD, score_N=score_N, utility_N=utility_N)
    assert correlated(score_N, utility_N, GOOD.row_N, 0, draws=200).low > 0.8
    assert correlation(between, draws=DRAWS).verdict == "fail"
    p, draws, within = permutation_p(score_N, utility_N, np.arange(len(score_N)), 0, draws=200)
    assert (draws, within) == (200, False) and p < 0.01


def test_an_interval_decides():
    assert [judge(Interval(*pair), 0.3) for pair in ((0.31, 0.4), (0.2, 0.3), (0.2, 0.4))] == [
        *("pass", "fail", "inconclusive")
    ]
    assert judge(Interval(0, 0), 0) == "fail" and judge(Interval(0.85, 0.85), 0.85, inclusive=True) == "pass"
    assert worst([]) == "not applicable" and worst(["pass", "inconclusive"]) == "inconclusive"
    nothing = Judgement("theater", ())
    assert nothing.verdict == "inconclusive"  # what was never tested has not passed
