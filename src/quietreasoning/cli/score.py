"""`quiet score FILE --rules R.yaml`: texts by rules, with evidence and an exit code."""

from __future__ import annotations

from typing import Any

import typer

from quietreasoning.cli.guard import guarded
from quietreasoning.cli.train import JSON

SHOWN = 5  # places a rule


@guarded
def score(
    file: str = typer.Argument(..., metavar="FILE", help="A text, or JSONL that is scored row by row."),
    rules: str = typer.Option(..., "--rules", metavar="R.yaml", help="The rules."),
    evidence: str = typer.Option(
        None,
        "--evidence",
        metavar="FILE",
        help="What claims are held against: a text, or JSONL of id and text.",
    ),
    field: str = typer.Option(
        None, "--field", metavar="NAME", help="Which field of a row is scored; default: text."
    ),
    json: str = JSON,
) -> int:
    """Score texts by rules: exit code 0 where all hard rules hold and the total is enough, else 1."""
    from quietreasoning.cli.output import json_alone, write_json
    from quietreasoning.evaluate.rules.load import load_rules
    from quietreasoning.evaluate.rules.rows import read_evidence, read_rows

    scorer = load_rules(rules)
    sources = read_evidence(evidence) if evidence is not None else ()
    rows = read_rows(file, field, sources)
    found = [(row, scorer.score(row.text, row.context)) for row in rows]
    with json_alone(json):
        for note in scorer.notes():
            typer.echo(f"quiet: note: {note}", err=True)
        _tell(found, scorer)
    write_json(
        json,
        {
            "file": file,
            "rules": rules,
            **({"about": dict(scorer.about)} if scorer.about else {}),
            "threshold": scorer.threshold,
            "n": len(found),
            "kept": sum(one.kept for _, one in found),
            "rows": [{"line": row.line} | one.as_dict() for row, one in found],
        },
    )
    return scorer.exit_code(one for _, one in found)


def _tell(found: list[Any], scorer: Any) -> None:
    """Of one text every rule; of many the rules that failed."""
    from quietreasoning.cli.output import print_table

    single = len(found) == 1
    lines = []
    for row, one in found:
        for outcome in one.outcomes if single else one.failed():
            shown = "-" if outcome.score is None else f"{outcome.score:.2f}"
            kind = f"{outcome.kind}, {'hard' if outcome.hard else f'weight {outcome.weight:g}'}"
            lines.append(
                (row.line, outcome.rule, kind, outcome.severity, shown, outcome.verdict, _evidence(outcome))
            )
    headings = ("line", "rule", "kind", "severity", "score", "verdict", "evidence (characters)")
    if lines:
        print_table(headings[single:], [line[single:] for line in lines])
    kept, (_, one) = sum(one.kept for _, one in found), found[0]
    if single:
        hard = "all hard rules hold" if one.holds else "a hard rule failed"
        if not one.holds and not any(o.hard and o.verdict == "fail" for o in one.outcomes):
            hard = "there is nothing to judge"
        typer.echo(f"total {one.total:.2f}, threshold {scorer.threshold:g}; {hard}")
    else:
        mean = sum(one.total for _, one in found) / len(found)
        typer.echo(f"{kept} of {len(found)} rows kept, mean total {mean:.2f}, threshold {scorer.threshold:g}")


def _evidence(outcome: Any) -> str:
    places = [f"{mark.start}-{mark.end}: {mark.message}" for mark in outcome.marks[:SHOWN]]
    if len(outcome.marks) > SHOWN:
        places.append(f"and {len(outcome.marks) - SHOWN} more")
    return "; ".join(([outcome.note] if outcome.note else []) + places)
