"""Perplexity of running text: against a naive sum, whatever the batches; intervals, refusals, stopping."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.tokenizers import train_words
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm, arms_of
from quietreasoning.evaluate.harness import Stopped
from quietreasoning.evaluate.rows import load, pool, save
from quietreasoning.evaluate.statistics import Interval, ratio_bootstrap, seed_interval
from quietreasoning.evaluate.table import text
from quietreasoning.evaluate.text import evaluate_text

_spec = importlib.util.spec_from_file_location("toy_method", Path(__file__).with_name("toy_method.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

ENCODER = Encoder(train_words(["a ####"]))


def windows(n, seed=0, longest=20):
    generator = np.random.Generator(np.random.Philox(seed))
    lengths = generator.integers(2, longest + 1, n)
    return [
        Example(f"w{i}", "", (), (), "", ids=generator.integers(0, toy.VOCAB, length))
        for i, length in enumerate(lengths)
    ]


def ask(arms, rows, *, seed=0, stop=lambda: False, progress=None, **settings):
    config = EvalConfig(**{"batch_size": 8, **settings})
    more = {} if progress is None else {"progress": progress}
    return evaluate_text(
        arms, rows, task="prose", batch=ENCODER.batch, config=config, seed=seed, stop=stop, **more
    )


def naive(method, rows):
    """(nll, hits, tokens), one token at a time in plain numbers."""
    table = method.table_VV.detach().double()
    nll, hits, count = 0.0, 0, 0
    for row in rows:
        for last, following in zip(row.ids[:-1], row.ids[1:], strict=True):
            shares = torch.softmax(table[int(last)], 0)
            nll -= math.log(shares[int(following)])
            hits += int(shares.argmax()) == int(following)
            count += 1
    return nll, hits, count


@pytest.mark.parametrize(
    ("number", "batch_size", "longest"), [(1, 8, 9), (37, 8, 20), (450, 64, 6), (450, 2, 6)]
)
def test_perplexity_is_the_naive_one(number, batch_size, longest):
    method, rows = toy.Reader(), windows(number, longest=longest)
    method.train()
    row = ask([Arm(method, "reader")], rows, batch_size=batch_size).row("reader")
    nll, hits, count = naive(method, rows)
    assert row["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert row["nll"] == pytest.approx(nll / count, rel=1e-5)
    assert (row["correct"], row["tokens"], row["n"]) == (hits, count, number)
    assert row["accuracy"] == hits / count
    assert row["perplexity_low"] <= row["perplexity"] <= row["perplexity_high"]
    assert row["low"] <= row["accuracy"] <= row["high"]
    assert method.training and method.backbone.dropout.training and method.table_VV.grad is None
    # runs short enough that there are 100 of them, where there are as many windows
    assert max(method.rows) == min(batch_size, -(-number // 100)) and sum(method.rows) == number


def test_a_text_it_knows_is_predicted_and_a_wrong_one_is_not():
    method = toy.Reader()
    with torch.no_grad():  # 0 1 2 ... is certain
        method.table_VV.copy_(20 * torch.eye(toy.VOCAB).roll(1, 1))
    count_up = [
        Example(f"w{i}", "", (), (), "", ids=[(i + k) % toy.VOCAB for k in range(9)]) for i in range(5)
    ]
    row = ask([Arm(method, "reader")], count_up).row("reader")
    assert row["perplexity"] == pytest.approx(1, abs=1e-4) and row["accuracy"] == 1
    constant = [Example("w", "", (), (), "", ids=[3] * 9)]
    assert ask([Arm(method, "reader")], constant).row("reader")["perplexity"] == pytest.approx(
        math.exp(20), rel=1e-3
    )


def test_several_arms_controls_left_out_and_kept_on_disk(tmp_path):
    arms = [*arms_of(toy.Reader(0), "a", ("zero", "shuffle"), (2,)), Arm(toy.Reader(1), "b")]
    told = []
    report = ask(arms, windows(12), seed=3, split="test", progress=lambda *args: told.append(args))
    assert [(row["method"], row["control"], row["effort"]) for row in report.rows] == [
        ("a", None, None),
        ("b", None, None),
    ]
    assert {row["split"] for row in report.rows} == {"test"} and report.seed == 3 and report.complete
    assert report.rows[0]["perplexity"] != report.rows[1]["perplexity"]
    assert told[0] == ("a", 1, 12) and told[-1] == ("b", 12, 12)
    save(tmp_path / "rows.json", [report])
    assert load(tmp_path / "rows.json") == [report]


def test_stopping_keeps_finished_arms():
    asked = iter([False] * 13 + [True])
    with pytest.raises(Stopped) as caught:
        ask([Arm(toy.Reader(), "a"), Arm(toy.Reader(), "b")], windows(12), stop=lambda: next(asked))
    report = caught.value.report
    assert [row["method"] for row in report.rows] == ["a"] and not report.complete


def test_what_does_not_read_text_is_refused():
    with pytest.raises(UserError, match="prose is running text, which adder does not read"):
        ask([Arm(toy.Adder(), "adder")], windows(3))
    with pytest.raises(UserError, match="1 arms and 0 windows"):
        ask([Arm(toy.Reader(), "reader")], [])


def test_seeds_are_pooled_and_shown():
    reports = [ask([Arm(toy.Reader(s), "reader")], windows(150), seed=s) for s in range(3)]
    rows = [report.rows[0] for report in reports]
    (pooled,) = pool(rows)
    assert pooled["perplexity"] == pytest.approx(math.exp(sum(row["nll"] for row in rows) / 3))
    assert pooled["perplexity_low"] < min(row["perplexity"] for row in rows)
    assert pooled["perplexity_high"] > max(row["perplexity"] for row in rows)
    assert (pooled["n"], pooled["seeds"]) == (150, [0, 1, 2])
    (alone,) = pool(rows[:1])
    for name in ("perplexity", "perplexity_low", "perplexity_high", "low", "high"):
        assert alone[name] == pytest.approx(rows[0][name])
    shown = " ".join(text(rows[:1], "prose", width=80).split())
    assert f"{rows[0]['perplexity']:.2f} [{rows[0]['perplexity_low']:.2f}, " in shown
    assert "n = 150 windows (valid). Interval: bootstrap over windows." in shown
    assert "chain" not in shown and "…" not in shown
    shown = " ".join(text(rows, width=80).split())
    assert "Student's t over seeds" in shown and "150 x 3" in shown


def test_bootstrap_interval_covers_as_often_as_it_says():
    """Ratios of dependent sums: the true mean lies inside nearly as often as 95 %, and is not always."""
    generator = np.random.Generator(np.random.Philox(5))
    inside = 0
    for trial in range(200):
        counts = generator.integers(5, 15, 60)
        totals = generator.gamma(2.0, 1.0, 60) * counts  # a mean of 2 a token
        low, high = ratio_bootstrap(totals, counts, draws=400, seed=trial)
        inside += low <= 2 <= high
    assert 175 <= inside <= 199
    assert ratio_bootstrap(np.array([6.0]), np.array([3])) == (2, 2)
    assert ratio_bootstrap(totals, counts, seed=1) == ratio_bootstrap(totals, counts, seed=1)
    with pytest.raises(ValueError, match="equally many, got 60 and 1"):
        ratio_bootstrap(totals, np.array([1]))


def test_seed_interval():
    assert seed_interval([2.0], [Interval(1.0, 4.0)]) == (1, 4)
    low, high = seed_interval([1.0, 2.0, 3.0], [Interval(x - 0.1, x + 0.1) for x in (1, 2, 3)])
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    assert seed_interval([2.0, 2.0], [Interval(1.5, 3.0)] * 2) == (1.5, 3)
