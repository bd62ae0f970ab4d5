"""`quiet push RUN OWNER/NAME`: a run and its card to the Hugging Face hub."""

from __future__ import annotations

import typer

from quietreasoning.cli.guard import guarded
from quietreasoning.cli.results import RUN
from quietreasoning.cli.train import JSON


@guarded
def push(
    run: str = RUN,
    repo: str = typer.Argument(..., metavar="OWNER/NAME", help="The repository; made if need be."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Write the folder, list it, send nothing."),
    private: bool = typer.Option(True, "--private/--public", help="Of a new repository."),
    revision: str = typer.Option(None, "--revision", metavar="BRANCH", help="Branch; made if need be."),
    out: str = typer.Option(
        None, "--out", metavar="DIR", help="What is sent is put here; default: RUN/push."
    ),
    license_id: str = typer.Option(None, "--license", metavar="ID", help="For the card, such as apache-2.0."),
    base: str = typer.Option(
        None, "--base", metavar="HUB_ID[@REV]", help="What the model in a local folder is called on the hub."
    ),
    with_base: bool = typer.Option(False, "--with-base", help="Send local model folders as well."),
    json: str = JSON,
) -> None:
    """Send a run and its model card to the Hugging Face hub."""
    from quietreasoning.cli.output import human_bytes, json_alone, print_table, write_json
    from quietreasoning.push import push as send
    from quietreasoning.push import stage

    with json_alone(json):
        pushed = stage(
            run, repo, out, license_id=license_id, revision=revision, base=base, with_base=with_base
        )
        print_table(("file", "size"), [(name, human_bytes(size)) for name, size in pushed.files])
        typer.echo(f"card: {pushed.card}")
        for note in pushed.notes:
            typer.echo(f"quiet: note: {note}", err=True)
        if dry_run:
            typer.echo(f"nothing was sent; {pushed.folder} opens as a run")
        else:
            pushed = send(pushed, repo, private=private, revision=revision)
            typer.echo(f"sent to {pushed.address}")
    write_json(
        json,
        {
            "repo": repo,
            "revision": revision,
            "folder": str(pushed.folder),
            "card": str(pushed.card),
            "checkpoint": pushed.checkpoint,
            "files": [{"name": name, "bytes": size} for name, size in pushed.files],
            "bytes": sum(size for _, size in pushed.files),
            "notes": list(pushed.notes),
            "address": pushed.address,
        },
    )
