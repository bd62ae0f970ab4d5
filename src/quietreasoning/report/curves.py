"""Pictures of training: losses, metrics and histograms by step, with the stages of a run told apart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from quietreasoning.report.charts import COLOURS, STYLE, panels, picture
from quietreasoning.report.runs import Run

MAX_POINTS = 300
OWN = {f"train/{name}" for name in ("loss", "lr", "grad_norm", "steps", "tokens", "skipped")}
BIN = re.compile(r"(?P<name>.+)_bin_(?P<number>\d+)$")  # shares of one histogram, over 0 to 1
WASH = ("#ffffff", "#f0f3f6")  # behind stages, in turns


@matplotlib.rc_context(STYLE)
def training_curves(runs: Sequence[Run]) -> str:
    """Loss terms of runs that differ by seed alone, and what they were evaluated to on the way."""
    terms = keys_of(runs, lambda key: key.startswith("loss/"))
    ends = ("accuracy", "perplexity")
    return lines_of(
        runs,
        [*terms, *keys_of(runs, lambda k: k.startswith("eval/") and k.endswith(ends))],
        "Training curves",
    )


@matplotlib.rc_context(STYLE)
def metrics(runs: Sequence[Run]) -> str:
    """Whatever else the method logged: one small picture a metric."""
    drawn = keys_of(runs, lambda k: k.startswith("train/") and k not in OWN and not BIN.match(k))
    return lines_of(runs, drawn, "Metrics")


@matplotlib.rc_context(STYLE)
def histograms(runs: Sequence[Run]) -> str:
    """Metrics `NAME_bin_00`, `NAME_bin_01`, ...: their shares over the second half of each stage."""
    names = list(dict.fromkeys(BIN.match(key)["name"] for key in keys_of(runs, BIN.match)))
    found = []
    for name in names:
        for stage in stages_of(runs):
            shares = {}
            for key in keys_of(runs, lambda k, name=name: BIN.match(k) and BIN.match(k)["name"] == name):
                values = [value for run in runs for value in later_half(run, stage, key)]
                if values:
                    shares[int(BIN.match(key)["number"])] = sum(values) / len(values)
            if shares:
                found.append((name.removeprefix("train/"), stage, shares))
    if not found:
        return ""
    figure, all_axes = panels(len(found), width=2.6, height=1.9, columns=4)
    said = []
    for axes, (name, stage, shares) in zip(all_axes, found, strict=True):
        bins = max(shares) + 1
        centres = [(number + 0.5) / bins for number in shares]
        axes.bar(centres, [100 * share for share in shares.values()], width=0.9 / bins, color=COLOURS[0])
        mean = sum(c * share for c, share in zip(centres, shares.values(), strict=True)) / max(
            sum(shares.values()), 1e-9
        )
        axes.axvline(mean, color="#222222", linestyle="--", linewidth=1)
        axes.set_xlim(0, 1)
        axes.set_title(f"{name}\n{stage}", fontsize=8, loc="left")
        said.append(f"{name} in {stage}, mean about {mean:.2f}")
    for axes in all_axes[::4]:
        axes.set_ylabel("share, %", fontsize=8)
    return picture(figure, f"Histograms of {runs[0].group}: {'; '.join(said)}.")


def lines_of(runs: Sequence[Run], drawn: Sequence[str], what: str) -> str:
    """One panel a key, a line a run."""
    if not drawn:
        return ""
    figure, all_axes = panels(len(drawn), width=3.4, height=2.1)
    for axes, key in zip(all_axes, drawn, strict=True):
        values: list[float] = []
        for i, run in enumerate(runs):
            label = f"seed {run.settings.get('seed', run.name)}"
            for points in unbroken(run, key):
                x, y = thinned(points)
                values += y
                mark = "." if len(x) < 12 else ""
                axes.plot(
                    x,
                    y,
                    color=COLOURS[i % len(COLOURS)],
                    linewidth=1.1,
                    label=label,
                    marker=mark,
                    markersize=4,
                )
                label = "_"  # once in the legend
        if key.startswith("loss/") and values and min(values) > 0 and max(values) / min(values) > 50:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # powers would need math text
            axes.yaxis.set_minor_formatter(NullFormatter())
        mark_stages(axes, runs[0])
        axes.set_title(title_of(key), fontsize=9, loc="left")
        axes.set_xlabel("step")
    if len(runs) > 1:
        all_axes[0].legend(fontsize=8)
    return picture(figure, f"{what} of {runs[0].group}: {', '.join(drawn)} by step.")


def title_of(key: str) -> str:
    """`eval/text/workspace/perplexity` on two lines: titles of neighbours must not meet."""
    key = key.removeprefix("train/")
    return "/\n".join(key.removeprefix("eval/").rsplit("/", 1)) if key.startswith("eval/") else key


def mark_stages(axes: Axes, run: Run) -> None:
    """Borders, a pale ground for every other stage, and each stage's number."""
    borders = stage_starts(run)
    if not borders:
        return
    last = run.log[-1]["step"]
    edges = [1, *borders, max(last, borders[-1] + 1)]
    axes.set_xlim(edges[0], edges[-1])
    for number, (left, right) in enumerate(pairwise(edges), 1):
        axes.axvspan(left, right, color=WASH[(number + 1) % 2], linewidth=0, zorder=0)
        axes.text(
            (left + right) / 2, 0.99, str(number), transform=axes.get_xaxis_transform(), fontsize=7,
            color="#777777", ha="center", va="top",
        )  # fmt: skip
        if number > 1:
            axes.axvline(left, color="#999999", linestyle=":", linewidth=1)


def keys_of(runs: Sequence[Run], wanted: Callable[[str], Any]) -> list[str]:
    """Keys of the logs that are numbers somewhere, in the order they first come."""
    found = dict.fromkeys(key for run in runs for row in run.log for key, v in row.items() if is_number(v))
    return [key for key in found if wanted(key)]


def unbroken(run: Run, key: str) -> list[list[tuple[int, float]]]:
    """The points of a key, one list a stretch of stages that log it: no line leads over a stage without."""
    stretches: list[list[tuple[int, float]]] = []
    open_stretch = False
    for _, rows in groupby(run.log, key=lambda row: row.get("stage")):
        points = [(row["step"], row[key]) for row in rows if is_number(row.get(key))]
        if points and open_stretch:
            stretches[-1] += points
        elif points:
            stretches.append(points)
        open_stretch = bool(points)
    return stretches


def later_half(run: Run, stage: str, key: str) -> list[float]:
    rows = [row for row in run.log if row.get("stage") == stage and is_number(row.get(key))]
    return [row[key] for row in rows[len(rows) // 2 :]]


def stages_of(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(str(row["stage"]) for run in runs for row in run.log if "stage" in row))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Means of neighbours, so that no line has more than MAX_POINTS points."""
    size = max(1, math.ceil(len(points) / MAX_POINTS))
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [c[-1][0] for c in chunks], [sum(y for _, y in c) / len(c) for c in chunks]


def stage_starts(run: Run) -> list[int]:
    """Steps at which a later stage begins."""
    staged = [(row["step"], row["stage"]) for row in run.log if "stage" in row]
    return [b[0] for a, b in pairwise(staged) if a[1] != b[1]]
