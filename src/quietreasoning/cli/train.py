"""`quiet train RECIPE [a.b=c ...]`."""

from __future__ import annotations

import signal
from types import FrameType

import typer

from quietreasoning.cli.guard import EXIT_RESUMABLE, complain, guarded

RECIPE = typer.Argument(..., help="A name from `quiet list`, or a YAML file.")
SETTINGS = typer.Argument(None, metavar="[A.B=C]...", help="Settings that override the recipe.")
JSON = typer.Option(None, "--json", metavar="FILE", help="Also write the result as JSON; - is stdout.")


@guarded
def train(
    recipe: str = RECIPE,
    settings: list[str] = SETTINGS,
    resume: bool = typer.Option(False, "--resume", help="Go on with the run in the output folder."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Build everything, take no step."),
    no_doctor: bool = typer.Option(False, "--no-doctor", help="Skip the check of losses, masks, causality."),
    nproc: int = typer.Option(1, "--nproc", min=1, metavar="N", help="Processes on this machine."),
    out: str = typer.Option(None, "--out", metavar="DIR", help="Run folder."),
    json: str = JSON,
) -> int:
    """Train a recipe; Ctrl-C saves, and the same command with --resume goes on."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, stop) for number in signals]  # until the run listens itself
    try:
        return _train(recipe, list(settings or ()), resume, dry_run, no_doctor, nproc, out, json)
    except (KeyboardInterrupt, Exception):
        if not asked:  # libraries turn an interrupt during their import into errors of their own
            raise
        complain("stopped before the first step; nothing was lost, run the same command again")
        return EXIT_RESUMABLE
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _train(
    recipe: str,
    settings: list[str],
    resume: bool,
    dry_run: bool,
    no_doctor: bool,
    nproc: int,
    out: str | None,
    json: str | None,
) -> int:
    from quietreasoning import run
    from quietreasoning.cli.output import write_json

    resolved = run.resolve(recipe, settings, out=out)  # refuse bad settings before any rank starts
    if nproc > 1:
        from quietreasoning.cli.launch import launch

        flags = [("--resume", resume), ("--dry-run", dry_run), ("--no-doctor", no_doctor)]
        named = [("--out", out), ("--json", json)]
        arguments = [flag for flag, wanted in flags if wanted]
        arguments += [f"{flag}={value}" for flag, value in named if value is not None]
        return launch(["train", *arguments, "--", recipe, *settings], nproc)
    code = run.train_run(resolved, resume=resume, dry_run=dry_run, doctor=not no_doctor)
    write_json(json, {"exit_code": code})
    return code
