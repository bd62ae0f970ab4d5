"""Sinks: the log survives tears and resumes, the console tells, and a sink that raises stops nothing."""

import io
import json
import sys

import pytest

from quietreasoning.track import Console, JsonLines, Sinks, TrackConfig, read_log

ROW = {
    "step": 1,
    "stage": "main",
    "train/loss": 2.5,
    "train/steps": 1,
    "train/tokens": 40,
    "train/skipped": 0,
    "cost/seconds": 0.1,
    "cost/tokens_per_second": 400.0,
    "cost/data_share": 0.5,
}


def row(step, **extra):
    return ROW | {"step": step, "train/steps": step, "train/tokens": 40 * step} | extra


def test_a_resume_drops_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    for step in range(1, 6):
        log.write(row(step))
    log.write({"step": 5, "stage": "main", "eval/t/accuracy": 0.5})
    log.close()
    path.open("a").write('{"step": 6, "train/lo')
    assert [r["step"] for r in read_log(path)] == [1, 2, 3, 4, 5, 5]
    resumed = JsonLines(path, resume_step=4)
    resumed.write(row(5, extra=1))
    resumed.close()
    assert [(r["step"], "extra" in r) for r in read_log(path)] == [
        (1, False),
        (2, False),
        (3, False),
        (4, False),
        (5, True),
    ]


def test_a_new_run_starts_a_new_log_and_a_damaged_middle_ends_the_old_one(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(row(1)) + "\nnot json\n" + json.dumps(row(2)) + "\n")
    JsonLines(path, resume_step=2).close()
    assert [r["step"] for r in read_log(path)] == [1]
    JsonLines(path).close()
    assert read_log(path) == []


def test_rows_are_on_disk_as_soon_as_they_are_written(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.write(row(1, **{"train/loss": float("nan")}))
    (read,) = read_log(tmp_path / "log.jsonl")
    assert read["train/loss"] != read["train/loss"]
    log.close()


class Raising:
    def __init__(self):
        self.calls = 0

    def stage(self, *args):
        pass

    def write(self, row):
        self.calls += 1
        raise OSError("the wire is cut")

    note = close = stage


class Keeping:
    def __init__(self):
        self.heard = []

    def stage(self, *args):
        self.heard.append(args)

    def write(self, row):
        self.heard.append(row["step"])

    def note(self, text):
        self.heard.append(text)

    def close(self):
        self.heard.append("closed")


def test_a_sink_that_raises_is_warned_of_once_and_left_alone():
    raising, keeping = Raising(), Keeping()
    sinks = Sinks([raising, keeping])
    with pytest.warns(UserWarning, match="Raising is switched off.*the wire is cut") as caught:
        for step in (1, 2, 3):
            sinks.write(row(step))
        sinks.note("saved")
        sinks.close()
    assert len(caught) == 1 and raising.calls == 1
    assert keeping.heard == [1, 2, 3, "saved", "closed"]


def test_a_sink_that_cannot_start_is_warned_of_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    with pytest.warns(UserWarning, match="wandb is switched off"):
        sinks = Sinks.open(TrackConfig(console=False, wandb="project"), tmp_path)
    sinks.write(row(1))
    sinks.close()
    assert len(read_log(tmp_path / "log.jsonl")) == 1


def test_other_ranks_are_silent(tmp_path):
    sinks = Sinks.open(TrackConfig(), tmp_path / "run", main=False)
    sinks.write(row(1))
    sinks.close()
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = Sinks.open(TrackConfig(console=False, tensorboard=True), tmp_path)
    for step in (1, 2):
        sinks.write(row(step))
    sinks.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.5), (2, 2.5)]


def test_the_console_tells_stage_budget_loss_speed_and_waiting():
    out = io.StringIO()
    console = Console(seconds=0.0, file=out)
    console.stage("chain", "step", 4, 0)
    for step in (1, 2, 3, 4):
        console.write(row(step))
    console.write({"step": 4, "stage": "chain", "eval/hops/cot/accuracy": 0.987654})
    console.note("[saved] step-000004")
    console.close()
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("chain step 1/4  loss 2.5  400 tokens/s  data 50%") and "left" in lines[0]
    assert lines[3].startswith("chain step 4/4")
    assert lines[4] == "chain step 4  hops/cot/accuracy 0.9877"
    assert lines[5] == "[saved] step-000004"


def test_the_console_counts_tokens_where_the_budget_is_tokens_and_holds_its_tongue():
    out = io.StringIO()
    console = Console(seconds=1000.0, file=out)
    console.stage("chain", "token", 160, 0)
    for step in (1, 2, 3, 4):
        console.write(row(step))
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["chain token 40/160", "chain token 160/160"]


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    console = Console(file=out)
    console.stage("chain", "step", 2, 1)
    console.write(row(2))
    console.stage("next", "step", 3, 0)
    console.close()
    assert "2/2 steps" in out.getvalue() and "loss 2.5" in out.getvalue()
