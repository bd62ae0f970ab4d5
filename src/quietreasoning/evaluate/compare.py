"""Which differences are real: paired tests between arms on the same items, and the verdict on a thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quietreasoning.evaluate.rows import LABELS, Row, arm_name
from quietreasoning.evaluate.statistics import mcnemar, paired_bootstrap, paired_counts

DECIDING = ("zero", "shuffle")  # where one of these costs nothing, the thought is inert
LEVEL = 0.05


def compare(a: str, b: str, outcomes: dict[str, str], seed: int = 0) -> dict[str, Any]:
    """Arm a against arm b on the same items: counts, difference with bootstrap interval, McNemar mid-p."""
    both, only_a, only_b, neither = paired_counts(*([c == "1" for c in outcomes[name]] for name in (a, b)))
    n = both + only_a + only_b + neither
    difference = paired_bootstrap(only_a, only_b, n, seed=seed)
    return {
        "a": a,
        "b": b,
        "n": n,
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "neither": neither,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "p": mcnemar(only_a, only_b),
    }


def compare_all(rows: Sequence[Row], outcomes: dict[str, str], seed: int = 0) -> list[dict[str, Any]]:
    """Every two methods as trained, each method with its controls and with its caches, each control with the
    direct answer."""
    trained = [row for row in rows if row["control"] is None and row["effort"] is None]
    cached = [row for row in trained if row.get("cache")]
    trained = [row for row in trained if not row.get("cache")]
    mains = [row["method"] for row in trained if row["kind"] != "shortcut"]
    direct = [row["method"] for row in trained if row["kind"] == "direct"]
    pairs = [("methods", a, b) for i, a in enumerate(mains) for b in mains[i + 1 :]]
    for row in rows:
        if row["control"] is not None:
            name = arm_name(row["method"], row["control"], row["effort"])
            pairs.append(("control", arm_name(row["method"], None, row["effort"]), name))
            pairs.extend(("control", name, answer) for answer in direct)
    pairs += [("cache", row["method"].removesuffix(f" ({row['cache']})"), row["method"]) for row in cached]
    return [
        {"about": about, **compare(a, b, outcomes, seed)}
        for about, a, b in pairs
        if a in outcomes and b in outcomes
    ]


def verdicts(rows: Sequence[Row], outcomes: dict[str, str], seed: int = 0) -> list[dict[str, Any]]:
    """For each method with controls: does its thought carry the answer?

    Inert unless shown otherwise: where zeroing or shuffling the thoughts costs nothing measurable
    (McNemar p >= 0.05, or no loss), whatever the method gained came from training, not from the thought.
    Open where so few answers are right that losing them all would not be measurable.
    """
    found = []
    for row in rows:
        if row["control"] is not None or row["kind"] not in ("quiet", "filler", "chain"):
            continue
        method, effort = row["method"], row["effort"]
        tests = {}
        for control in DECIDING:
            name = arm_name(method, control, effort)
            if name in outcomes:
                tests[control] = compare(arm_name(method, None, effort), name, outcomes, seed)
        if tests:
            free = {k: t for k, t in tests.items() if t["p"] >= LEVEL or t["difference"] <= 0}
            few = mcnemar(row["correct"], 0) >= LEVEL  # losing every right answer would not be measurable
            text = _inert(method, free) if free else _carries(method, tests)
            if few:
                text = (
                    f"{method}: whether the thought matters is open; with {row['correct']} of {row['n']} "
                    "right, no control could lose measurably."
                )
            verdict = {"method": method, "effort": effort, "controls": list(tests), "open": few}
            found.append({**verdict, "inert": bool(free) and not few, "text": text})
    return found


def _inert(method: str, free: dict[str, dict]) -> str:
    parts = []
    for control, test in free.items():
        changed = test["only_a"] + test["only_b"]
        if not changed:
            parts.append(f"{LABELS[control]}: no verdict of {test['n']} changed")
        else:
            parts.append(
                f"{LABELS[control]}: costs {100 * test['difference']:.1f} points "
                f"({100 * test['low']:.1f} to {100 * test['high']:.1f}, p = {test['p']:.2g}, n = {test['n']})"
            )
    why = "; ".join(parts)
    return f"{method}: the thought is inert ({why}). Any gain comes from training, not from the thought."


def _carries(method: str, tests: dict[str, dict]) -> str:
    parts = [
        f"{LABELS[control]}: costs {100 * test['difference']:.1f} points "
        f"({100 * test['low']:.1f} to {100 * test['high']:.1f})"
        for control, test in tests.items()
    ]
    n = next(iter(tests.values()))["n"]
    return f"{method}: the thought carries the answer ({'; '.join(parts)}; n = {n})."
