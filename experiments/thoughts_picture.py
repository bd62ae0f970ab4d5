"""`python experiments/thoughts_picture.py FIGURES.jsonl PICTURE.png`: who answers what, by number of hops.

FIGURES are what thoughts_pointer.py printed, one JSON line a text and seed. Bars are means of the seeds, dots
the seeds. Left the chains, right the control text, in which one hop is all there is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ARMS = {  # arm -> label
    "thoughts": "hidden thoughts",
    "fine-tune": "trained without",
    "thoughts, zero": "thoughts removed",
    "thoughts, shuffle": "another question's",
}


def main(figures: str, picture: Path) -> None:
    lines = [line for line in Path(figures).read_text().splitlines() if line.startswith("{")]
    rows = [json.loads(line) for line in lines]
    texts = {text: [row for row in rows if row["text"] == text] for text in ("chains", "control")}
    figure, axes = plt.subplots(
        1, 2, figsize=(8.4, 3.0), layout="constrained", width_ratios=(3, 1.1), sharey=True
    )
    colours = matplotlib.colormaps["viridis"]([0.15, 0.5, 0.75, 0.95])
    for axis, (text, own) in zip(axes, texts.items(), strict=True):
        groups = list(own[0]["thoughts"]["by group"])
        for place, ((arm, label), colour) in enumerate(zip(ARMS.items(), colours, strict=True)):
            for at, group in enumerate(groups):
                values = [100 * row[arm]["by group"][group] for row in own]
                x = at + 0.2 * (place - 1.5)
                axis.bar(x, fmean(values), 0.18, color=colour, label=label if not at else None)
                axis.plot([x] * len(values), values, ".", color="black", markersize=3)
        axis.set_xticks(range(len(groups)), [group.replace("1 hops", "1 hop") for group in groups])
        axis.set_title(text if text == "chains" else "control text", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("right answers, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
