"""The door: batch invariance, odd batches, costs, verdicts, stopping, refusals."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.evaluate.asking import cut
from quietreasoning.evaluate.calibration import trust
from quietreasoning.evaluate.compare import verdicts
from quietreasoning.evaluate.config import EvalConfig
from quietreasoning.evaluate.controls import Arm, arms_of
from quietreasoning.evaluate.harness import Stopped, evaluate
from quietreasoning.evaluate.rows import load, pool, save
from quietreasoning.evaluate.table import trust_lines

_spec = importlib.util.spec_from_file_location("toy_method", Path(__file__).with_name("toy_method.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

ALL = ("zero", "shuffle", "filler")


def ask(arms, n=37, *, data=None, seed=0, shortcuts=None, stop=lambda: False, progress=None, **settings):
    config = EvalConfig(**{"batch_size": 8, "timing": 2, "max_new_tokens": 4, **settings})
    more = {} if progress is None else {"progress": progress}
    return evaluate(
        arms,
        toy.examples(n) if data is None else data,
        task="sums",
        scorer="exact",
        encode_prompt=toy.encode_prompt,
        decode=toy.decode,
        config=config,
        seed=seed,
        shortcuts=shortcuts,
        stop=stop,
        **more,
    )


def test_rows_are_complete():
    report = ask(arms_of(toy.Adder(), "adder", ALL, efforts=(1,)), seed=7)
    row = report.row("adder")
    assert row["task"] == "sums"
    assert (row["correct"], row["n"], row["accuracy"], row["seed"]) == (37, 37, 1.0, 7)
    assert row["low"] == pytest.approx(37 / (37 + 1.959964**2), rel=1e-6)
    assert (row["visible_tokens"], row["passes"], row["latent_steps"]) == (0, 2, 2)
    assert row["ms"] > 0
    assert row["ms_batched"] > 0
    assert row["batch"] == 8
    assert row["kind"] == "quiet"
    assert sum(n for _, n in row["by_steps"].values()) == 37
    assert list(row["by_steps"]) == sorted(row["by_steps"], key=int)
    assert [r["control"] for r in report.rows] == [None, *ALL, None]
    assert report.row("adder", "zero")["ms"] is None
    # one token read: right where there is one token
    by_steps = report.row("adder", effort=1)["by_steps"]
    assert by_steps["1"][0] == by_steps["1"][1]
    assert report.row("adder", effort=1)["accuracy"] < 1
    assert report.settings["decoding"] == "greedy"
    assert len(report.samples) == 3
    assert report.samples[0]["written"] == f"#### {report.samples[0]['gold']}"
    json.dumps(report.rows)


@pytest.mark.parametrize("size", [1, 3, 36, 100])
def test_batch_size_changes_no_answer(size):
    """An imperfect method, so that an order mixed up on the way back would show."""
    want = ask([Arm(toy.Adder(), "adder", effort=2)])
    got = ask([Arm(toy.Adder(), "adder", effort=2)], batch_size=size)
    assert got.outcomes == want.outcomes
    assert got.items == want.items
    assert "0" in got.outcomes["adder @ 2"]
    assert "1" in got.outcomes["adder @ 2"]


@pytest.mark.parametrize(("n", "size"), [(9, 4), (5, 1), (2, 1), (17, 8), (3, 2), (9, 8)])
def test_shuffle_never_meets_a_row_alone(n, size):
    """The toy asserts company; every thought comes from another row, so a perfect sum is luck."""
    report = ask([Arm(toy.Adder(), "adder", "shuffle")], n=n, batch_size=size)
    assert len(report.outcomes["adder + shuffle"]) == n


def test_shuffle_alone_is_refused():
    with pytest.raises(UserError, match="'shuffle' needs at least 2 prompts, got 1"):
        ask([Arm(toy.Adder(), "adder", "shuffle")], n=1)


def test_cut_covers_all_once():
    prompts = [np.zeros(length) for length in (3, 1, 2, 5, 5, 4, 1)]
    for size in range(1, 9):
        for keep in (False, True):
            batches = cut(prompts, size, keep)
            assert sorted(i for batch in batches for i in batch) == list(range(7))
            if keep:
                assert [i for batch in batches for i in batch] == list(range(7))
                assert min(map(len, batches)) > 1
            else:
                lengths = [len(prompts[i]) for batch in batches for i in batch]
                assert lengths == sorted(lengths, reverse=True)


def test_verdict_both_ways():
    carries = ask(arms_of(toy.Adder(), "adder", ALL))
    assert [v["inert"] for v in carries.verdicts] == [False]
    assert "carries the answer" in carries.verdicts[0]["text"]
    assert carries.inert == ()
    inert = ask(arms_of(toy.Adder(uses_thought=False), "adder", ALL))
    assert inert.inert == ("adder",)
    assert "no verdict of 37 changed" in inert.verdicts[0]["text"]
    assert "comes from training" in inert.verdicts[0]["text"]


def test_one_free_control_is_enough_for_inert():
    """All thoughts equal: zeroing hurts, another row's thought does not."""
    data = [e for e in toy.examples(400) if e.answer == "7"]
    report = ask(arms_of(toy.Adder(), "adder", ("zero", "shuffle")), data=data)
    assert report.row("adder", "zero")["accuracy"] == 0
    assert report.row("adder", "shuffle")["accuracy"] == 1
    assert report.inert == ("adder",)


