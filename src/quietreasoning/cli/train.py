"""`quiet train RECIPE [a.b=c ...]`."""

from __future__ import annotations

import os

import typer

from quietreasoning.cli.guard import guarded, resumable

RECIPE = typer.Argument(..., help="A name from `quiet list`, or a YAML file.")
SETTINGS = typer.Argument(None, metavar="[A.B=C]...", help="Settings that override the recipe.")
CONFIG = typer.Option(
    None, "--config", metavar="FILE", help="YAML laid over the recipe, before A.B=C; may be given again."
)
JSON = typer.Option(None, "--json", metavar="FILE", help="Also write the result as JSON; - is stdout.")


@guarded
def train(
    recipe: str = RECIPE,
    settings: list[str] = SETTINGS,
    config: list[str] = CONFIG,
    resume: bool = typer.Option(
        False, "--resume", help="Refuse to start anew: the output folder must hold a run."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Build everything, take no step."),
    no_doctor: bool = typer.Option(False, "--no-doctor", help="Skip the check of losses, masks, causality."),
    nproc: int = typer.Option(1, "--nproc", min=1, metavar="N", help="Processes on this machine."),
    out: str = typer.Option(None, "--out", metavar="DIR", help="Run folder."),
    json: str = JSON,
) -> int:
    """Train a recipe; Ctrl-C saves, and the same command goes on."""
    return resumable(
        lambda: _train(recipe, settings or [], config or [], resume, dry_run, no_doctor, nproc, out, json)
    )


def _train(
    recipe: str,
    settings: list[str],
    config: list[str],
    resume: bool,
    dry_run: bool,
    no_doctor: bool,
    nproc: int,
    out: str | None,
    json: str | None,
) -> int:
    from quietreasoning import run
    from quietreasoning.cli.output import json_alone, write_json

    resolved = run.resolve(
        recipe, settings, out=out, configs=config
    )  # refuse bad settings before any rank starts
    if nproc > 1:
        from quietreasoning.cli.launch import launch

        run.check_ranks(resolved.config, nproc)
        flags = [("--resume", resume), ("--dry-run", dry_run), ("--no-doctor", no_doctor)]
        named = [("--out", out), ("--json", json)]
        arguments = [flag for flag, wanted in flags if wanted]
        named += [("--config", file) for file in config]
        arguments += [f"{flag}={value}" for flag, value in named if value is not None]
        return launch(["train", *arguments, "--", recipe, *settings], nproc)
    with json_alone(json):
        code = run.train_run(resolved, resume=resume, dry_run=dry_run, doctor=not no_doctor)
    if os.environ.get("RANK", "0") == "0":
        write_json(json, {"exit_code": code})
        if not dry_run and json != "-":
            typer.echo(run.next_commands(resolved.out))
    return code
