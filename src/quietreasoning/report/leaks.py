"""How much of the answers is working that should have stayed inside: a table of arms, and what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quietreasoning.evaluate.leakage import BOUND, NGRAM
from quietreasoning.evaluate.rows import Row
from quietreasoning.evaluate.statistics import Z95
from quietreasoning.report import html as h
from quietreasoning.report.charts import as_trained

LIMIT = f"{100 * BOUND:g} %"
ENOUGH = math.ceil(Z95**2 * (1 - BOUND) / BOUND)  # answers without a leak that put Wilson's end at the bound
LEAKAGE = (
    "Share of the answer's tokens inside a phrase of eval.lexicon, between thinking tokens, or inside "
    f"{NGRAM} words in a row of the gold steps; a visible chain is none. Interval: the wider of a bootstrap "
    f"over answers and Wilson at their number; {ENOUGH} answers without a leak put its end at {LIMIT}. "
    "Working in other words is not found: read the samples too."
)
SEEDS = " Over seeds: shares of all tokens, the mean reach of their intervals."


def audited(pooled: Sequence[Row]) -> list[Row]:
    return [row for row in as_trained(pooled) if row.get("leakage")]


def within(row: Row) -> bool | None:
    """Whether an arm keeps to the bound; None where its interval holds both."""
    found = row["leakage"]
    return True if found["high"] <= BOUND else False if found["low"] > BOUND else None


def leakage_table(pooled: Sequence[Row]) -> str:
    """Empty where no arm was audited."""
    rows = audited(pooled)
    if not rows:
        return ""
    lines = []
    for row in rows:
        found = row["leakage"]
        cells = [f"{100 * found[name]:.2f}" for name in ("lexicon", "steps")]
        cells = [row["method"], share(row), *cells, f"{found['tokens']:,}", f"{found['answers']:,}"]
        lines.append(("own", [*map(h.esc, cells), reading(within(row))]))
    headings = ["arm", "answer tokens that leak % [95 %]", "in the lexicon", "in gold steps", "answer tokens"]
    headings += ["answers that leak", f"at most {LIMIT}"]
    note = LEAKAGE + (SEEDS if any(len(row["seeds"]) > 1 for row in rows) else "")
    return h.table(headings, lines, figures=range(1, 6), caption=note, name="leaks")


def share(row: Row) -> str:
    found = row["leakage"]
    return f"{100 * found['share']:.2f} [{100 * found['low']:.2f}, {100 * found['high']:.2f}]"


def reading(kept: bool | None) -> str:
    if kept is None:
        return "open"
    return '<span class="right">yes</span>' if kept else '<span class="wrong">no</span>'


def leakage_shown(pooled: Sequence[Row]) -> list[str]:
    """One sentence for the arms that keep to the bound, one for each that leaks."""
    clean = [row for row in audited(pooled) if within(row)]
    lines = [
        f"{row['method']} leaks its working: {share(row)} % of its answer tokens."
        for row in audited(pooled)
        if within(row) is False
    ]
    if clean:
        names = ", ".join(row["method"] for row in clean)
        high = max(row["leakage"]["high"] for row in clean)
        lines.append(f"At most {100 * high:.2f} % of the answer tokens leak working: {names}.")
    return lines


def leakage_not_shown(pooled: Sequence[Row]) -> list[str]:
    """One sentence for all arms whose interval holds the bound."""
    rows = [row for row in audited(pooled) if within(row) is None]
    if not rows:
        return []
    high = max(row["leakage"]["high"] for row in rows)
    names = ", ".join(row["method"] for row in rows)
    return [f"Whether at most {LIMIT} of the answer tokens leak is open (up to {100 * high:.2f} %): {names}."]
