"""`quiet data teacher`: what a teacher says of the rows a student will train on, kept on disk."""

from __future__ import annotations

import os
from typing import Any

import typer

from quietreasoning.cli.data import begin
from quietreasoning.cli.guard import guarded, resumable
from quietreasoning.cli.train import JSON

MODEL = typer.Argument(..., metavar="MODEL_OR_RUN", help="The teacher: a model folder, a hub id or a run.")
WORDS = typer.Argument(
    None, metavar="[A.B=C]...", help="Settings of the recipe; with --dataset those of its data section."
)
TEMPERATURE = typer.Option([1.0], "--temperature", metavar="T", help="Each that a student may ask for.")


@guarded
def teacher(
    model: str = MODEL,
    settings: list[str] = WORDS,
    recipe: str = typer.Option(None, "--recipe", help="Whose data the student will train on."),
    stage: str = typer.Option(None, "--stage", help="Which stage of the recipe; default: its last."),
    dataset: str = typer.Option(
        None, "--dataset", metavar="NAME", help="A task or JSONL file; default: the run's own task."
    ),
    split: str = typer.Option("train", "--split", help="train or valid."),
    no_steps: bool = typer.Option(
        False, "--no-steps", help="For a student that learns the answer alone (method.steps=false)."
    ),
    out: str = typer.Option(..., "--out", metavar="DIR", help="Where the cache goes."),
    k: int = typer.Option(64, "--k", metavar="K", help="Likeliest tokens that are kept, at most."),
    coverage: float = typer.Option(
        None, "--coverage", metavar="SHARE", help="Keep as few as hold this probability, such as 0.99."
    ),
    draws: int = typer.Option(None, "--draws", metavar="N", help="Draw N tokens in place of the likeliest."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the draws."),
    temperature: list[float] = TEMPERATURE,
    dtype: str = typer.Option(
        None, "--dtype", help="float32 or bfloat16 (default) for a model; a run has its own."
    ),
    revision: str = typer.Option(None, "--revision", help="Commit or tag of a hub id."),
    batch_size: int = typer.Option(8, "--batch-size", min=1, metavar="B", help="Rows read at once."),
    rows_per_shard: int = typer.Option(
        256, "--rows-per-shard", min=1, metavar="N", help="Rows in a file; one is closed at a time."
    ),
    no_auto_resume: bool = typer.Option(
        False, "--no-auto-resume", help="Move what is there aside and start anew."
    ),
    nproc: int = typer.Option(1, "--nproc", min=1, metavar="N", help="Processes on this machine."),
    json: str = JSON,
) -> int | None:
    """Let a teacher read training rows; keep its likeliest next tokens at every learned position.

    The same command goes on where it ended; also with another batch size or more processes.
    """
    values = dict(locals())  # the options are the fields of capture.Request and of its Keep, but for these
    for name in ("no_auto_resume", "nproc", "json"):
        values.pop(name)
    values["steps"] = not values.pop("no_steps")
    return resumable(lambda: _teacher(values, no_auto_resume, nproc, json))


def _teacher(values: dict[str, Any], no_auto_resume: bool, nproc: int, json: str | None) -> int | None:
    from pathlib import Path

    from quietreasoning.cli.output import write_json

    folder = Path(values.pop("out"))
    if (code := begin(folder, no_auto_resume, nproc)) is not None:
        return code
    from quietreasoning.capture import Request, capture
    from quietreasoning.data.teacher_cache.targets import Keep

    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    kept = {name: values.pop(name) for name in ("k", "coverage", "draws", "seed")}
    keep = Keep(**kept, temperatures=tuple(values.pop("temperature")))
    settings = tuple(values.pop("settings") or ())
    summary = capture(Request(**values, out=folder, settings=settings, keep=keep), rank=rank, ranks=ranks)
    if rank == 0:
        write_json(json, summary)
        if json != "-":
            _tell(folder, summary)
    return None


def _tell(folder: Any, summary: dict[str, Any]) -> None:
    from quietreasoning.cli.output import human_bytes, print_table

    mass = summary["kept_mass"]
    print_table(
        ("rows", "positions", "kept each", "mass kept", "bytes each", "in all", "nats/token", "tokens/s"),
        [
            (
                f"{summary['rows']}/{summary['rows_asked']}",
                summary["positions"],
                summary["kept_per_position"],
                "-" if mass is None else mass,
                summary["bytes_per_position"],
                human_bytes(summary["bytes"]),
                summary["nats_per_token"],
                summary["tokens_per_second"],
            )
        ],
    )
    if summary["dropped"]:
        typer.echo(f"{summary['dropped']} examples are too long for the teacher and were left out")
    if summary["rows"] < summary["rows_asked"]:
        typer.echo(f"{folder} lacks rows of other processes; it can be read once they have ended")
