"""Leakage, groups and caches on the page: each figure in its place, and nothing where nothing is known."""

import html
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.leakage import Leaked, leakage
from quietreasoning.evaluate.rows import pool
from quietreasoning.report.build import report
from quietreasoning.report.caches import caches_table
from quietreasoning.report.groups import groups_part, groups_table
from quietreasoning.report.leaks import ENOUGH, leakage_table

_spec = importlib.util.spec_from_file_location("made_runs", Path(__file__).with_name("made_runs.py"))
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

EVIL = "a <b> & 'c'"
CLEAN, LOUD = Leaked(4, 0, 0, 0), Leaked(4, 1, 2, 3)
CACHES = {EVIL: {"keep_frac": 0.5, "bits": 4, "fallback_error": None}}


def lines(table):
    """Rows of a table as text, cell by cell."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub("<[^>]+>", "", cell)) for cell in row] for row in cells]


def evaluated(seed=0, found=None, groups=None, caches=False):
    """plain and slots with a control; slots through a cache too, both measured."""
    base = made.make_report(seed, items=40, methods=("plain", "slots"), efforts=())
    rows, outcomes = [], dict(base.outcomes)
    for row in base.rows:
        row = {**row, "leakage": leakage(found or [CLEAN]), "groups": {}}
        if row["method"] == "slots" and row["control"] is None:
            row |= groups or {}
            if caches:
                kv = {"bytes": 8e3, "compression": 1.0, "fallback_rate": None, "tokens_s": 40.0}
                row["kv"] = {**kv, "peak_bytes": 3e6}
                small = {"bytes": 2e3, "compression": 4.0, "fallback_rate": 0.25, "tokens_s": 80.0}
                name = f"slots ({EVIL})"
                cached = {**row, "method": name, "cache": EVIL, "kv": {**small, "peak_bytes": None}}
                rows.append(cached)
                outcomes[name] = outcomes["slots"]
        rows.append(row)
    settings = EvalConfig(kv_caches=CACHES).model_dump(mode="json") if caches else {}
    return replace(base, rows=tuple(rows), outcomes=outcomes, settings=settings)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([CLEAN] * (ENOUGH - 1), "open"),
        ([CLEAN] * ENOUGH, "yes"),
        ([*[CLEAN] * ENOUGH, LOUD], "open"),
        ([*[CLEAN] * 20, *[LOUD] * 20], "no"),
    ],
)
def test_the_bound_is_kept_broken_or_open(found, said):
    _, plain, slots = lines(leakage_table(pool(evaluated(found=found).rows)))
    assert plain[1:] == slots[1:]  # neither the control nor the rule has a line
    assert (plain[0], plain[-1]) == ("plain", said)
    one = leakage(found)
    shares = [f"{100 * one[name]:.2f}" for name in ("share", "low", "high", "lexicon", "steps")]
    assert plain[1:4] == [f"{shares[0]} [{shares[1]}, {shares[2]}]", *shares[3:]]
    assert plain[4] == f"{4 * len(found):,}"
    assert plain[5] == str(sum(each.either > 0 for each in found))


def test_groups_pool_seeds_by_their_items_and_grades_go_first():
    by_seed = [{"groups": {EVIL: [0.5, 10], "z": [1.0, 30]}}, {"groups": {EVIL: [0.9, 30], "z": [0.0, 30]}}]
    pooled = pool(row for seed, each in enumerate(by_seed) for row in evaluated(seed, groups=each).rows)
    slots = [row for row in pooled if row["method"] == "slots" and row["control"] is None]
    heading, picture, _ = groups_part(pooled)
    assert heading == "<h3>Accuracy by group</h3>"
    assert f"slots 80.0 % of {html.escape(EVIL)}, 50.0 % of z" in picture
    found = lines(groups_table(slots))
    assert [(row[0], row[1], row[2].split()[0]) for row in found[1:]] == [
        (EVIL, "40", "80.0"),
        ("z", "60", "50.0"),
    ]
    graded = by_seed[0] | {
        "group_figures": {"x": [0.25, 20], "y": [0.75, 20]},
        "figures": {"recall": 0.5},
        "figure_rows": {"recall": 40},
    }
    heading, picture, _ = groups_part(pool(evaluated(groups=graded).rows))
    assert heading == "<h3>Recall by group</h3>"
    assert "25.0 % of x, 75.0 % of y" in picture


def test_groups_that_only_repeat_the_steps_are_left_out():
    base = evaluated()
    rows = [
        {**row, "groups": {f"{k} hops": [c / n, n] for k, (c, n) in row["by_steps"].items()}}
        for row in base.rows
    ]
    assert groups_part(pool(rows)) == []
    rows[0]["groups"]["1 hops"][0] /= 2
    assert len(groups_part(pool(rows))) == 3


def test_caches_tell_what_they_are_hold_and_take():
    found = evaluated(caches=True, groups={"figures": {"recall": 0.5}, "figure_rows": {"recall": 40}})
    head, cached, own = lines(caches_table([found], pool(found.rows)))
    assert head[3:] == [
        "recall % [95 %]",
        "kB a prompt",
        "times fewer",
        "fell back %",
        "ms a token",
        "peak MB",
    ]
    assert cached[:2] == [f"slots ({EVIL})", "keep_frac 0.5, bits 4, fallback_error null"]
    assert cached[4:] == ["2.0", "4.00", "25.0", "12.50", "-"]
    assert own[:2] == ["slots", "the model's own"]
    assert own[4:] == ["8.0", "1.00", "-", "25.00", "3.0"]
    assert cached[3] == own[3] == "50.0 [35.2, 64.8]"


def test_the_page_holds_what_was_measured_and_no_more(tmp_path):
    full = evaluated(found=[LOUD] * 9, groups={"groups": {"x": [0.5, 20], EVIL: [1.0, 20]}}, caches=True)
    titles = ("Accuracy by group", "Key/value caches", "Leakage")
    bare = made.make_run(tmp_path / "bare", report=made.make_report(items=40, methods=("plain",)), steps=5)
    beside = [bare, made.make_run(tmp_path / "full", report=full, steps=5)]  # the first asked no cache
    pages = [report(runs, tmp_path / "page.html").read_text("utf-8") for runs in (beside, [bare])]
    assert [title for title in titles if f"<h3>{title}</h3>" in pages[0]] == list(titles)
    assert not any(title in pages[1] for title in (*titles, "leak"))
    assert "slots leaks its working: 75.00 [" in pages[0]
    assert EVIL not in pages[0]
    assert "keep_frac 0.5, bits 4, fallback_error null" in html.unescape(pages[0])
    # a cached arm has no controls of its own to miss, and stands under its method
    assert f"{html.escape(f'slots ({EVIL})')}: no zeroed" not in pages[0]
    assert f'<tr class="faint"><td>{html.escape(f"({EVIL})")}</td>' in pages[0]
