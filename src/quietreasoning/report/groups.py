"""Accuracy, or the grade of answers that can be right in part, by the groups a task names."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

from quietreasoning.evaluate.rows import Row
from quietreasoning.evaluate.statistics import wilson_share
from quietreasoning.report import html as h
from quietreasoning.report.charts import STYLE, as_trained, looks, panels, percent, picture

GROUPS = (
    "Bars: Wilson 95 % at the items of all seeds, wider than needed where answers are right in part. A group "
    "of few items says little."
)
Shares = dict[str, list[float]]  # group -> [mean, items]


def groups_part(pooled: Sequence[Row]) -> list[str]:
    """The picture under its heading, its figures folded away; [] where nothing falls into groups."""
    rows = [row for row in as_trained(pooled) if len(shares(row)) > 1]
    if not rows:
        return []
    title = f"{what(rows[0]).capitalize()} by group"
    figures = f"<details><summary>Figures</summary>{groups_table(rows)}</details>"
    return [f"<h3>{title}</h3>", h.figure(groups_picture(rows, pooled), GROUPS), figures]


def shares(row: Row) -> Shares:
    """Those of grades, else of accuracy, unless these only repeat the numbers of steps."""
    if row.get("group_figures"):
        return row["group_figures"]
    steps = sorted([right / n, n] for right, n in row["by_steps"].values() if n)
    return {} if sorted(row["groups"].values()) == steps else row["groups"]


def what(row: Row) -> str:
    return next(iter(row["figures"])) if row.get("group_figures") else "accuracy"


def names_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in shares(row)))


@matplotlib.rc_context(STYLE)
def groups_picture(rows: Sequence[Row], pooled: Sequence[Row]) -> str:
    """A line a group, a mark an arm."""
    names, look, said = names_of(rows), looks(pooled), []
    figure, (axes,) = panels(1, width=7.4, height=1.0 + len(names) * max(0.3, 0.14 * len(rows)))
    shift = 0.7 / len(rows)
    for i, row in enumerate(rows):
        own = [(names.index(name), *share) for name, share in shares(row).items()]
        y = [place + (i - (len(rows) - 1) / 2) * shift for place, _, _ in own]
        x = [100 * mean for _, mean, _ in own]
        ends = [wilson_share(mean, n) for _, mean, n in own]
        low = [v - 100 * end.low for v, end in zip(x, ends, strict=True)]
        high = [100 * end.high - v for v, end in zip(x, ends, strict=True)]
        axes.errorbar(
            x, y, xerr=[low, high], linestyle="", capsize=2, markersize=5, label=row["method"],
            **look[row["method"]],
        )  # fmt: skip
        each = ", ".join(f"{100 * mean:.1f} % of {names[place]}" for place, mean, _ in own)
        said.append(f"{row['method']} {each}")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first group on top
    axes.grid(axis="y", visible=False)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color="#e6e6e6", linewidth=0.6)
    percent(axes, "x")
    axes.set_xlabel(f"{what(rows[0])}, %")
    figure.legend(loc="outside right center")
    return picture(figure, f"{what(rows[0]).capitalize()} by group: {'; '.join(said)}.")


def groups_table(rows: Sequence[Row]) -> str:
    lines = []
    for name in names_of(rows):
        found = [shares(row).get(name) for row in rows]
        items = sorted({f"{share[1]:g}" for share in found if share})
        lines.append(("", [h.esc(name), " or ".join(items), *map(cell, found)]))
    headings = ["group", "items", *(row["method"] for row in rows)]
    note = f"{what(rows[0]).capitalize()} in %, Wilson 95 %."
    return h.table(headings, lines, figures=range(1, len(headings)), caption=note)


def cell(share: list[float] | None) -> str:
    if share is None:
        return "-"
    mean, n = share
    low, high = wilson_share(mean, n)
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
