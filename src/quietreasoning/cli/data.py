"""`quiet data pairs | export-pairs | import-pairs`: a model's own chains, and its states around them."""

from __future__ import annotations

import os
from typing import Any

import typer

from quietreasoning.cli.guard import guarded, resumable
from quietreasoning.cli.train import JSON

app = typer.Typer(help="Make and trade data: rollouts of a model that thinks aloud.", no_args_is_help=True)

MODEL = typer.Argument(..., metavar="MODEL_OR_RUN", help="A run of method cot, a model folder or a hub id.")
FOLDER = typer.Argument(..., metavar="DIR", help="A folder that quiet data pairs wrote.")
WORDS = typer.Argument(None, metavar="[NAME.KEY=VALUE]...", help="Settings of a data set.")
PATHS = typer.Option(None, "--path", metavar="[NAME=]FOLDER", help="Files of a data set; once for each.")
LAYER = typer.Option("last", "--layer", metavar="N", help="Which layer's states: a number, last, pre_norm.")


@app.command("pairs")
@guarded
def pairs(
    model: str = MODEL,
    settings: list[str] = WORDS,
    dataset: str = typer.Option(
        None, "--dataset", metavar="A,B", help="Tasks or JSONL files; default: the run's own task, or gsm8k."
    ),
    path: list[str] = PATHS,
    split: str = typer.Option("train", "--split", help="Split of the data sets that problems come from."),
    allow_test: bool = typer.Option(
        False, "--allow-test", help="Take official test splits; written into the output."
    ),
    out: str = typer.Option(
        "data/hidden_pairs", "--out", "--output-dir", "--output_dir", metavar="DIR", help="Where they go."
    ),
    num_samples: int = typer.Option(
        1000, "--num-samples", "--num_samples", min=1, help="Problems, over all data sets."
    ),
    samples_per_problem: int = typer.Option(
        1, "--samples-per-problem", min=1, metavar="K", help="Rollouts of each."
    ),
    batch_size: int = typer.Option(
        4, "--batch-size", "--batch_size", min=1, metavar="B", help="Written at once."
    ),
    max_new_tokens: int = typer.Option(
        512, "--max-new-tokens", "--max_new_tokens", min=1, metavar="N", help="Longest chain and answer."
    ),
    checkpoint_every: int = typer.Option(
        100, "--checkpoint-every", "--checkpoint_every", min=1, metavar="N", help="Rollouts in a shard."
    ),
    no_auto_resume: bool = typer.Option(
        False, "--no-auto-resume", "--no_auto_resume", help="Move what is there aside and start anew."
    ),
    temperature: float = typer.Option(
        None, "--temperature", help="Default: 0.7 for a model, 0 (greedy) for a run."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Of what is drawn."),
    keep: str = typer.Option("correct", "--keep", help="correct, or all that ended."),
    layers: str = typer.Option("last", "--layers", metavar="18,last", help="Layers whose states are kept."),
    dtype: str = typer.Option(
        None,
        "--dtype",
        help="float32, bfloat16 or float16. Default: float32 for a run, bfloat16 for a model.",
    ),
    target: str = typer.Option("close", "--target", help="hidden_post: at the close marker, or pre_answer."),
    stop_at_close: bool = typer.Option(
        False, "--stop-at-close", help="Write the chain alone; needs --keep all."
    ),
    keep_system_prefix: bool = typer.Option(
        False, "--keep-system-prefix", help="hidden_pre begins with what all prompts share."
    ),
    revision: str = typer.Option(None, "--revision", help="Commit or tag of a hub id."),
    system: str = typer.Option(None, "--system", help="System message for a model."),
    instruction: str = typer.Option(
        None, "--instruction", help="Follows each question; the default says how to end an answer."
    ),
    date: str = typer.Option("2025-07-01", "--date", help="The day that a template prints."),
    opened: str = typer.Option("<think>", "--open", help="Marker that opens a chain."),
    closed: str = typer.Option("</think>", "--close", help="Marker that closes it."),
    nproc: int = typer.Option(1, "--nproc", min=1, metavar="N", help="Processes on this machine."),
    json: str = JSON,
) -> int | None:
    """Let a model think aloud about problems; keep right chains and the states around them.

    The same command goes on where it ended; also with another batch size, more processes or more problems.
    """
    values = dict(locals())  # the options are the fields of harvest.Request, but for these
    for name in ("no_auto_resume", "nproc", "json"):
        values.pop(name)
    values |= {"paths": tuple(values.pop("path") or ()), "settings": tuple(settings or ())}
    return resumable(lambda: _pairs(values, no_auto_resume, nproc, json))


def _pairs(values: dict[str, Any], no_auto_resume: bool, nproc: int, json: str | None) -> int | None:
    from pathlib import Path

    from quietreasoning.cli.output import write_json

    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    folder = Path(values["out"])
    if (code := begin(folder, no_auto_resume, nproc)) is not None:
        return code
    from quietreasoning.harvest import Request, harvest

    summary = harvest(Request(**values | {"out": folder}), rank=rank, ranks=ranks)
    if rank == 0:
        write_json(json, summary)
        if json != "-":
            _tell(folder, summary)
    return None


def begin(folder: Any, no_auto_resume: bool, nproc: int) -> int | None:
    """Move what is in `folder` aside where that is asked for, and start the ranks; their exit code, or None
    where the work is this process's own."""
    from quietreasoning.config import UserError

    if no_auto_resume:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "--no-auto-resume: ranks started from outside cannot agree on who moves the folder. Give an "
                "empty --out, or start them with --nproc."
            )
        from quietreasoning.data.made import move_aside

        if aside := move_aside(folder):
            typer.echo(f"what was in {folder} is now in {aside}", err=True)
    if nproc > 1:
        from quietreasoning.cli.launch import launch

        return launch(_arguments(), nproc)
    return None


