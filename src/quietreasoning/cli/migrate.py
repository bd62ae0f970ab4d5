"""`quiet migrate FOLDER OUT`: a model folder with another vocabulary."""

from __future__ import annotations

import typer

from quietreasoning.cli.guard import EXIT_FAILED, guarded
from quietreasoning.cli.train import JSON

ADD = typer.Option([], "--add", metavar="TOKEN", help="Add a token; may be given several times.")
SPECIAL = typer.Option([], "--add-special", metavar="TOKEN", help="Add a special token; the same.")


@guarded
def migrate(
    folder: str = typer.Argument(..., metavar="FOLDER", help="A model folder with its tokenizer."),
    out: str = typer.Argument(..., metavar="OUT", help="A new folder."),
    tokenizer: str = typer.Option(
        None,
        "--tokenizer",
        metavar="FOLDER",
        help="Take another tokenizer; rows go by what tokens stand for.",
    ),
    trim: str = typer.Option(
        None,
        "--trim",
        metavar="FILE",
        help="Keep the tokens that a text or JSONL uses, and what writes any text.",
    ),
    add: list[str] = ADD,
    special: list[str] = SPECIAL,
    rows: str = typer.Option(
        "mean", "--rows", help="How new rows are made: mean, normal, small, zeros or pieces."
    ),
    multiple: int = typer.Option(1, "--pad-to-multiple", metavar="N", help="Round the number of rows up."),
    json: str = JSON,
) -> int:
    """Write a model folder with another vocabulary: exit code 1, and no folder, where old logits change."""
    from quietreasoning.cli.output import json_alone, print_table, write_json
    from quietreasoning.migrate import Wishes, migrate

    with json_alone(json):
        found = migrate(folder, out, Wishes(tokenizer, trim, tuple(add), tuple(special), rows, multiple))
        for note in found.notes:
            typer.echo(f"quiet: note: {note}", err=True)
        counts = {name: getattr(found, name) for name in ("kept", "made", "dropped", "padding")}
        print_table(
            ("rows", "count"), [("before", found.rows_before), *counts.items(), ("after", found.rows)]
        )
        said = f"logits of the {found.kept} tokens that stayed differ by at most {found.distance:.1e}"
        allowed = f"{found.near:.1e} is allowed"
        if found.folder is None:
            typer.echo(f"quiet: {said}, and {allowed}: {out} is not written", err=True)
        else:
            typer.echo(f"wrote {found.folder}; {said} ({allowed})")
    write_json(
        json,
        {
            "folder": None if found.folder is None else str(found.folder),
            "from": folder,
            "rows_before": found.rows_before,
            "rows": found.rows,
            **counts,
            "tied": found.tied,
            "made_by": rows,
            "distance": found.distance if found.distance < float("inf") else None,
            "allowed": found.near,
            "notes": found.notes,
        },
    )
    return 0 if found.folder else EXIT_FAILED