def test_comparisons_are_paired():
    quiet, direct = toy.Adder(), toy.Adder(kind="direct")
    arms = [Arm(direct, "direct"), *arms_of(quiet, "adder", ("zero",))]
    report = ask(arms)
    pairs = {(c["a"], c["b"]): c for c in report.comparisons}
    assert set(pairs) == {("direct", "adder"), ("adder", "adder + zero"), ("adder + zero", "direct")}
    assert [c["about"] for c in report.comparisons] == ["methods", "control", "control"]
    zeroed = pairs["adder", "adder + zero"]
    wrong = report.outcomes["adder + zero"].count("0")
    assert (zeroed["only_a"], zeroed["only_b"], zeroed["difference"]) == (wrong, 0, wrong / 37)
    assert zeroed["low"] <= zeroed["difference"] <= zeroed["high"]
    assert zeroed["p"] < 1e-6
    assert pairs["direct", "adder"]["p"] == 1


def test_prompts_without_an_answer_are_counted():
    method = toy.Adder()
    asked = toy.decode
    try:
        toy.decode = lambda ids: "" if ids in ([3], [7]) else asked(ids)
        report = ask([Arm(method, "adder")])
    finally:
        toy.decode = asked
    golds = [e.answer for e in toy.examples(37)]
    missing = golds.count("3") + golds.count("7")
    assert missing > 0
    assert report.row("adder")["unanswered"] == missing
    assert report.row("adder")["correct"] == 37 - missing


def test_a_chain_is_tested_too():
    report = ask(arms_of(toy.Adder(uses_thought=False, kind="chain"), "adder", ALL))
    assert report.row("adder")["kind"] == "chain"
    assert report.inert == ("adder",)


def test_kinds_come_from_behaviour():
    arms = [Arm(toy.Adder(kind=kind), kind) for kind in ("direct", "chain", "quiet")]
    assert [row["kind"] for row in ask(arms).rows] == ["direct", "chain", "quiet"]


def test_shortcuts_are_rows():
    def rules(example):
        words = example.prompt.split()
        return {"last digit": words[-1], **({"only digit": words[0]} if len(words) == 1 else {})}

    report = ask([Arm(toy.Adder(), "adder")], shortcuts=rules)
    last, only = report.row("shortcut: last digit"), report.row("shortcut: only digit")
    ones = last["by_steps"]["1"][1]
    assert only["correct"] == ones
    assert last["by_steps"]["1"] == [ones, ones]
    assert last["ms"] is None
    assert last["kind"] == "shortcut"


def test_modes_come_back():
    method = toy.Adder()
    method.train()
    method.backbone.dropout.eval()  # frozen parts stay as they were
    ask([Arm(method, "adder")])
    assert method.training
    assert not method.backbone.dropout.training
    method.train()
    with pytest.raises(UserError):
        ask([Arm(toy.Adder(takes_effort=False), "adder", effort=3)])
    assert method.training


def test_prompts_that_do_not_fit_are_refused():
    message = re.escape("2 of 10 prompts do not fit adder: the longest has 31 tokens")
    data = toy.examples(8) + [
        toy.Example(f"long-{i}", " ".join("1" * (30 + i)), (), (), "0") for i in range(2)
    ]
    with pytest.raises(UserError, match=message):
        ask([Arm(toy.Adder(), "adder")], data=data)


def test_effort_without_dial_is_refused():
    with pytest.raises(UserError, match=r"eval\.efforts: effort=3 does not apply"):
        ask([Arm(toy.Adder(takes_effort=False), "adder", effort=3)])


def test_nothing_to_do_is_refused():
    with pytest.raises(UserError, match="0 examples"):
        ask([Arm(toy.Adder(), "adder")], data=[])
    with pytest.raises(ValueError, match="different names"):
        ask([Arm(toy.Adder(), "adder"), Arm(toy.Adder(), "adder")])


