"""`table(rows)` -> one rich table: accuracy with its interval beside its cost, seeds pooled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

from quietreasoning.evaluate.call_figures import FORMS, NAMES
from quietreasoning.evaluate.grades import FIGURES
from quietreasoning.evaluate.rows import Row, arm_name, pool


def table(rows: Iterable[Row], title: str | None = None) -> Table:
    """Rows of one task, of any number of seeds; `@ 2` is effort 2, `+ zero` a control.

    Fits 80 columns; how many items and seeds stands below, or in a column where rows differ.
    """
    pooled = pool(rows)
    made = Table(
        title=title,
        caption=caption(pooled),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 0),
        collapse_padding=True,
        show_edge=False,
        pad_edge=False,
    )
    made.add_column("arm", no_wrap=True, min_width=max((len(label(row)) for row in pooled), default=3))
    differ = len({sample_size(row) for row in pooled}) > 1
    columns = text_columns() if is_text(pooled) else answer_columns(pooled)
    if differ:
        columns["n"] = sample_size
    for name in columns:
        made.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in pooled:
        own = row["control"] is None and row["effort"] is None and not row.get("cache")
        if last and own and not row["kind"] == last["kind"] == "shortcut":
            made.add_section()
        last = row
        faint = row["kind"] in ("control", "shortcut")
        values = [value(row) for value in columns.values()]
        made.add_row(label(row), *values, style="dim" if faint else None)
    return made


def figures_table(rows: Iterable[Row]) -> Table | None:
    """How the calls of each arm were, or how much of its answers is right, seeds pooled: a column a figure,
    with the rows it counts in its heading where that is the same in all arms; None where no row has such
    figures."""
    pooled = [row for row in pool(rows) if row["kind"] != "text" and row["figures"]]
    if not pooled:
        return None
    names = [name for name in (*NAMES, *FORMS, *FIGURES) if any(name in row["figures"] for row in pooled)]
    made = Table(
        box=box.SIMPLE_HEAD, padding=(0, 0, 0, 0), collapse_padding=True, show_edge=False, pad_edge=False
    )
    what = "in part, %" if set(names) <= set(FIGURES) else "calls, %"
    made.add_column(what, no_wrap=True, min_width=max(len(label(row)) for row in pooled))
    for name in names:
        counts = {row["figure_rows"].get(name, 0) for row in pooled}
        said = f"n = {counts.pop()}" if len(counts) == 1 else "n differs"
        made.add_column(f"{name.replace('_', ' ')}\n{said}", justify="right", no_wrap=True)
    for row in pooled:
        values = (row["figures"].get(name) for name in names)
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        faint = row["kind"] in ("control", "shortcut")
        made.add_row(label(row), *cells, style="dim" if faint else None)
    return made


def trust_lines(rows: Iterable[Row]) -> list[str]:
    """What the confidences of each arm that has some are worth, seeds pooled; controls are left out."""
    return [
        f"{arm_name(row['method'], None, row['effort'])}, how sure it is: ECE {found['ece']:.3f} "
        f"(equal mass {found['ece_mass']:.3f}), Brier {found['brier']:.3f} "
        f"(the mean alone {found['brier_of_the_mean']:.3f}), "
        f"risk over coverages {found['risk_area']:.3f} (error {found['error']:.3f})"
        for row in pool(rows)
        if row["control"] is None and (found := row.get("trust"))
    ]


def answer_columns(pooled: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Heading -> cell of a row."""
    chain = chain_passes(pooled)
    batches = sorted({row["batch"] for row in pooled if row["batch"]})
    batched = f"ms at\n{batches[0]}" if len(batches) == 1 else "ms in\nbatch"
    return {
        "accuracy %\n[95 %]": accuracy,
        "visible\ntokens": lambda row: figure(row["visible_tokens"]),
        "passes": lambda row: figure(row["passes"]),
        "vs.\nchain": lambda row: saving(row, chain),
        "ms at\n1": lambda row: figure(row["ms"]),
        batched: lambda row: figure(row["ms_batched"]),
    }


def text_columns() -> dict[str, Callable[[Row], str]]:
    return {
        "perplexity\n[95 %]": perplexity,
        "next token %\n[95 %]": accuracy,
        "tokens": lambda row: str(row["tokens"]),
        "ms a\nwindow": lambda row: figure(row["ms_batched"]),
    }


def is_text(pooled: Sequence[Row]) -> bool:
    return bool(pooled) and all(row["kind"] == "text" for row in pooled)


def text(rows: Iterable[Row], title: str | None = None, width: int = 110) -> str:
    """The same as plain text."""
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table(rows, title))
    return out.getvalue()


def sample_size(row: Row) -> str:
    """`500`, or `500 x 3` over three seeds."""
    return str(row["n"]) if len(row["seeds"]) == 1 else f"{row['n']} x {len(row['seeds'])}"


def label(row: Row) -> str:
    """Controls, efforts and caches are indented under their method: `  + zero`, `  @ 2`, `  (int4)`."""
    if row.get("cache"):
        return f"  ({row['cache']})"
    if row["control"] is None and row["effort"] is None:
        return row["method"].replace("shortcut", "rule")
    return "  " + arm_name("", row["control"], row["effort"]).strip()


def accuracy(row: Row) -> str:
    return f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def perplexity(row: Row) -> str:
    low, high = row["perplexity_low"], row["perplexity_high"]
    return f"{row['perplexity']:.2f} [{low:.2f}, {high:.2f}]"


def saving(row: Row, chain: float | None) -> str:
    """How many times fewer sequential passes than the visible chain: `4.5x`."""
    if row["kind"] not in ("quiet", "control", "chain") or not chain or not row["passes"]:
        return "-"
    return f"{chain / row['passes']:.1f}x"


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def chain_passes(pooled: Sequence[Row]) -> float | None:
    """Sequential passes of the visible chain; None where none was evaluated, or several were."""
    own = [row for row in pooled if row["effort"] is None and not row.get("cache")]
    chains = [row["passes"] for row in own if row["kind"] == "chain"]
    return chains[0] if len(chains) == 1 else None


def caption(pooled: Sequence[Row]) -> str:
    """What was counted, and what the intervals and the batched time mean."""
    if not pooled:
        return "No rows."
    splits = ", ".join(sorted({row["split"] for row in pooled}))
    sizes = {sample_size(row) for row in pooled}
    what = " windows" if is_text(pooled) else ""
    parts = [f"n = {sizes.pop()}{what} ({splits})." if len(sizes) == 1 else f"Split: {splits}."]
    seeds = any(len(row["seeds"]) > 1 for row in pooled)
    if is_text(pooled):
        parts.append("Interval: bootstrap over windows")
        parts[-1] += ", or Student's t over seeds where wider." if seeds else "."
        return " ".join(parts)
    if seeds:
        parts.append("Mean over seeds; interval: the wider of Student's t over seeds, Wilson over items.")
    else:
        parts.append("Interval: Wilson.")
    parts.append("vs. chain: the chain's passes over the arm's.")
    parts.append("ms: per example, alone and in batches.")
    return " ".join(parts)
