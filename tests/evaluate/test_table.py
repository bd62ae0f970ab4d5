"""One table: pooled, with costs, nothing cut off."""

import re

from quietreasoning.evaluate.statistics import wilson
from quietreasoning.evaluate.table import text


def make_row(method, kind, seed, correct, passes, control=None, effort=None):
    low, high = wilson(correct, 200)
    return {
        "task": "pointer", "split": "valid", "method": method, "kind": kind, "control": control,
        "effort": effort, "seed": seed, "n": 200, "correct": correct, "accuracy": correct / 200, "low": low,
        "high": high, "unanswered": 0, "visible_tokens": 16.0 if kind == "chain" else 0.0, "passes": passes,
        "latent_steps": 0.0, "ms": None if control else 31.25, "ms_batched": 0.5, "batch": 64, "by_steps": {},
    }  # fmt: skip


def test_one_seed():
    rows = [
        make_row("plain", "direct", 0, 100, 0.0),
        make_row("cot", "chain", 0, 200, 18.0),
        make_row("slots", "quiet", 0, 198, 4.0),
        make_row("slots", "control", 0, 90, 4.0, control="zero"),
        make_row("slots", "quiet", 0, 150, 2.0, effort=2),
    ]
    shown = text(rows, "pointer", width=80)
    assert "50.0 [43.1, 56.9]" in shown
    assert "4.5x" in shown
    assert "9.0x" in shown
    assert "  + zero" in shown
    assert "  @ 2" in shown
    assert "31.2" in shown
    assert "n = 200 (valid). Interval: Wilson." in shown
    assert re.search(r"ms at +ms at *\n.* 1 +64 *\n", shown)
    assert "…" not in shown


def test_seeds_are_pooled_and_said_so():
    rows = [make_row("slots", "quiet", seed, 190 + seed, 4.0) for seed in range(3)]
    shown = text(rows, width=80)
    assert shown.count("slots") == 1
    assert "95.5 [" in shown
    assert "200 x 3" in shown
    assert "Student's t over seeds" in " ".join(shown.split())


def test_sizes_that_differ_get_a_column():
    rows = [make_row("slots", "quiet", seed, 190, 4.0) for seed in range(3)]
    shown = text([*rows, make_row("shortcut: majority", "shortcut", 0, 200, None)], width=80)
    assert "rule: majority" in shown
    assert "200 x 3" in shown
    assert "…" not in shown


def test_empty():
    assert "No rows." in text([])


def test_no_saving_against_one_chain_of_several():
    rows = [
        make_row("cot (a)", "chain", 0, 200, 18.0),
        make_row("cot (b)", "chain", 0, 200, 36.0),
        make_row("slots", "quiet", 0, 198, 4.0),
    ]
    assert not re.search(r"\d+\.\dx", text(rows, "gsm8k"))
