"""Rows on disk and pooled over seeds."""

import pytest

from quietreasoning.config import UserError
from quietreasoning.evaluate.rows import Report, load, pool, save
from quietreasoning.evaluate.statistics import mean_interval, wilson


def make_row(seed=0, correct=90, n=100, method="slots", **more):
    low, high = wilson(correct, n)
    row = {
        "task": "pointer", "split": "valid", "method": method, "kind": "quiet", "control": None,
        "effort": None, "seed": seed, "n": n, "correct": correct, "accuracy": correct / n, "low": low,
        "high": high, "unanswered": 0, "visible_tokens": 0.0, "passes": 4.0, "latent_steps": 16.0,
        "ms": 2.0 + seed, "ms_batched": None, "batch": 64,
        "by_steps": {"2": [correct // 2, 50], "10": [40, 50]},
    }  # fmt: skip
    return {**row, **more}


def test_pool_over_seeds():
    rows = [make_row(0, 90), make_row(1, 94), make_row(2, 98), make_row(0, 50, method="plain")]
    pooled = pool(rows)
    assert [row["method"] for row in pooled] == ["slots", "plain"]
    assert pooled[0]["accuracy"] == pytest.approx(0.94)
    assert pooled[0]["seeds"] == [0, 1, 2]
    assert (pooled[0]["low"], pooled[0]["high"]) == mean_interval([0.9, 0.94, 0.98], 100)
    assert pooled[0]["ms"] == 3
    assert pooled[0]["ms_batched"] is None
    assert pooled[0]["by_steps"] == {"2": [141, 150], "10": [120, 150]}
    assert list(pooled[0]["by_steps"]) == ["2", "10"]
    assert (pooled[1]["low"], pooled[1]["high"]) == pytest.approx(wilson(50, 100))


def test_pool_takes_the_later_of_two_equal_rows_and_keeps_arms_apart():
    rows = [make_row(0, 10), make_row(0, 20), make_row(0, 30, control="zero"), make_row(0, 40, effort=2)]
    assert [row["correct"] for row in pool(rows)] == [20, 30, 40]
    assert len(pool([make_row(), make_row(split="test"), make_row(task="other")])) == 3


def test_save_replaces_and_adds(tmp_path):
    path = tmp_path / "eval" / "rows.json"
    first = Report("pointer", "valid", 0, (make_row(),))
    save(path, [first])
    other = Report("gsm8k", "valid", 0, ())
    again = Report("pointer", "valid", 0, (make_row(correct=80),), samples=({"prompt": "é <b>"},))
    save(path, [other])
    save(path, [again])
    assert load(path) == [again, other]
    assert [file.name for file in path.parent.iterdir()] == ["rows.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no evaluation"),
        ('{"reports": []}', "is no evaluation"),
        ('{"format": 99, "reports": []}', "format 99"),
        ('{"format": 1, "reports": [{"task": 1}]}', "is no evaluation"),
        ("[]", "is no evaluation"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_row_names_those_there_are():
    with pytest.raises(KeyError, match="no row for cot"):
        Report("t", "valid", 0, (make_row(),)).row("cot")


def test_groups_are_pooled_by_their_sizes_and_may_be_absent():
    rows = [
        make_row(0, groups={"a": [0.5, 10], "b": [1.0, 2]}),
        make_row(1, groups={"a": [1.0, 30]}),
        make_row(2),
    ]
    assert pool(rows)[0]["groups"] == {"a": [0.875, 40], "b": [1.0, 2]}
