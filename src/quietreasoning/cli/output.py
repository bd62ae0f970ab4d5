"""Tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A rich table on a terminal; elsewhere plain aligned columns, nothing cut or wrapped."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headings, box=None, header_style="bold", pad_edge=False)
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in [list(headings), *cells]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def write_json(file: str | None, value: Any) -> None:
    """Write `value` as JSON to `file`; `-` is stdout, None writes nothing. UserError where it cannot."""
    if file is None:
        return
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if file == "-":
        typer.echo(text, nl=False)
        return
    path = Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        from quietreasoning.config import UserError

        raise UserError(f"--json {file}: cannot be written ({error.strerror})") from None


@contextmanager
def json_alone(file: str | None) -> Iterator[None]:
    """With `-` as the JSON file, whatever the block prints goes to stderr: stdout is for the JSON."""
    with contextlib.redirect_stdout(sys.stderr) if file == "-" else contextlib.nullcontext():
        yield


def human_bytes(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
