"""Pictures as `<img>` tags that carry their SVG. Each function takes rows or logs and returns HTML, or "".

Colours are Okabe and Ito's, told apart by colour-blind readers too; methods also differ by marker.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quietreasoning.evaluate.rows import LABELS, Row
from quietreasoning.evaluate.statistics import wilson

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"  # one more than colours: the look of a method recurs after 56
DIRECT = "#666666"
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.edgecolor": "#888888", "axes.axisbelow": True,
    "legend.frameon": False, "svg.fonttype": "path", "svg.hashsalt": "quiet",
    "figure.constrained_layout.use": True, "text.parse_math": False,
}  # fmt: skip


def picture(figure: Figure, alt: str) -> str:
    """The figure inside the page, with words for those who do not see it."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/svg+xml;base64,{data}">'


def panels(
    number: int, *, width: float = 3.4, height: float = 2.9, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    columns = min(columns, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(width * columns, height * lines))
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(number)]
    return figure, axes


def looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Method -> colour and marker, the same in every picture of a task."""
    methods = list(dict.fromkeys(row["method"] for row in rows if row["kind"] != "shortcut"))
    return {
        method: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, method in enumerate(methods)
    }


def percent(axes: Axes, axis: str = "y", top: float = 100) -> None:
    """0 to 100, or to 50, 25 or 10 where nothing lies above `top`, with room for markers at both ends."""
    end = min(limit for limit in (10, 25, 50, 100) if limit >= min(top, 100))
    setters = {"y": (axes.set_ylim, axes.set_yticks), "x": (axes.set_xlim, axes.set_xticks)}
    set_limit, set_ticks = setters[axis]
    set_limit(-0.03 * end, 1.04 * end)
    set_ticks([0, end / 4, end / 2, 3 * end / 4, end] if end > 10 else [0, 2, 4, 6, 8, 10])


def reach(row: Row) -> list[list[float]]:
    """Error bars of a row, in points."""
    return [[100 * (row["accuracy"] - row["low"])], [100 * (row["high"] - row["accuracy"])]]


def as_trained(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["control"] is None and r["effort"] is None and r["kind"] != "shortcut"]


@matplotlib.rc_context(STYLE)
def accuracy_against_cost(rows: Sequence[Row]) -> str:
    """Passes and milliseconds; other efforts of a method hang on its line."""
    mains = as_trained(rows)
    costs = [("passes", "sequential passes before the answer"), ("ms", "milliseconds an example, batch 1")]
    costs = [(key, name) for key, name in costs if any(row[key] is not None for row in mains)]
    if not mains or not costs:
        return ""
    figure, all_axes = panels(len(costs), width=5, height=3.4)
    look = looks(rows)
    for axes, (key, name) in zip(all_axes, costs, strict=True):
        for method in dict.fromkeys(row["method"] for row in mains):
            own = [r for r in rows if r["method"] == method and r["control"] is None and r[key] is not None]
            line = sorted((r for r in own if r["effort"] is not None), key=lambda r: r[key])
            if len(line) > 1:
                x, y = [r[key] for r in line], [100 * r["accuracy"] for r in line]
                axes.plot(x, y, color=look[method]["color"], linewidth=1, alpha=0.6, marker=".", markersize=4)
            for row in (r for r in own if r["effort"] is None):
                axes.errorbar(
                    row[key], 100 * row["accuracy"], yerr=reach(row), linestyle="", markersize=7, capsize=2,
                    label=method, **look[method],
                )  # fmt: skip
        percent(axes, top=100 * max(row["high"] for row in mains))
        axes.set_xlabel(name)
        axes.set_xlim(left=min(0, axes.get_xlim()[0]) if key == "passes" else 0)
    all_axes[0].set_ylabel("accuracy, %")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right center")
    said = "; ".join(
        f"{row['method']} {100 * row['accuracy']:.1f} % at {row['passes']:.1f} passes" for row in mains
    )
    return picture(figure, f"Accuracy against cost: {said}.")


@matplotlib.rc_context(STYLE)
def accuracy_by_steps(rows: Sequence[Row]) -> str:
    mains = [row for row in as_trained(rows) if len(numbered(row)) > 1]
    if not mains:
        return ""
    figure, (axes,) = panels(1, width=7.4, height=3.3)
    look = looks(rows)
    shift = min(0.04, 0.6 / len(mains))  # side by side where arms meet
    for i, row in enumerate(mains):
        points = numbered(row)
        x = [k + (i - (len(mains) - 1) / 2) * shift for k, _, _ in points]
        y = [100 * correct / n for _, correct, n in points]
        bars = [wilson(correct, n) for _, correct, n in points]
        low = [v - 100 * b.low for v, b in zip(y, bars, strict=True)]
        high = [100 * b.high - v for v, b in zip(y, bars, strict=True)]
        axes.errorbar(
            x,
            y,
            yerr=[low, high],
            label=row["method"],
            capsize=2,
            markersize=5,
            linewidth=1.3,
            **look[row["method"]],
        )
    percent(axes)
    axes.set_xticks(sorted({k for row in mains for k, _, _ in numbered(row)}))
    axes.set_xlabel("steps the problem needs")
    axes.set_ylabel("accuracy, %")
    figure.legend(loc="outside right center")
    said = "; ".join(
        f"{row['method']} " + ", ".join(f"{100 * c / n:.0f} % at {k}" for k, c, n in numbered(row))
        for row in mains
    )
    return picture(figure, f"Accuracy by number of steps: {said}.")


def numbered(row: Row) -> list[tuple[int, int, int]]:
    """(steps, correct, n) in order."""
    return sorted((int(key), *count) for key, count in row["by_steps"].items() if key.isdigit() and count[1])


def effort_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Method -> its rows at two or more efforts, in order."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["effort"] is not None and row["control"] is None:
            found[row["method"]].append(row)
    return {m: sorted(own, key=lambda r: r["effort"]) for m, own in found.items() if len(own) > 1}


@matplotlib.rc_context(STYLE)
def depth_into_steps(rows: Sequence[Row]) -> str:
    """For each number of steps, accuracy against effort: how much depth a step needs."""
    families = effort_rows(rows)
    if not families:
        return ""
    figure, all_axes = panels(len(families), width=4.4, height=3.2)
    shades = matplotlib.colormaps["viridis"]
    said = []
    steps = sorted({k for own in families.values() for row in own for k, _, _ in numbered(row)})
    for axes, (method, own) in zip(all_axes, families.items(), strict=True):
        for i, k in enumerate(steps):
            points = [(row["effort"], c / n) for row in own for key, c, n in numbered(row) if key == k]
            colour = shades(0.9 * i / max(1, len(steps) - 1))
            x, y = [p[0] for p in points], [100 * p[1] for p in points]
            axes.plot(x, y, color=colour, marker=MARKERS[i % len(MARKERS)], markersize=5, label=str(k))
            said.append(
                f"{method}, {k} steps: " + ", ".join(f"{v:.0f} % at {e}" for e, v in zip(x, y, strict=True))
            )
        if len(steps) != 1:
            x, y = [row["effort"] for row in own], [100 * row["accuracy"] for row in own]
            axes.plot(x, y, color="#000000", linestyle=":", linewidth=1.5, label="all")
        percent(axes)
        axes.set_xticks([row["effort"] for row in own])
        axes.set_title(method, fontsize=10)
        axes.set_xlabel("loops or latents at inference")
    all_axes[0].set_ylabel("accuracy, %")
    figure.legend(*all_axes[0].get_legend_handles_labels(), title="steps needed", loc="outside right center")
    return picture(figure, f"Accuracy against effort for each number of steps. {'; '.join(said)}.")


@matplotlib.rc_context(STYLE)
def controls(rows: Sequence[Row]) -> str:
    """Each method with its thoughts as they are and corrupted, beside the direct answer."""
    corrupted = [row for row in rows if row["control"] is not None and row["effort"] is None]
    methods = list(dict.fromkeys(row["method"] for row in corrupted))
    if not methods:
        return ""
    bars = [row for method in methods for row in rows if row["method"] == method and row["effort"] is None]
    figure, (axes,) = panels(1, width=7.4, height=0.9 + 0.27 * (len(bars) + len(methods)))
    look = looks(rows)
    places, place, said = [], 0.0, []
    for i, row in enumerate(bars):
        place += 1.6 if i and row["method"] != bars[i - 1]["method"] else 1.0
        places.append(place)
        own = row["control"] is None
        colour = look[row["method"]]["color"]
        axes.barh(place, 100 * row["accuracy"], color=colour, alpha=0.9 if own else 0.35, height=0.75)
        axes.errorbar(100 * row["accuracy"], place, xerr=reach(row), color="#222222", capsize=2, linewidth=1)
        said.append(f"{name_of(row)} {100 * row['accuracy']:.1f} %")
    direct = next((row for row in as_trained(rows) if row["kind"] == "direct"), None)
    if direct:
        axes.axvspan(100 * direct["low"], 100 * direct["high"], color=DIRECT, alpha=0.15, linewidth=0)
        axes.axvline(100 * direct["accuracy"], color=DIRECT, linestyle="--", linewidth=1.2)
        axes.set_title(
            f"dashed: {direct['method']}, the direct answer, with its interval", fontsize=9, loc="left"
        )
        said.append(f"direct answer {100 * direct['accuracy']:.1f} %")
    axes.set_yticks(places, [name_of(row) for row in bars])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    percent(axes, "x", top=100 * max(row["high"] for row in [*bars, *([direct] if direct else [])]))
    axes.set_xlim(left=0)
    axes.set_xlabel("accuracy, %")
    return picture(figure, f"Controls: {'; '.join(said)}.")


def name_of(row: Row) -> str:
    return row["method"] if row["control"] is None else LABELS.get(row["control"], row["control"])
