"""`quiet data texts`: what a teacher writes, as rows that a student trains on."""

from __future__ import annotations

from typing import Any

import typer

from quietreasoning.cli.guard import guarded, resumable
from quietreasoning.cli.teacher import MODEL
from quietreasoning.cli.train import JSON

WORDS = typer.Argument(None, metavar="[A.B=C]...", help="Settings of the recipe.")


@guarded
def texts(
    model: str = MODEL,
    settings: list[str] = WORDS,
    recipe: str = typer.Option(..., "--recipe", help="Whose prompts it answers."),
    stage: str = typer.Option(None, "--stage", help="Which stage of the recipe; default: its last."),
    split: str = typer.Option("train", "--split", help="train or valid."),
    n: int = typer.Option(None, "--n", min=1, metavar="N", help="Only the first N examples."),
    out: str = typer.Option(..., "--out", metavar="FILE.jsonl", help="Where the rows go."),
    temperature: float = typer.Option(0.0, "--temperature", metavar="T", help="0 (default) is greedy."),
    samples: int = typer.Option(1, "--samples", min=1, metavar="K", help="Samples a prompt."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of what is drawn."),
    max_new_tokens: int = typer.Option(256, "--max-new-tokens", min=1, metavar="N", help="Longest text."),
    no_steps: bool = typer.Option(
        False, "--no-steps", help="The teacher begins behind the answer prefix, without a chain."
    ),
    keep: str = typer.Option(
        "right",
        "--keep",
        help="right (as the task scores), all, best (one a prompt, by its reward), or pairs (best, worst).",
    ),
    rules: str = typer.Option(
        None, "--rules", metavar="R.yaml", help="Keep only what these rules keep; of pairs, judge by them."
    ),
    dtype: str = typer.Option(
        None, "--dtype", help="float32 or bfloat16 (default) for a model; a run has its own."
    ),
    revision: str = typer.Option(None, "--revision", help="Commit or tag of a hub id."),
    batch_size: int = typer.Option(8, "--batch-size", min=1, metavar="B", help="Texts written at once."),
    json: str = JSON,
) -> int | None:
    """Let a teacher answer the prompts of a recipe; keep its texts as rows for task teacher-rows, or pairs of
    them for task preferences.

    The same command goes on where it ended; also with another batch size, more samples or another choice.
    """
    values = dict(locals())  # the options are the fields of texts.Request and Draws, but for these
    values.pop("json")
    values["steps"] = not values.pop("no_steps")
    return resumable(lambda: _texts(values, json))


def _texts(values: dict[str, Any], json: str | None) -> None:
    from pathlib import Path

    from quietreasoning.cli.output import print_table, write_json
    from quietreasoning.scribe import Draws
    from quietreasoning.text_pairs import PAIRS
    from quietreasoning.texts import Request, write_texts

    drawn = Draws(**{name: values.pop(name) for name in ("temperature", "seed", "max_new_tokens")})
    values |= {"out": Path(values["out"]), "settings": tuple(values["settings"] or ())}
    request = Request(**values, draws=drawn)
    figures = write_texts(request)
    write_json(json, figures)
    if json == "-":
        return
    names = [name for name in figures if name not in ("out", "dropped")]
    print_table([name.replace("_", " ") for name in names], [[figures[name] for name in names]])
    if figures["dropped"]:
        typer.echo(f"{figures['dropped']} examples are too long for the teacher and were left out")
    reader = "method.name=prefer data.task=preferences" if request.keep == PAIRS else "data.task=teacher-rows"
    typer.echo(f"next: train on them with {reader} data.path={figures['out']}")