def _arguments() -> list[str]:
    """This command's own arguments for a rank: without the launcher's."""
    import sys

    given, kept = iter(sys.argv[1:]), []
    for word in given:
        if word == "--nproc":
            next(given, None)
        elif not word.startswith("--nproc=") and word not in ("--no-auto-resume", "--no_auto_resume"):
            kept.append(word)
    return kept


def _tell(folder: Any, summary: dict[str, Any]) -> None:
    from quietreasoning.cli.output import print_table
    from quietreasoning.config import UserError
    from quietreasoning.data.pairs.folder import kept_rows

    names = ("asked", "finished", "truncated", "malformed", "oom", "wrong", "correct", "kept")
    rows = [(name, counts) for name, counts in [*summary["datasets"].items(), ("all", summary)]]
    lines = []
    for name, counts in rows:
        lengths = counts["thinking_tokens"]
        spread = f"{lengths['mean']:g} ({lengths['least']}-{lengths['most']})" if lengths else "-"
        lines.append((name, *(counts[one] for one in names), spread))
    print_table(("data set", *names, "thinking tokens"), lines if len(lines) > 2 else lines[:1])
    try:
        kept_rows(folder)
    except UserError as error:
        typer.echo(f"nothing to train on: {error}")
    else:
        typer.echo(f"next: train on them with data.task=pairs data.path={folder}")


@app.command("export-pairs")
@guarded
def export_pairs(
    folder: str = FOLDER,
    file: str = typer.Argument(..., metavar="FILE.pt", help="Where the dictionary goes."),
    layer: str = LAYER,
    split: str = typer.Option(None, "--split", help="Only this split of the pairs."),
) -> None:
    """Write kept pairs as one dictionary: hidden_pre, hidden_post, seq_lengths, problems and so on."""
    from pathlib import Path

    from quietreasoning.data.pairs.seed_layout import export_pairs as export

    count = export(Path(folder), Path(file), _layer(layer), split)
    typer.echo(f"{file}: {count} pairs")


@app.command("import-pairs")
@guarded
def import_pairs(
    file: str = typer.Argument(..., metavar="FILE.pt", help="A dictionary of pairs; no pickled objects."),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new folder of pairs."),
    model: str = typer.Option(
        ..., "--model", help="The model whose states these are: run, folder or hub id."
    ),
    layer: str = LAYER,
) -> None:
    """Bring a dictionary of pairs in as a folder."""
    from pathlib import Path

    from quietreasoning.data.pairs.seed_layout import import_pairs as bring
    from quietreasoning.harvest import identity_of

    count = bring(Path(file), Path(out), _layer(layer), identity_of(model))
    typer.echo(f"{out}: {count} pairs")


def _layer(text: str) -> int | str:
    from quietreasoning.config import UserError
    from quietreasoning.harvest import parse_layers

    layers = parse_layers(text)
    if len(layers) > 1:
        raise UserError(f"--layer {text}: one layer at a time")
    return layers[0]
