"""The README's table and picture, from `quiet demo --seeds 0,1,2 --json rows.json`.

    python benchmarks/readme_figures.py rows.json docs/images/loops.png

Prints the table as Markdown and writes the picture: accuracy against loops and latents, one
line for each number of hops, over all seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from quietreasoning.demo import LONG, MIXED
from quietreasoning.evaluate.rows import pool

WORDS = {
    "plain": "direct answer",
    "cot": "visible chain",
    "continuous": "**continuous**: latents in sequence",
    "slots": "**slots**: parallel, in loops",
    "zero": "thoughts zeroed",
    "shuffle": "thoughts of another question",
    "filler": "filler in place of thoughts",
}


def table(rows: list[dict]) -> str:
    pooled = [row for row in pool(r for r in rows if r["task"] == LONG) if row["kind"] != "shortcut"]
    chain = next(row["passes"] for row in pooled if row["method"] == "cot")
    lines = [
        "| | accuracy % [95 %] | thinking tokens | sequential passes | vs. chain | ms, batch 1 |",
        "|---|---|---|---|---|---|",
    ]
    for row in pooled:
        name = WORDS[row["method"]] if row["control"] is None else f"&nbsp;&nbsp;{WORDS[row['control']]}"
        figure = f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        times = f"{chain / row['passes']:.1f}x" if row["passes"] else "-"
        ms = "" if row["ms"] is None else f"{row['ms']:.0f}"
        lines.append(
            f"| {name} | {figure} | {row['visible_tokens']:g} | {row['passes']:g} | {times} | {ms} |"
        )
    return "\n".join(lines)


def efforts(rows: list[dict], method: str) -> dict[int, list[tuple[int, float]]]:
    """Hops -> (effort, accuracy over all seeds)."""
    counts: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        if row["task"] == MIXED and row["effort"] is not None and row["method"].startswith(method):
            for hops, (correct, n) in row["by_steps"].items():
                count = counts.setdefault((int(hops), row["effort"]), [0, 0])
                count[0], count[1] = count[0] + correct, count[1] + n
    lines: dict[int, list[tuple[int, float]]] = {}
    for (hops, effort), (correct, n) in sorted(counts.items()):
        lines.setdefault(hops, []).append((effort, 100 * correct / n))
    return lines


def picture(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.1), sharey=True, layout="constrained")
    shades = matplotlib.colormaps["viridis"]
    for axis, method, word in zip(axes, ("slots", "continuous"), ("loops", "latents"), strict=True):
        for i, (hops, points) in enumerate(efforts(rows, method).items()):
            x, y = zip(*points, strict=True)
            axis.plot(x, y, marker="osD^"[i], color=shades(0.3 * i), label=f"{hops}", markersize=5)
        axis.set(title=method, xlabel=f"{word} at inference", ylim=(-4, 104))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    axes[0].set_ylabel("accuracy, %")
    figure.legend(
        *axes[0].get_legend_handles_labels(), title="hops", loc="outside right center", frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    picture(rows, Path(sys.argv[2]))
    print(table(rows))


if __name__ == "__main__":
    main()
