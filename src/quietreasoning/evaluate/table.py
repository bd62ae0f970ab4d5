"""`table(rows)` -> one rich table: accuracy with its interval beside its cost, seeds pooled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

from quietreasoning.evaluate.rows import Row, arm_name, pool


def table(rows: Iterable[Row], title: str | None = None) -> Table:
    """Rows of one task, of any number of seeds; `@ 2` is effort 2, `+ zero` a control."""
    pooled = pool(rows)
    chain = chain_passes(pooled)
    seeds = max((len(row["seeds"]) for row in pooled), default=0)
    made = Table(
        title=title,
        caption=caption(pooled),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    made.add_column("arm", no_wrap=True, min_width=max((len(label(row)) for row in pooled), default=3))
    made.add_column("accuracy %\n[95 %]", justify="right", no_wrap=True)
    made.add_column(f"n x\n{seeds} seeds" if seeds > 1 else "n", justify="right", no_wrap=True)
    for name in ("visible\ntokens", "passes", "vs.\nchain", "ms,\nbatch 1", "ms,\nbatched"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in pooled:
        if row["control"] is None and row["effort"] is None and made.row_count:
            made.add_section()
        made.add_row(*cells(row, chain), style="dim" if row["kind"] in ("control", "shortcut") else None)
    return made


def text(rows: Iterable[Row], title: str | None = None, width: int = 110) -> str:
    """The same as plain text."""
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table(rows, title))
    return out.getvalue()


def cells(row: Row, chain: float | None) -> list[str]:
    """A pooled row as strings."""
    return [
        label(row),
        accuracy(row),
        str(row["n"]) if len(row["seeds"]) == 1 else f"{row['n']} x {len(row['seeds'])}",
        figure(row["visible_tokens"]),
        figure(row["passes"]),
        saving(row, chain),
        figure(row["ms"]),
        figure(row["ms_batched"]),
    ]


def label(row: Row) -> str:
    """Controls and efforts are indented under their method: `  + zero`, `  @ 2`."""
    if row["control"] is None and row["effort"] is None:
        return row["method"]
    return "  " + arm_name("", row["control"], row["effort"]).strip()


def accuracy(row: Row) -> str:
    return f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def saving(row: Row, chain: float | None) -> str:
    """How many times fewer sequential passes than the visible chain: `4.5x`."""
    if row["kind"] not in ("quiet", "control") or not chain or not row["passes"]:
        return "-" if row["kind"] != "chain" else "1.0x"
    return f"{chain / row['passes']:.1f}x"


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def chain_passes(pooled: Sequence[Row]) -> float | None:
    """Sequential passes of the visible chain, where one was evaluated."""
    return next((row["passes"] for row in pooled if row["kind"] == "chain"), None)


def caption(pooled: Sequence[Row]) -> str:
    """What the intervals and the batched time mean."""
    parts = []
    if any(len(row["seeds"]) > 1 for row in pooled):
        parts.append(
            "Mean over seeds; interval: the wider of Student's t over seeds and Wilson over one seed's items."
        )
    else:
        parts.append("Interval: Wilson 95 %.")
    batches = sorted({row["batch"] for row in pooled if row["batch"]})
    if batches:
        parts.append(
            f"vs. chain: its passes over the arm's. ms per example, batched at {', '.join(map(str, batches))}."
        )
    splits = sorted({row["split"] for row in pooled})
    parts.append(f"Split: {', '.join(splits)}." if splits else "No rows.")
    return " ".join(parts)
