"""`python benchmarks/kill_resume.py [--kills 20] [--seed 0]`: kill -9 `quiet train` at random moments.

The run saves every step. Each moment is drawn: half-way through its start, or so many steps on and a little
later, where saving takes most of the time. Every restart must go on from the newest checkpoint, and the
losses, the evaluations and method.safetensors must equal those of a run that was left alone, bit for bit.
`tests/train/test_signals.py` does the same with fewer kills and without the command line.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from quietreasoning.track import read_log
from quietreasoning.train.checkpoint import checkpoints, verify

STEPS_PER_KILL = 5
TINY = [
    "slots/pointer",
    "stages=[{name: chain, method: {name: cot}}, {name: quiet, method: {name: slots}}]",
    "backbone.scratch={layers: 1, width: 32, heads: 2, context: 128}",
    *("train.batch_size=4", "train.save_every=1", "train.log_every=1", "train.eval_every=10"),
    *("data.train=64", "data.valid=16", "data.test=16", "eval.n=8", "eval.max_new_tokens=8"),
]


@dataclass(frozen=True)
class Kill:
    """Where a kill found the run."""

    started_from: int  # the newest whole checkpoint before
    reached: int  # and after
    said: str | None  # the checkpoint it said it goes on from; None: killed before it could
    half_written: bool


def command(out: Path, steps: int) -> list[str]:
    settings = [*TINY, f"train.steps={steps // 2}", "--no-doctor", "--out", str(out)]
    return [sys.executable, "-m", "quietreasoning.cli.main", "train", *settings]


def newest(run: Path) -> int:
    """The newest checkpoint that verifies, as a step; 0 where there is none."""
    found = [path for path in checkpoints(run) if not verify(path)]
    return int(found[-1].name.removeprefix("step-")) if found else 0


def lines(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def went_on(output: Path) -> str | None:
    """The checkpoint that a start said it goes on from."""
    for line in output.read_text(encoding="utf-8").splitlines():
        if line.startswith("going on from "):
            return line.removeprefix("going on from ").partition(",")[0]
    return None


def kill_once(run: Path, steps: int, start_seconds: float, on: int, draw: random.Random) -> Kill:
    """Start the run and kill it: within its start if `on` is 0, else about `on` steps later."""
    before, output = newest(run), run.parent / "output.txt"
    with output.open("wb") as file:
        child = subprocess.Popen(command(run, steps), stdout=file, stderr=subprocess.STDOUT)
        if on == 0:
            until = time.monotonic() + draw.random() * start_seconds
            while time.monotonic() < until and child.poll() is None:
                _wait(child, 0.01)
        else:
            while newest_named(run) < before + on and child.poll() is None:
                _wait(child, 0.001)
            _wait(child, draw.random() * 0.1)
        child.send_signal(signal.SIGKILL)
        code = child.wait()
    if code not in (-signal.SIGKILL, 0):  # 0: it had ended just before
        raise SystemExit(f"a restart failed with exit code {code}:\n{output.read_text()}")
    half = any(run.glob(".tmp-*")) or any(run.glob(".old-*"))
    return Kill(before, newest(run), went_on(output), half)


def newest_named(run: Path) -> int:
    found = checkpoints(run)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def _wait(child: subprocess.Popen, seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def figures(run: Path) -> list[dict]:
    """Every row of the log, less what a clock wrote."""
    return [
        {key: value for key, value in row.items() if not key.startswith("cost/")}
        for row in read_log(run / "log.jsonl")
    ]


def same(left: Path, right: Path) -> list[str]:
    """What differs between two finished runs."""
    faults = []
    if figures(left) != figures(right):
        faults.append("the logs differ")
    ends = [checkpoints(run)[-1] / "method.safetensors" for run in (left, right)]
    if ends[0].parent.name != ends[1].parent.name or ends[0].read_bytes() != ends[1].read_bytes():
        faults.append("the final weights differ")
    return faults


def main(kills: int, seed: int) -> int:
    draw, steps, began = random.Random(seed), STEPS_PER_KILL * kills, time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        through, killed = Path(folder) / "through", Path(folder) / "killed"
        start = time.monotonic()
        subprocess.run(command(through, steps), check=True, stdout=subprocess.DEVNULL)
        start_seconds = (time.monotonic() - start) / 2
        found: list[Kill] = []
        for left in range(kills, 0, -1):
            on = 0 if draw.random() < 0.25 else draw.randint(1, max(1, (steps - newest(killed)) // left))
            found.append(kill_once(killed, steps, start_seconds, on, draw))
            print(f"kill {len(found)}: {found[-1]}", flush=True)
        final = Path(folder) / "output.txt"
        expected = newest(killed)
        with final.open("wb") as file:
            subprocess.run(command(killed, steps), check=True, stdout=file, stderr=subprocess.STDOUT)
        faults = same(through, killed)
        for kill in [*found, Kill(expected, steps, went_on(final), False)]:
            right = f"step-{kill.started_from:06d}" if kill.started_from else None
            if kill.said not in (right, None) or (kill.reached > kill.started_from and kill.said != right):
                faults.append(f"a restart at {right} said {kill.said}")
        rows = len(figures(through))
    for fault in faults:
        print(f"FAULT: {fault}")
    half, early = sum(kill.half_written for kill in found), sum(kill.said is None for kill in found)
    print(
        f"{kills} kills ({early} before the run could go on, {half} in the middle of a save), "
        f"{steps} steps, {rows} log rows: "
        + ("FAILED" if faults else "every restart resumed; losses, evaluations and weights are bit-equal")
        + f" ({time.monotonic() - began:.0f} s)"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(**vars(parser.parse_args())))
