"""`python experiments/recursion_picture.py FIGURES.jsonl... PICTURE.png`: accuracy by supervision step.

FIGURES are what recursion_tasks.py printed, one JSON line an arm. Left: every group of difficulty after each
supervision step, mean of the seeds. Right: the steps that rows take which halt by themselves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CUT = 0.9


def read(paths: list[str]) -> list[dict]:
    """The recursion arm of each seed, the last one where there are several."""
    lines = [line for path in paths for line in Path(path).read_text().splitlines() if line.startswith("{")]
    arms = {(arm["arm"], arm["seed"]): arm for arm in map(json.loads, lines)}
    return [arm for (name, _), arm in sorted(arms.items()) if name == "recursion"]


def main(paths: list[str], picture: Path) -> None:
    arms = read(paths)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, 3.1), layout="constrained", width_ratios=(1.4, 1)
    )
    shades = matplotlib.colormaps["viridis"]
    groups = list(arms[0]["by group"])
    steps = sorted(arms[0]["by step"], key=int)
    for i, group in enumerate(groups):
        values = [100 * fmean(arm["by step and group"][step][group] for arm in arms) for step in steps]
        left.plot(list(map(int, steps)), values, marker="osD^"[i % 4], color=shades(0.3 * i), label=group)
    halting = f"halting at {CUT}"
    for i, group in enumerate(groups):
        taken = [arm[halting]["mean steps by group"][group] for arm in arms]
        right.bar(i, fmean(taken), color=shades(0.3 * i), width=0.6)
        right.plot([i] * len(taken), taken, "o", color="black", markersize=3)
    left.set(xlabel="supervision steps", ylabel="accuracy, %", ylim=(-4, 104))
    right.set(ylabel="steps taken when halting", xticks=range(len(groups)), xticklabels=groups)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    left.legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:-1], Path(sys.argv[-1]))
