"""What a set of evaluations shows, and what it does not: sentences and paired tests over seeds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from quietreasoning.evaluate.compare import LEVEL
from quietreasoning.evaluate.rows import Report, Row
from quietreasoning.evaluate.table import accuracy, figure, perplexity


def shown(reports: Sequence[Report], pooled: Sequence[Row]) -> list[str]:
    """What each quiet method reached and saved, then what its controls say; over seeds."""
    return [*reached(pooled), *tested(reports)]


def reached(pooled: Sequence[Row]) -> list[str]:
    """One sentence a quiet method, then one for the chain and the direct answer beside them."""
    trained = [row for row in pooled if row["control"] is None and row["effort"] is None]
    quiet = [row for row in trained if row["kind"] == "quiet"]
    beside = [row for kind in ("chain", "direct") for row in trained if row["kind"] == kind]
    lines = [f"{row['method']} reaches {accuracy(row)} % with {spent(row)}." for row in quiet or beside]
    if quiet and beside:
        said = [f"{row['method']} {accuracy(row)} % with {spent(row)}" for row in beside]
        lines.append(f"Beside {'it' if len(quiet) == 1 else 'them'}: {'; '.join(said)}.")
    return lines


def predicted(pooled: Sequence[Row]) -> list[str]:
    """One sentence an arm that read running text."""
    return [
        f"{row['method']} predicts the text at perplexity {perplexity(row)}; {accuracy(row)} % of its tokens "
        "come first."
        for row in pooled
    ]


def about_text(reports: Sequence[Report]) -> list[str]:
    """What a reader must not conclude from a perplexity."""
    return [
        "Perplexities of different tokenizers cannot be compared.",
        "How well text is predicted says nothing about answers.",
        *provenance(reports, any(report.split == "test" for report in reports)),
    ]


def spent(row: Row) -> str:
    tokens = figure(row["visible_tokens"]) if row["visible_tokens"] else "no"
    return f"{tokens} visible tokens and {figure(row['passes'])} sequential passes"


def tested(reports: Sequence[Report]) -> list[str]:
    """One sentence a method whose thoughts were corrupted; with one seed the whole verdict."""
    lines = []
    for method, found in as_trained(reports).items():
        if any(is_open(verdict) for verdict in found):
            continue  # said under what is not shown
        inert = sum(verdict["inert"] for verdict in found)
        either = " or " if inert else " and "
        names = either.join(f"'{control}'" for control in found[0]["controls"])
        if len(found) == 1:
            lines.append(found[0]["text"])
        elif inert:
            lines.append(
                f"{method}: the thought is inert in {inert} of {len(found)} seeds ({names} costs nothing "
                "measurable there). Any gain comes from training, not from the thought."
            )
        else:
            lines.append(
                f"{method}: the thought carries the answer in all {len(found)} seeds ({names} costs "
                "measurably in each)."
            )
    return lines


def undecided(reports: Sequence[Report]) -> list[str]:
    """One sentence a method with too few right answers for its controls to say anything."""
    lines = []
    for method, found in as_trained(reports).items():
        number = sum(is_open(verdict) for verdict in found)
        if number and len(found) == 1:
            lines.append(found[0]["text"])
        elif number:
            lines.append(
                f"{method}: whether the thought matters is open; in {number} of {len(found)} seeds too few "
                "answers are right to tell."
            )
    return lines


def as_trained(reports: Sequence[Report]) -> dict[str, list[dict[str, Any]]]:
    """Method -> its verdicts, one a seed."""
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for report in reports:
        for verdict in report.verdicts:
            if verdict["effort"] is None:
                by_method[verdict["method"]].append(verdict)
    return by_method


def is_open(verdict: dict[str, Any]) -> bool:
    return verdict.get("open", False)


def not_shown(reports: Sequence[Report], pooled: Sequence[Row]) -> list[str]:
    """What a reader must not conclude."""
    lines = []
    kinds = {row["kind"] for row in pooled}
    if "direct" not in kinds:
        lines.append("No direct answer stands beside these figures, so no gain over it is shown.")
    if "chain" not in kinds:
        lines.append("No visible chain stands beside these figures, so no saving against it is shown.")
    controlled = {verdict["method"] for report in reports for verdict in report.verdicts}
    for row in pooled:
        alone = row["kind"] == "quiet" and row["effort"] is None and not row.get("cache")
        if alone and row["method"] not in controlled:
            lines.append(
                f"{row['method']}: no zeroed or shuffled control, so whether its thought matters is open."
            )
    lines += undecided(reports)
    for row in pooled:
        if row["unanswered"] and row["control"] is None and row["effort"] is None:
            lines.append(
                f"{row['method']} wrote no answer to {row['unanswered']} of {row['n'] * len(row['seeds'])} "
                "prompts; if its text was cut short, raise eval.max_new_tokens."
            )
    lines += provenance(reports, any(row["split"] == "test" for row in pooled))
    lines.append("Paired tests are not corrected for their number.")
    lines.append(f"Milliseconds hold for this device only: {', '.join(sorted({r.device for r in reports}))}.")
    return lines


def provenance(reports: Sequence[Report], test: bool) -> list[str]:
    """Which split, how many seeds, whether all of it is here."""
    lines = ["Validation split: settings may have been chosen by it, so these are no final figures."]
    if test:
        lines = ["Test split: final figures only; nothing may be chosen by them."]
    if len({report.seed for report in reports}) == 1:
        lines.append("One training seed: how much another seed would differ is not shown.")
    if any(not report.complete for report in reports):
        lines.append("An evaluation was stopped early; its missing arms are not here.")
    return lines


def comparisons(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """One dict a pair of arms: mean difference over seeds, its interval (one seed) or range, p of each."""
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for report in reports:
        for test in report.comparisons:
            pairs[test["a"], test["b"]].append(test)
    found = []
    for (a, b), tests in pairs.items():
        differences = [test["difference"] for test in tests]
        alone = len(tests) == 1
        found.append(
            {
                "a": a,
                "b": b,
                "seeds": len(tests),
                "difference": sum(differences) / len(tests),
                "low": tests[0]["low"] if alone else min(differences),
                "high": tests[0]["high"] if alone else max(differences),
                "only_a": sum(test["only_a"] for test in tests),
                "only_b": sum(test["only_b"] for test in tests),
                "p": [test["p"] for test in tests],
                "about": tests[0]["about"],
                "reading": reading(a, b, tests),
            }
        )
    return found


def reading(a: str, b: str, tests: Sequence[dict[str, Any]]) -> str:
    """`slots better`, `not measurable`, or how many seeds say which."""
    said = Counter(a if test["difference"] > 0 else b for test in tests if test["p"] < LEVEL)
    if not said:
        return "not measurable"
    if len(tests) == 1 or (len(said) == 1 and said.total() == len(tests)):
        return f"{next(iter(said))} better"
    return ", ".join(f"{name} better in {count} of {len(tests)} seeds" for name, count in said.items())
