"""`python benchmarks/kill_resume.py [kills] [seed]`: kill -9 a run that saves every step, at random moments.

Every restart must resume, and losses and final weights must equal those of a run that was left alone, bit for
bit. The test suite does the same with fewer kills (tests/train/test_signals.py).
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "train"))

from conftest import SLOW_IMPORTS
from test_signals import kill_and_resume


def main(kills: int = 20, seed: int = 0) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(SLOW_IMPORTS)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        kill_and_resume(processes, Path(folder), kills=kills, steps=5 * kills, seed=seed)
    print(f"{kills} kills: every restart resumed, all {5 * kills} losses and the final weights bit-equal")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
