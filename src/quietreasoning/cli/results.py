"""`quiet demo | eval | report`: figures with their controls and costs."""

from __future__ import annotations

import typer

from quietreasoning.cli.guard import guarded, resumable
from quietreasoning.cli.train import JSON, SETTINGS

RUNS = typer.Argument(..., metavar="RUN...", help="Run folders to compare.")
RUN = typer.Argument(..., metavar="RUN", help="A run folder, or one of its checkpoints.")


@guarded
def demo(
    seeds: str = typer.Option("0", "--seeds", metavar="0,1,2", help="Seeds to train, one story each."),
    out: str = typer.Option("runs/demo", "--out", metavar="DIR", help="Where runs and report go."),
    json: str = JSON,
) -> int:
    """Train a tiny quiet model, prove it, and talk to it."""
    numbers = _seeds(seeds)
    from quietreasoning.cli.output import json_alone, write_json
    from quietreasoning.demo import demo as tell

    with json_alone(json):
        code, rows = tell(seeds=numbers, out=out)
    write_json(json, rows)
    return code


@guarded
def evaluate(
    run: str = RUN,
    settings: list[str] = SETTINGS,
    task: str = typer.Option(None, "--task", metavar="T", help="Another task than the run's own."),
    n: int = typer.Option(None, "--n", metavar="N", help="Examples; default: eval.n of the run."),
    controls: str = typer.Option(
        None, "--controls", metavar="zero,shuffle", help="Corruptions; all, or none."
    ),
    gate: str = typer.Option(
        None, "--gate", metavar="theater|baking|rules", help="Pass (exit code 0) or not (1) by its tests."
    ),
    rules: str = typer.Option(None, "--rules", metavar="R.yaml", help="What --gate rules judges answers by."),
    json: str = JSON,
) -> int | None:
    """Accuracy with interval, cost and controls of a run; or whether it passes a gate."""
    return resumable(lambda: _evaluate(run, list(settings or ()), task, n, controls, gate, rules, json))


def _evaluate(
    run: str,
    settings: list[str],
    task: str | None,
    n: int | None,
    controls: str | None,
    gate: str | None,
    rules: str | None,
    json: str | None,
) -> int:
    from quietreasoning.cli.output import json_alone, write_json
    from quietreasoning.config import UserError
    from quietreasoning.run import evaluate_run, gate_run

    shortcuts = {"data.task": task, "eval.n": n, "eval.controls": _controls(controls)}
    named = [f"{key}={value}" for key, value in shortcuts.items() if value is not None]
    if gate is not None:
        if controls is not None:
            raise UserError(f"--controls {controls} has no effect with --gate {gate}; drop it")
        with json_alone(json):
            judgement = gate_run(run, gate, [*named, *settings], rules)
        write_json(json, judgement.as_dict())
        return 0 if judgement.verdict == "pass" else 1
    if rules is not None:
        raise UserError(f"--rules {rules} has no effect without --gate rules; give that too, or drop it")
    with json_alone(json):
        rows = evaluate_run(run, [*named, *settings])
    write_json(json, rows)
    return 0


@guarded
def report(runs: list[str] = RUNS) -> None:
    """One HTML page with tables and plots."""
    from quietreasoning.run import report_runs

    typer.echo(report_runs(runs))


def _seeds(text: str) -> tuple[int, ...]:
    from quietreasoning.config import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text}: must be whole numbers with commas, such as 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _controls(text: str | None) -> str | None:
    """`zero,shuffle`, `all` or `none` as the list that a setting takes."""
    if text is None:
        return None
    from quietreasoning.contract import CONTROLS

    names = {"all": ", ".join(CONTROLS), "none": ""}.get(text, text)
    return f"[{names}]"
