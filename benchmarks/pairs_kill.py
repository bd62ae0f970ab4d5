"""`python benchmarks/pairs_kill.py [--kills 20] [--seed 0]`: kill -9 `quiet data pairs` at random moments.

Each moment is drawn: within its start, or so many shards on, then a little later or as soon as a file is
half-written. The shards are small, so that there are many saves to hit; batch sizes change from start to
start. The folder that was killed must hold what an undisturbed one holds, each rollout once, tokens, outcomes
and states equal to the bit; so must folders that two and three ranks made. `tests/harvest` does the same with
less, within one process.
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

import torch

from quietreasoning.data.pairs.folder import read_rows
from quietreasoning.data.pairs.shards import PairStates

TINY = [
    *("cot/pointer", "--no-doctor", "train.steps=1", "train.batch_size=4", "eval.n=4"),
    *("data.train=64", "data.valid=16", "data.test=16"),
    "backbone.scratch={layers: 2, width: 32, heads: 2, context: 96, init_std: 0.05}",
]
PROBLEMS = 600
ASKED = ["--max-new-tokens", "24", "--keep", "all", "--temperature", "1.2", "--layers", "1,last"]


@dataclass(frozen=True)
class Kill:
    """Where a kill found the folder."""

    before: int  # rollouts that were whole when the command started
    after: int  # and when it was dead
    half_written: bool
    ended: bool  # it was done before the kill


def quiet(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "quietreasoning.cli.main", *arguments]


def pairs(run: Path, out: Path, *more: str) -> list[str]:
    return quiet("data", "pairs", str(run), *ASKED, "--num-samples", str(PROBLEMS), "--out", str(out), *more)


def whole(folder: Path) -> int:
    return len(read_rows(folder))


def shards(folder: Path) -> int:
    return len(list(folder.glob("shard-*.json")))


def half_written(folder: Path) -> bool:
    tensors = {path.stem for path in folder.glob("shard-*.safetensors")}
    return any(folder.glob(".tmp-*")) or bool(tensors - {path.stem for path in folder.glob("shard-*.json")})


def kill_once(run: Path, out: Path, on: int, start_seconds: float, draw: random.Random) -> Kill:
    """Start the command and kill it: within its start if `on` is 0, else about `on` shards later."""
    before, there = whole(out), shards(out)
    output = out.parent / "output.txt"
    more = ("--checkpoint-every", str(draw.randint(1, 3)), "--batch-size", str(draw.randint(1, 4)))
    with output.open("wb") as file:
        child = subprocess.Popen(pairs(run, out, *more), stdout=file, stderr=subprocess.STDOUT)
        if on == 0:
            _wait(child, draw.random() * start_seconds)
        else:
            while shards(out) < there + on and child.poll() is None:
                _wait(child, 0.001)
            if draw.random() < 0.5:  # in the middle of a save, if the clock allows
                while not half_written(out) and child.poll() is None:
                    pass
            else:
                _wait(child, draw.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        code = child.wait()
    if code not in (-signal.SIGKILL, 0):
        raise SystemExit(f"a restart failed with exit code {code}:\n{output.read_text()}")
    return Kill(before, whole(out), half_written(out), code == 0)


def _wait(child: subprocess.Popen, seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def differences(one: Path, other: Path) -> list[str]:
    """What two folders hold apart, however many shards they have."""
    rows, others = (
        [{name: value for name, value in row.items() if name != "shard"} for row in read_rows(folder)]
        for folder in (one, other)
    )
    keys = [row["key"] for row in others]
    faults = ["a rollout is there twice"] if len(set(keys)) < len(keys) else []
    if rows != others:
        return [*faults, f"{len(rows)} and {len(others)} rollouts differ"]
    left, right = PairStates(one), PairStates(other)
    apart = sum(
        not torch.equal(getattr(left, kind)(row["key"], layer), getattr(right, kind)(row["key"], layer))
        for row in left.rows
        for layer in left.layers
        for kind in ("pre", "post")
    )
    return [*faults, f"{apart} states differ"] if apart else faults


def main(kills: int, seed: int) -> int:
    draw, began = random.Random(seed), time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, through, killed = folder / "run", folder / "through", folder / "killed"
        subprocess.run(quiet("train", *TINY, "--out", str(run)), check=True, stdout=subprocess.DEVNULL)
        start = time.monotonic()
        subprocess.run(pairs(run, through), check=True, capture_output=True)
        seconds = time.monotonic() - start
        found: list[Kill] = []
        for left in range(kills, 0, -1):
            room = (PROBLEMS - whole(killed)) // (2 * left)  # shards of two rollouts on average
            on = 0 if draw.random() < 0.2 else draw.randint(1, max(1, room))
            found.append(kill_once(run, killed, on, seconds, draw))
            print(f"kill {len(found)}: {found[-1]}", flush=True)
        subprocess.run(pairs(run, killed), check=True, capture_output=True)
        faults = [f"killed: {fault}" for fault in differences(through, killed)]
        for ranks in (2, 3):
            out = folder / f"ranks-{ranks}"
            subprocess.run(pairs(run, out, "--nproc", str(ranks)), check=True, capture_output=True)
            faults += [f"{ranks} ranks: {fault}" for fault in differences(through, out)]
        states = PairStates(through)
        kept, count = len(states), len(states) * 2 * len(states.layers)
    for fault in faults:
        print(f"FAULT: {fault}")
    half, early = sum(kill.half_written for kill in found), sum(kill.after == kill.before for kill in found)
    print(
        f"{kills} kills ({early} before anything new was saved, {half} in the middle of a save, "
        f"{sum(kill.ended for kill in found)} too late), {PROBLEMS} rollouts, {kept} kept, {count} tensors: "
        + ("FAILED" if faults else "killed, on 2 ranks and on 3 the folder is that of one run, bit for bit")
        + f" ({time.monotonic() - began:.0f} s)"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(**vars(parser.parse_args())))
