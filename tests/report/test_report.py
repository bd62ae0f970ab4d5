"""The page: complete, self-contained, honest about what is missing, safe with what models write."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from quietreasoning.config import UserError
from quietreasoning.evaluate.rows import save
from quietreasoning.report.build import report
from quietreasoning.report.curves import MAX_POINTS, later_half, stage_starts, stages_of, thinned, unbroken
from quietreasoning.report.findings import comparisons, reading
from quietreasoning.report.runs import merge, read_run

_spec = importlib.util.spec_from_file_location("made_runs", Path(__file__).with_name("made_runs.py"))
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

VOID = {"meta", "img", "br", "hr", "line", "circle"}


class Checker(HTMLParser):
    """Tags close in order; what the page refers to is collected."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.alts = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[key] for key in ("src", "href") if key in attrs]
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        if tag == "img":
            self.alts.append(attrs["alt"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(path):
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return text, checker


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three runs of one recipe and their page."""
    root = tmp_path_factory.mktemp("runs")
    runs = [made.make_run(root / f"pointer-{s}", s, report=made.make_report(s)) for s in range(2)]
    return runs, *read(report(runs, root / "out" / "report.html"))


def test_page_stands_alone(seeds):
    _, text, checker = seeds
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    for link in checker.links:
        assert link.startswith(("data:image/svg+xml;base64,", "#"))
        if link.startswith("#"):
            assert link[1:] in checker.ids
    assert "url(" not in text.partition("</style>")[0]
    assert len(checker.alts) == 5
    assert all(len(alt) > 40 for alt in checker.alts)


def test_page_holds_every_part(seeds):
    runs, text, _ = seeds
    for title in (
        "What is shown", "What is not", "Results", "Accuracy against cost", "Accuracy by number of steps",
        "Depth turning into reasoning steps", "Controls", "Paired comparisons", "Samples", "Training", "Runs",
    ):  # fmt: skip
        assert f">{title}<" in text
    assert 'class="absent"' not in text
    assert "rule: 2-hop" in text
    assert "400 x 2" in text
    assert "Student&#x27;s t over seeds" in text
    assert "torch = 2.13.0" in text
    assert "backbone.scratch.width = 128" in text
    for run in runs:
        assert run.name in text
        assert f"quiet train slots/pointer seed={run.name[-1]}" in text


def test_page_says_what_is_shown(seeds):
    _, text, _ = seeds
    assert "slots: the thought carries the answer in all 2 seeds" in text
    assert "pause: the thought is inert in 2 of 2 seeds" in text
    assert "Validation split" in text
    assert "One training seed" not in text


def test_page_is_the_same_every_time(tmp_path):
    run = made.make_run(tmp_path / "run", report=made.make_report(methods=("plain", "slots")), steps=5)
    pages = [report([run], tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_what_models_write_cannot_break_the_page(tmp_path):
    evil = '</pre><script>alert("x")</script><img src=x onerror=y> $\\frac{'
    base = made.make_report(items=40, methods=("plain", "slots"), efforts=(1, 2))
    sample = {**base.samples[0], "prompt": evil, "written": evil * 200, "gold": evil, "id": evil, "arm": evil}
    rows = [{**row, "method": evil} if row["method"] == "slots" else row for row in base.rows]
    changed = made.Report(
        **{**vars(base), "samples": (sample,), "rows": tuple(rows), "task": evil, "device": evil}
    )
    run = made.make_run(tmp_path / "run", name=evil, report=changed, steps=20)
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 21, "stage": evil, f"loss/{evil}": 1.0}) + "\n")
    text, checker = read(report([run], tmp_path / "report.html"))
    assert "script" not in checker.tags
    assert "alert" in text
    assert "<script" not in text
    assert "x" not in checker.links
    assert "more characters" in text


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        ("config.yaml", "config.yaml is absent"),
        ("run.json", "run.json is absent"),
        ("log.jsonl", "No training log"),
        ("eval/rows.json", "No evaluation yet"),
    ],
)
def test_a_missing_piece_is_named_with_its_command(tmp_path, piece, said):
    run = made.make_run(tmp_path / "run", report=made.make_report(items=40, methods=("plain",)), steps=20)
    (run / piece).unlink()
    text, _ = read(report([run], tmp_path / "report.html"))
    assert said in text
    assert f"<code>quiet {'eval' if 'eval' in piece else 'train'} " in text


@pytest.mark.parametrize("piece", ["config.yaml", "run.json", "log.jsonl", "eval/rows.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\x01", "a: [", '{"step": "x"}'])
def test_a_broken_piece_stops_nothing(tmp_path, piece, content):
    run = made.make_run(tmp_path / "run", steps=5)
    (run / "eval").mkdir()
    (run / "eval" / "rows.json").write_text('{"format": 1, "reports": []}')
    (run / piece).write_text(content)
    text, _ = read(report([run], tmp_path / "report.html"))
    assert "Runs" in text


def test_broken_lines_are_counted(tmp_path):
    run = made.make_run(tmp_path / "run", steps=5)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "loss/x"\nnot json\n[3]\n\n{"step": 7, "loss/next_token": NaN}\n')
    found = read_run(run)
    assert len(found.log) == 6
    assert found.faults == ("log.jsonl: 3 broken lines left out",)
    text, _ = read(report([run], tmp_path / "report.html"))
    assert "3 broken lines" in text


def test_a_bare_evaluation_says_what_it_lacks(tmp_path):
    run = made.make_run(tmp_path / "run", steps=5)
    bare = made.make_report(items=40, methods=("slots",), efforts=())
    rows = [r for r in bare.rows if r["control"] is None and r["kind"] == "quiet"]
    rows = [{**r, "by_steps": {"2": [30, 40]}, "ms": None} for r in rows]
    alone = made.Report(**{**vars(bare), "rows": tuple(rows), "samples": (), "complete": False})
    alone = made.Report(**{**vars(alone), "outcomes": {"slots": bare.outcomes["slots"]}})
    save(run / "eval" / "rows.json", [alone])
    text, _ = read(report([run], tmp_path / "report.html"))
    for said in (
        "No direct answer stands beside", "No visible chain stands beside", "no zeroed or shuffled control",
        "stopped early", "One training seed", "No method was tried at several efforts",
        "eval.efforts=[1,2,3,4]", "No controls were evaluated", "--controls zero,shuffle,filler",
        "All problems need the same number",
        "Fewer than two arms", "No samples were kept",
    ):  # fmt: skip
        assert said in text, said


def test_folders_that_hold_no_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UserError, match="holds no run"):
        report([tmp_path], tmp_path / "report.html")
    with pytest.raises(UserError, match="at least one run"):
        report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_arms_of_different_runs_are_compared(tmp_path):
    plain = made.make_run(tmp_path / "a", report=made.make_report(methods=("plain",)), steps=5)
    slots = made.make_run(tmp_path / "b", report=made.make_report(methods=("plain", "slots")), steps=5)
    (merged,) = merge([read_run(plain), read_run(slots)])
    assert [r["method"] for r in merged.rows if r["control"] is None and r["effort"] is None] == [
        "plain", "slots", "shortcut: 2-hop",
    ]  # fmt: skip
    assert ("plain", "slots") in {(c["a"], c["b"]) for c in merged.comparisons}


def test_one_name_for_two_models_is_told_apart(tmp_path):
    """The same label and seed in two runs with different answers: neither may hide the other."""
    first = made.make_report(methods=("plain", "slots"))
    second = made.make_report(methods=("plain", "slots"))
    flipped = second.outcomes["slots"].translate(str.maketrans("01", "10"))
    rows = [
        {**row, "correct": flipped.count("1"), "accuracy": flipped.count("1") / row["n"]}
        if (row["method"], row["control"], row["effort"]) == ("slots", None, None)
        else row
        for row in second.rows
    ]
    second = made.Report(
        **{**vars(second), "outcomes": {**second.outcomes, "slots": flipped}, "rows": tuple(rows)}
    )
    runs = [made.make_run(tmp_path / name, report=r, steps=5) for name, r in (("a", first), ("b", second))]
    (merged,) = merge([read_run(run) for run in runs])
    mains = [r["method"] for r in merged.rows if r["control"] is None and r["effort"] is None]
    assert mains == ["plain", "slots (a)", "slots (b)", "shortcut: 2-hop"]
    pair = next(c for c in merged.comparisons if (c["a"], c["b"]) == ("slots (a)", "slots (b)"))
    assert pair["only_a"] + pair["only_b"] == 400
    assert {v["method"] for v in merged.verdicts} == {"slots (a)", "slots (b)"}
    assert {s["arm"] for s in merged.samples} == {"plain", "slots (a)", "slots (b)"}


def test_comparisons_over_seeds():
    found = comparisons([made.make_report(seed) for seed in range(3)])
    pair = next(c for c in found if (c["a"], c["b"]) == ("plain", "slots"))
    assert pair["seeds"] == len(pair["p"]) == 3
    assert pair["low"] <= pair["difference"] <= pair["high"] < 0
    assert pair["reading"] == "slots better"


def test_reading():
    def test(difference, p):
        return {"difference": difference, "p": p}

    assert reading("x", "y", [test(0.1, 0.01)]) == "x better"
    assert reading("x", "y", [test(0.1, 0.2), test(0.2, 0.06)]) == "not measurable"
    assert reading("x", "y", [test(-0.1, 0.01), test(-0.2, 0.03)]) == "y better"
    assert reading("x", "y", [test(0.1, 0.01), test(0.2, 0.3)]) == "x better in 1 of 2 seeds"
    both = reading("x", "y", [test(0.1, 0.01), test(-0.2, 0.01)])
    assert both == "x better in 1 of 2 seeds, y better in 1 of 2 seeds"


def test_curves_are_thinned_and_staged(tmp_path):
    x, y = thinned([(i, float(i % 2)) for i in range(1, 2001)])
    assert len(x) <= MAX_POINTS
    assert x[-1] == 2000
    assert sum(y) / len(y) == pytest.approx(0.5, abs=0.1)
    assert thinned([(1, 2.0)]) == ([1], [2.0])
    assert stage_starts(read_run(made.make_run(tmp_path / "run", steps=20))) == [11]


def test_pictures_are_real(seeds):
    import base64

    _, _, checker = seeds
    for link in checker.links:
        if link.startswith("data:"):
            svg = base64.b64decode(link.partition(",")[2]).decode()
            assert svg.rstrip().endswith("</svg>")
            assert len(re.findall(r"<path|<use", svg)) > 20


def test_stages_show_their_metrics_and_histograms(tmp_path):
    runs = [made.make_staged_run(tmp_path / f"tiny-{seed}", seed) for seed in range(2)]
    text, checker = read(report(runs, tmp_path / "report.html"))
    assert "Stages: 1 slots, 2 memory, 3 experts." in text
    curves, metrics, histograms = checker.alts
    assert "loss/lm" in curves and "train/loss" not in curves
    for name in ("slot_rank", "pkm_hit_rate", "ssm_gate"):
        assert f"train/{name}" in metrics
    for name in ("bin", "lr", "cost/seconds"):
        assert name not in metrics
    assert "ssm_gate in experts, mean about 0.40" in histograms
    assert "slots" not in histograms and "memory" not in histograms


def test_no_line_is_drawn_over_a_stage_that_logs_nothing(tmp_path):
    run = made.make_staged_run(tmp_path / "run", steps=4)
    with (run / "log.jsonl").open("a") as file:
        for step, stage in ((13, "slots"), (14, "memory")):
            file.write(json.dumps({"step": step, "stage": stage, "train/pkm_hit_rate": 0.1}) + "\n")
        file.write(json.dumps({"step": 15, "stage": "slots", "train/slot_rank": float("nan")}) + "\n")
    found = read_run(run)
    stretches = unbroken(found, "train/pkm_hit_rate")
    assert [[step for step, _ in points] for points in stretches] == [[*range(5, 15)]]
    assert [len(points) for points in unbroken(found, "train/ssm_gate")] == [4]
    assert [len(points) for points in unbroken(found, "train/slot_rank")] == [12]
    assert later_half(found, "experts", "train/ssm_gate") == [0.4, 0.4]
    assert stages_of([found]) == list(made.STAGES)


def test_running_text_is_shown_by_perplexity(tmp_path):
    run = made.make_run(tmp_path / "run", report=made.make_text_report(), steps=5)
    text, checker = read(report([run], tmp_path / "report.html"))
    assert "workspace predicts the text at perplexity 39.75 [38.25, 41.25]" in text
    assert "perplexity [95 %]" in text and "41.25 [39.75, 42.75]" in text
    for said in ("different tokenizers", "Test split: final figures", "One training seed"):
        assert said in text
    for other in ("Accuracy against cost", "sequential pass", "No direct answer", "controls"):
        assert other not in text
    assert len(checker.alts) == 1
