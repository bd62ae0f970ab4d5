"""What the key/value caches of an evaluation hold, take and cost in answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from quietreasoning.evaluate.grades import FIGURES
from quietreasoning.evaluate.rows import Report, Row
from quietreasoning.evaluate.statistics import wilson_share
from quietreasoning.evaluate.table import accuracy, figure
from quietreasoning.memory.kv_cache.settings import KVCacheSettings
from quietreasoning.report import html as h
from quietreasoning.report.charts import as_trained

CACHES = (
    "kB: of the caches once their prompts are answered. Times fewer: than a plain cache of the same columns. "
    "Fell back: layers that took 8 bits, of those whose error was measured. ms: a written token, in batches. "
    "Peak: of the batch that took most, above what was held before. Paired tests of caches stand below."
)


def caches_table(reports: Sequence[Report], pooled: Sequence[Row]) -> str:
    """Empty where no cache was measured. reports: as they were kept, each with its settings."""
    rows = [row for row in as_trained(pooled) if row.get("kv")]
    if not rows:
        return ""
    grade = next((name for name in FIGURES if any(graded(row, name) for row in rows)), None)
    lines = []
    for row in rows:
        cells = [row["method"], told(reports, row.get("cache")), accuracy(row)]
        cells += [graded(row, grade) or "-"] if grade else []
        lines.append(("", [*map(h.esc, cells), *measured(row["kv"])]))
    headings = ["arm", "cache", "accuracy % [95 %]", *([f"{grade} % [95 %]"] if grade else [])]
    headings += ["kB a prompt", "times fewer", "fell back %", "ms a token", "peak MB"]
    return h.table(headings, lines, figures=range(2, len(headings)), caption=CACHES, name="caches")


def graded(row: Row, name: str | None) -> str:
    """The mean grade, with Wilson at the items of one seed."""
    mean = row.get("figures", {}).get(name)
    if mean is None:
        return ""
    low, high = wilson_share(mean, row["n"])
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def measured(kv: dict[str, float | None]) -> list[str]:
    fell, speed, peak = kv["fallback_rate"], kv["tokens_s"], kv["peak_bytes"]
    return [
        figure(kv["bytes"] / 1e3),
        f"{kv['compression']:.2f}",
        figure(None if fell is None else 100 * fell),
        f"{1000 / speed:.2f}" if speed else "-",
        figure(None if peak is None else peak / 1e6),
    ]


def told(reports: Sequence[Report], name: str | None) -> str:
    """The settings of an arm's cache, without most of the usual ones; of several evaluations, each."""
    asked = [report.settings for report in reports if any(row.get("kv") for row in report.rows)]
    if name is None:
        found = [settings.get("kv_cache") for settings in asked]
    else:
        found = [each[name] for settings in asked if name in (each := settings.get("kv_caches", {}))]
    return " or ".join(dict.fromkeys("the model's own" if one is None else unusual(one) for one in found))


def unusual(settings: dict[str, Any]) -> str:
    usual = KVCacheSettings().model_dump(mode="json")
    shown = {key: usual[key] for key in ("keep_frac", "bits")}  # they say what a cache is
    shown |= {key: value for key, value in settings.items() if value != usual.get(key)}
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in shown.items())
