"""The rows of an evaluation: one shape feeds table, JSON and report. `eval/rows.json` holds reports."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.evaluate.call_figures import pooled_figures
from quietreasoning.evaluate.leakage import pooled_leakage
from quietreasoning.evaluate.statistics import Interval, mean_interval, seed_interval

FORMAT = 1
LARGEST = 700.0  # exp of more is no float
MEANS = ("visible_tokens", "passes", "latent_steps", "ms", "ms_batched")
COSTS = (*MEANS, "batch")
LABELS = {
    "zero": "thoughts zeroed",
    "shuffle": "thoughts of another row",
    "mean": "batch mean of the thoughts",
    "noise": "noise of the thoughts' norm",
    "filler": "filler in place of thoughts",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What `evaluate` found on one task with one seed.

    rows: one dict an arm: task, split, method, kind ("direct", "chain", "quiet", "filler", "control",
    "shortcut", "text"), control, effort, seed, n, correct, accuracy, low, high (Wilson 95 %), unanswered
    (items without an answer), visible_tokens, passes, latent_steps (means), ms (median, batch 1), ms_batched
    (per example), batch (rows in the batches timed), by_steps {number of steps: [correct, n]}, groups {name
    the task gave: [accuracy, n]}.
    Kind "text": n windows; correct and accuracy are about next tokens, low and high bootstrapped; further
    tokens (those predicted), nll (mean a token), perplexity, perplexity_low, perplexity_high; and figures
    {name: value} of a method that answers nothing. No outcomes.
    Where tool calls are scored: figures {name: mean} of call_figures.py, figure_rows {name: rows counted}.
    Where answers can be right in part: those two of grades.py, and group_figures {group: [mean grade, n]}.
    Of what was written: leakage {figure of leakage.leakage: value}, or None where no answer has a token.
    Where caches are compared: kv {figure of Meter.figures: value}, and cache, its name, of a row with one.
    Where a method says how sure it is: trust {figure of calibration.trust: value}; pooled: mean over seeds.
    outcomes: arm name -> one "0" or "1" an item, in the order of `items`, for paired tests.
    """

    task: str
    split: str
    seed: int
    rows: tuple[Row, ...]
    items: tuple[str, ...] = ()
    outcomes: dict[str, str] = field(default_factory=dict)
    comparisons: tuple[dict, ...] = ()
    verdicts: tuple[dict, ...] = ()
    samples: tuple[dict, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    complete: bool = True

    def row(self, method: str, control: str | None = None, effort: int | None = None) -> Row:
        """The row of one arm; KeyError names those there are."""
        for row in self.rows:
            if (row["method"], row["control"], row["effort"]) == (method, control, effort):
                return row
        raise KeyError(f"no row for {method}, {control}, {effort}; rows: {', '.join(self.outcomes)}")

    @property
    def inert(self) -> tuple[str, ...]:
        """Labels of methods whose thoughts were found to carry nothing."""
        return tuple(verdict["method"] for verdict in self.verdicts if verdict["inert"])


def arm_name(label: str, control: str | None, effort: int | None) -> str:
    """`slots`, `slots + zero`, `slots @ 2`."""
    name = label if effort is None else f"{label} @ {effort}"
    return name if control is None else f"{name} + {control}"


def unambiguous(rows: Iterable[Row]) -> list[Row]:
    """Rows for `--json`: an arm at another effort is a method of its own, `slots @ 2`, so that task, method,
    control and seed name one row."""
    return [row | {"method": arm_name(row["method"], None, row["effort"])} for row in rows]


def save(path: Path, reports: Iterable[Report]) -> None:
    """Write reports beside those in the file; one of the same task, split and seed is replaced, but never a
    complete one by part of one. A file that is no evaluation is renamed."""
    try:
        kept = {_key(report): report for report in (load(path) if path.exists() else [])}
    except UserError:
        os.replace(path, path.with_name(f"damaged-{path.name}"))
        kept = {}
    for report in reports:
        before = kept.get(_key(report))
        if report.complete or before is None or not before.complete:
            kept[_key(report)] = report
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".tmp-{path.name}")
    content = {"format": FORMAT, "reports": [asdict(report) for report in kept.values()]}
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(draft, path)