def test_stop_keeps_finished_arms(tmp_path):
    seen = []
    arms = arms_of(toy.Adder(), "adder", ALL)
    with pytest.raises(Stopped) as stopped:
        ask(arms, stop=lambda: len(seen) > 12, progress=lambda *state: seen.append(state))
    report = stopped.value.report
    assert not report.complete
    assert [row["control"] for row in report.rows] == [None, "zero"]
    assert all(row["n"] == 37 for row in report.rows)
    assert seen[4] == ("adder", 37, 37)
    save(tmp_path / "rows.json", [report])
    assert load(tmp_path / "rows.json") == [report]


def test_timing_off_and_test_split():
    report = ask([Arm(toy.Adder(), "adder")], timing=0, split="test")
    assert report.rows[0]["ms"] is None
    assert report.split == report.rows[0]["split"] == "test"
    assert EvalConfig().split == "valid"


def test_one_prompt_alone_is_timed_alone():
    method = toy.Adder()
    ask([Arm(method, "adder")], timing=4, batch_size=16)
    assert [len(batch) for batch in method.batches] == [1] * 6 + [16, 16, 5]


def test_verdict_is_open_where_too_few_answers_are_right():
    """With 3 right answers even losing all of them proves nothing: the thought is not called inert."""
    row = {"method": "quiet", "kind": "quiet", "control": None, "effort": None, "n": 37, "correct": 3}
    outcomes = {"quiet": "111" + "0" * 34, "quiet + zero": "0" * 37}
    (few,) = verdicts([row], outcomes)
    assert few["open"] and not few["inert"] and "with 3 of 37 right" in few["text"]
    outcomes = {"quiet": "1" * 6 + "0" * 31, "quiet + zero": "0" * 37}
    (enough,) = verdicts([row | {"correct": 6}], outcomes)
    assert not enough["open"] and not enough["inert"] and "carries the answer" in enough["text"]


def test_accuracy_by_group():
    """Groups count beside the whole, in the order of their numbers; None is in no group."""
    data = toy.examples(60)
    config = EvalConfig(batch_size=8, timing=0, max_new_tokens=4)

    def group(example):
        length = example.meta["num_steps"]
        return None if length == 8 else f"size {length}" if length < 3 else "size 10"

    arms = [Arm(toy.Adder(), "adder", effort=1)]
    rows = evaluate(
        arms, data, task="sums", scorer="exact", encode_prompt=toy.encode_prompt, decode=toy.decode,
        config=config, group=group, shortcuts=lambda example: {"gold": example.answer},
    ).rows  # fmt: skip
    found = rows[0]["groups"]
    assert list(found) == ["size 1", "size 2", "size 10"]
    assert found["size 1"] == [1.0, rows[0]["by_steps"]["1"][1]]
    assert sum(n for _, n in found.values()) == 60 - rows[0]["by_steps"]["8"][1]
    rest = [rows[0]["by_steps"][str(steps)] for steps in range(3, 8)]
    assert found["size 10"] == [sum(c for c, _ in rest) / sum(n for _, n in rest), sum(n for _, n in rest)]
    assert all(accuracy == 1 for accuracy, _ in rows[1]["groups"].values())
    assert ask(arms).rows[0]["groups"] == {}


class Boaster(toy.Adder):
    """As sure as its first token is large."""

    def generate(self, prompt_BP, **options):
        said = super().generate(prompt_BP, **options)
        return replace(said, confidence=[answer[0] / 100 for answer in said.answers])


def test_confidences_stand_beside_what_they_are_about():
    """In the order of the examples, whatever order the batches were in."""
    reports = [ask([Arm(Boaster(), "boaster"), Arm(toy.Adder(), "adder")], seed=seed) for seed in (0, 1)]
    row = reports[0].row("boaster")
    prompts = [np.asarray(toy.encode_prompt(example))[None] for example in toy.examples(37)]
    quiet = Boaster().eval()
    with torch.inference_mode():
        said = [quiet.generate(torch.tensor(prompt), max_new_tokens=4) for prompt in prompts]
    alone = [one.confidence[0] for one in said]
    assert row["trust"] == trust(alone, [mark == "1" for mark in reports[0].outcomes["boaster"]])
    assert "trust" not in reports[0].row("adder")
    rows = [row for report in reports for row in report.rows]
    assert pool(rows)[0]["trust"] == pytest.approx(row["trust"])
    (line,) = trust_lines(rows)
    assert line.startswith(f"boaster, how sure it is: ECE {row['trust']['ece']:.3f}")
