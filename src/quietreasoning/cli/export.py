"""`quiet export RUN FOLDER`: the language model of a run for transformers."""

from __future__ import annotations

import typer

from quietreasoning.cli.guard import guarded
from quietreasoning.cli.results import RUN
from quietreasoning.cli.train import JSON


@guarded
def export(
    run: str = RUN,
    folder: str = typer.Argument(..., metavar="FOLDER", help="A new folder."),
    dtype: str = typer.Option(
        None, "--dtype", help="float32, bfloat16 or float16; default: as it was trained."
    ),
    int8: bool = typer.Option(
        False, "--int8", help="Linear layers as integers: as train.quant has them, else int8."
    ),
    torchao: bool = typer.Option(False, "--torchao", help="With --int8: in the tensors of torchao."),
    json: str = JSON,
) -> None:
    """Write the language model of a run as a folder that transformers opens."""
    from quietreasoning.cli.output import human_bytes, json_alone, print_table, write_json
    from quietreasoning.export import export as written

    with json_alone(json):
        found = written(run, folder, dtype, int8=int8, torchao=torchao)
        print_table(("file", "size"), [(name, human_bytes(size)) for name, size in found.files])
        for note in found.notes:
            typer.echo(f"quiet: note: {note}", err=True)
        typer.echo(f"wrote {found.folder}; its logits are {found.distance:.1e} from the run's")
    write_json(
        json,
        {
            "folder": str(found.folder),
            "distance": found.distance,
            "files": [{"name": name, "bytes": size} for name, size in found.files],
            "notes": found.notes,
        },
    )
