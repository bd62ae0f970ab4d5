"""`quiet data pairs` as a process: killed, on ranks, started anew, in the words of other tools."""

import json
import os
import signal
import time

import pytest
from command_child import command
from typer.testing import CliRunner

from quietreasoning.cli.main import app
from quietreasoning.data.pairs.folder import read_rows
from quietreasoning.run import resolve, train_run

ASKED = ["--num-samples", "40", "--max-new-tokens", "24", "--keep", "all", "--temperature", "1.2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "chain"
    tiny = ["backbone.scratch={layers: 1, width: 16, heads: 1, context: 96}", "train.steps=1"]
    tiny += ["train.batch_size=2", "data.train=32", "data.valid=4", "data.test=4", "eval.n=2"]
    train_run(resolve("cot/pointer", tiny, out=str(folder)), doctor=False)
    return str(folder)


def quiet(*arguments, code=0):
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def rows_of(folder):
    return [{k: v for k, v in row.items() if k != "shard"} for row in read_rows(folder)]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "whole"
    told = quiet("pairs", run, *ASKED, "--out", out, "--json", out.parent / "counts.json")
    counts = json.loads((out.parent / "counts.json").read_text())
    assert counts == json.loads((out / "summary.json").read_text()) and counts["asked"] == 40
    assert "data set  asked  finished" in told and f"data.task=pairs data.path={out}" in told
    return out


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_where_it_ended(commands, run, whole, tmp_path, how):
    out = tmp_path / "p"
    arguments = ["data", "pairs", run, *ASKED, "--out", str(out), "--checkpoint-every", "3"]
    reader, writer = commands.Pipe(duplex=False)
    child = commands.Process(target=command, args=(arguments, writer, None))
    child.start()
    until = time.monotonic() + 60
    while len(list(out.glob("shard-*.json"))) < 3 and child.is_alive() and time.monotonic() < until:
        child.join(0.002)
    os.kill(child.pid, how)
    child.join(60)
    made = len(read_rows(out))
    assert 9 <= made < 40 and child.exitcode == (-9 if how == signal.SIGKILL else 75)
    assert not (out / "summary.json").exists()
    quiet("pairs", run, *ASKED, "--out", out, "--batch-size", "7")
    assert rows_of(out) == rows_of(whole)
    reader.close()


def test_two_ranks_make_the_same_set(run, whole, tmp_path, monkeypatch):
    """As --nproc starts them, here one after the other: they share the folder and nothing else."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        told = quiet("pairs", run, *ASKED, "--out", tmp_path / "p")
    assert rows_of(tmp_path / "p") == rows_of(whole)
    makers = {row["shard"].split("-")[1] for row in read_rows(tmp_path / "p")}
    assert makers == {"r0of2", "r1of2"} and "thinking tokens" in told


def test_a_fresh_start_moves_the_old_pairs_aside(run, tmp_path):
    out = tmp_path / "p"
    few = ["--num-samples", "4", "--max-new-tokens", "8", "--keep", "all", "--out", out]
    quiet("pairs", run, *few)
    before = rows_of(out)
    told = quiet("pairs", run, *few, "--seed", "1", "--temperature", "1", code=2)
    assert "seed: 0 -> 1" in told and "--no-auto-resume" in told
    told = quiet("pairs", run, *few, "--seed", "1", "--temperature", "1", "--no-auto-resume")
    assert f"is now in {out}.before-1" in told
    assert rows_of(tmp_path / "p.before-1") == before != rows_of(out)


def test_ranks_from_outside_do_not_move_folders(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    told = quiet("pairs", run, "--out", tmp_path, "--no-auto-resume", code=2)
    assert "empty --out, or start them with --nproc" in told


def test_the_flags_of_the_guide_are_understood(run, tmp_path):
    told = quiet(
        *("pairs", run, "--dataset", "gsm8k", "--num_samples", "512", "--batch_size", "8"),
        *("--max_new_tokens", "40", "--output_dir", tmp_path, "--checkpoint_every", "50", "--no_auto_resume"),
        code=2,
    )
    assert "--dataset gsm8k reads files: give --path gsm8k=FOLDER" in told


def test_out_and_in_again(run, whole, tmp_path):
    told = quiet("export-pairs", whole, tmp_path / "pairs.pt")
    count = sum(row["kept"] for row in read_rows(whole))
    assert count and f"{count} pairs" in told
    told = quiet("import-pairs", tmp_path / "pairs.pt", "--out", tmp_path / "in", "--model", run)
    assert f"{count} pairs" in told
    assert "one layer at a time" in quiet("export-pairs", whole, tmp_path / "x.pt", "--layer", "1,2", code=2)
    assert "does not exist" in quiet(
        "import-pairs", tmp_path / "no.pt", "--out", tmp_path / "y", "--model", run, code=2
    )
