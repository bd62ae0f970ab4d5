"""`table(rows)` -> one rich table: accuracy with its interval beside its cost, seeds pooled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table

from quietreasoning.evaluate.rows import Row, pool


def table(rows: Iterable[Row], title: str | None = None) -> Table:
    """Rows of one task, of any number of seeds; the chain's passes over an arm's stand beside its own."""
    pooled = pool(rows)
    chain = chain_passes(pooled)
    seeds = max((len(row["seeds"]) for row in pooled), default=0)
    made = Table(title=title, caption=caption(pooled), title_justify="left", caption_justify="left")
    made.add_column("arm", overflow="fold")
    made.add_column("accuracy % [95 %]", justify="right", no_wrap=True)
    made.add_column(f"n x {seeds} seeds" if seeds > 1 else "n", justify="right")
    for name in ("visible tokens", "passes", "ms, batch 1", "ms, batched"):
        made.add_column(name, justify="right")
    last = None
    for row in pooled:
        if last is not None and last["method"] != row["method"] and row["kind"] != last["kind"] == "control":
            made.add_section()
        last = row
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
        passes(row, chain),
        figure(row["ms"]),
        figure(row["ms_batched"]),
    ]


def label(row: Row) -> str:
    """Controls and efforts are indented under their method."""
    if row["control"] is None and row["effort"] is None:
        return row["method"]
    parts = [] if row["effort"] is None else [f"effort {row['effort']}"]
    return f"  {row['method']}, " + ", ".join([*parts, *([row["control"]] if row["control"] else [])])


def accuracy(row: Row) -> str:
    return f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def passes(row: Row, chain: float | None) -> str:
    """`4.0 (5.0x fewer)`, the ratio to the visible chain's."""
    said = figure(row["passes"])
    if row["kind"] != "quiet" or not chain or not row["passes"]:
        return said
    ratio = chain / row["passes"]
    return f"{said} ({ratio:.1f}x fewer)" if ratio >= 1 else f"{said} ({1 / ratio:.1f}x more)"


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
            "Mean over seeds; interval: the wider of Student's t over seeds and Wilson over the items of one seed."
        )
    else:
        parts.append("Interval: Wilson 95 %.")
    batches = sorted({row["batch"] for row in pooled if row["batch"]})
    if batches:
        parts.append(f"ms per example, batched at {', '.join(map(str, batches))}.")
    splits = sorted({row["split"] for row in pooled})
    parts.append(f"Split: {', '.join(splits)}." if splits else "No rows.")
    return " ".join(parts)
