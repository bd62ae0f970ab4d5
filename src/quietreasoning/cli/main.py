"""`quiet COMMAND ...`. Importing this must stay cheap: no torch, no pydantic, before a command runs."""

from __future__ import annotations

import os

import typer

from quietreasoning import __version__
from quietreasoning.cli import (
    data,
    export,
    index,
    look,
    migrate,
    push,
    results,
    score,
    talk,
    teacher,
    texts,
    train,
)

# GNU OpenMP threads spin while they wait. Where another process takes a core, that makes small models three
# times slower or worse; giving up early costs a few per cent when idle. Must be set before torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

COMMANDS = {
    "demo": results.demo,
    "train": train.train,
    "eval": results.evaluate,
    "report": results.report,
    "doctor": look.doctor,
    "plan": look.plan,
    "show": look.show,
    "list": look.list_all,
    "generate": talk.generate,
    "chat": talk.chat,
    "push": push.push,
    "score": score.score,
    "export": export.export,
    "migrate": migrate.migrate,
}

app = typer.Typer(
    name="quiet",
    help="Train, prove and serve language models that think without saying it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
data.app.command("teacher")(teacher.teacher)
data.app.command("texts")(texts.texts)
app.add_typer(data.app, name="data")
app.add_typer(index.app, name="index")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    app()


if __name__ == "__main__":
    main()