def load(path: Path) -> list[Report]:
    """Reports of a rows.json. UserError where it is broken or of another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} has format {content['format']}, this version reads {FORMAT}; run quiet eval again"
            )
        return [_from_dict(report) for report in content["reports"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no evaluation ({error}); run quiet eval again to replace it") from None


def _from_dict(report: dict[str, Any]) -> Report:
    lists = {key: tuple(value) for key, value in report.items() if isinstance(value, list)}
    return Report(**{**report, **lists})


def _key(report: Report) -> tuple[str, str, int]:
    return report.task, report.split, report.seed


def pool(rows: Iterable[Row]) -> list[Row]:
    """One row an arm, over its seeds, in the order of first appearance.

    accuracy is the mean over seeds; low and high are `statistics.mean_interval` of it: the wider, at
    each end, of Student's t over seeds and Wilson at the items of one seed. `seeds` lists the seeds,
    `accuracies` what each reached; costs are means over seeds; by_steps adds up. Where an arm has two
    rows of the same seed, the later one counts.
    """
    groups: dict[tuple, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        arm = (row["task"], row["split"], row["method"], row["control"], row["effort"])
        groups[arm][row["seed"]] = row
    return [_pooled(list(by_seed.values())) for by_seed in groups.values()]


def _pooled(rows: Sequence[Row]) -> Row:
    accuracies = [row["accuracy"] for row in rows]
    text = rows[0]["kind"] == "text"
    if text:
        low, high = seed_interval(accuracies, [Interval(row["low"], row["high"]) for row in rows])
        low, high = max(0.0, low), min(1.0, high)
    else:
        low, high = mean_interval(accuracies, min(row["n"] for row in rows))
    steps: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        for key, (correct, n) in row["by_steps"].items():
            steps[key].update(correct=correct, n=n)
    return {
        **rows[0],
        "seed": rows[0]["seed"] if len(rows) == 1 else None,
        "seeds": [row["seed"] for row in rows],
        "accuracies": accuracies,
        "n": min(row["n"] for row in rows),
        "correct": sum(row["correct"] for row in rows),
        "unanswered": sum(row["unanswered"] for row in rows),
        "accuracy": sum(accuracies) / len(rows),
        "low": low,
        "high": high,
        **{key: _mean([row[key] for row in rows]) for key in MEANS},
        "by_steps": {
            key: [steps[key]["correct"], steps[key]["n"]] for key in sorted(steps, key=_number_first)
        },
        "groups": _pooled_groups(rows, "groups"),
        **(_pooled_text(rows) if text else pooled_figures(rows)),
        **({"group_figures": _pooled_groups(rows, "group_figures")} if "group_figures" in rows[0] else {}),
        **_pooled_trust(rows),
        **_pooled_kv(rows),
        **pooled_leakage(rows),
    }


def _pooled_groups(rows: Sequence[Row], key: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, (mean, n) in row.get(key, {}).items():
            before, counted = found.get(name, (0.0, 0))
            found[name] = [(before * counted + mean * n) / (counted + n), counted + n]
    return found


def _pooled_trust(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    found = [row["trust"] for row in rows if "trust" in row]
    return {"trust": {name: _mean([one[name] for one in found]) for name in found[0]}} if found else {}


def _pooled_kv(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    found = [row["kv"] for row in rows if "kv" in row]
    return {"kv": {name: _mean([one[name] for one in found]) for name in found[0]}} if found else {}


def _pooled_text(rows: Sequence[Row]) -> dict[str, float]:
    """Perplexity of the mean log-likelihood over seeds."""
    nlls = [row["nll"] for row in rows]
    reach = [Interval(math.log(row["perplexity_low"]), math.log(row["perplexity_high"])) for row in rows]
    low, high = seed_interval(nlls, reach)
    mean = sum(nlls) / len(nlls)
    figures = {"perplexity": mean, "perplexity_low": low, "perplexity_high": high}
    return {"nll": mean} | {name: math.exp(min(value, LARGEST)) for name, value in figures.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number_first(key: str) -> tuple[bool, int, str]:
    return not key.isdigit(), int(key) if key.isdigit() else 0, key
