"""What caches hold and take beside each other, as a table under that of the answers."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from quietreasoning.evaluate.rows import Row, pool
from quietreasoning.evaluate.table import figure, label


def kv_table(rows: Iterable[Row]) -> Table | None:
    """Seeds pooled; None where no row knows of its cache."""
    pooled = [row for row in pool(rows) if "kv" in row]
    if not pooled:
        return None
    made = Table(
        box=box.SIMPLE_HEAD, padding=(0, 0, 0, 0), collapse_padding=True, show_edge=False, pad_edge=False
    )
    made.add_column("key/value caches", no_wrap=True, min_width=max(len(label(row)) for row in pooled))
    for heading in ("kB a\nprompt", "times\nfewer", "fell back\n%", "tokens\na second", "peak\nMB"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in pooled:
        kv = row["kv"]
        fell, peak = kv["fallback_rate"], kv["peak_bytes"]
        made.add_row(
            label(row),
            figure(kv["bytes"] / 1e3),
            f"{kv['compression']:.2f}",
            figure(None if fell is None else 100 * fell),
            figure(kv["tokens_s"]),
            figure(None if peak is None else peak / 1e6),
        )
    return made
