"""`python benchmarks/startup.py [runs]`: wall time of `quiet --help` in fresh processes, and what it imports.

Prints min, median and max beside a bare `python -c pass`, and fails if the command errs or imports torch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

QUIET = Path(sys.executable).with_name("quiet")
HEAVY = ("torch", "transformers", "accelerate", "peft", "matplotlib", "pydantic", "numpy")


def main(runs: int = 15) -> None:
    commands = {"python -c pass": [sys.executable, "-c", "pass"], "quiet --help": [QUIET, "--help"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs + 1):  # the first round warms the file cache and is not counted
        for name, command in commands.items():
            seconds[name].append(timed(command))
    for name, all_seconds in seconds.items():
        counted = sorted(all_seconds[1:])
        print(
            f"{name:16} {runs} processes: min {counted[0]:.3f} s, "
            f"median {statistics.median(counted):.3f} s, max {counted[-1]:.3f} s"
        )
    imported = packages([sys.executable, "-X", "importtime", str(QUIET), "--help"])
    heavy = [name for name in HEAVY if name in imported]
    print(f"packages imported: {len(imported)}; of {', '.join(HEAVY)}: {', '.join(heavy) or 'none'}")
    assert "torch" not in imported, "quiet --help imports torch"


def timed(command: list[str | Path]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - began
    assert "--help" not in command or "quiet" in done.stdout
    return elapsed


def packages(command: list[str]) -> set[str]:
    """Top-level names of everything a process imports, read from `-X importtime`."""
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    names = (line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:"))
    return {name.partition(".")[0] for name in names}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
