"""What `quiet score` reads: a text or a JSONL file of them, and evidence, as texts with their context."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quietreasoning.config import UserError, suggest
from quietreasoning.evaluate.claims.judge import Source
from quietreasoning.evaluate.rules.base import COUNTS, Context

JSONL = (".jsonl", ".ndjson")


class Row(NamedTuple):
    """line: of a JSONL file, from 1; 0 for a text."""

    line: int
    text: str
    context: Context


def read_rows(path: str, field: str | None = None, sources: tuple[Source, ...] = ()) -> list[Row]:
    """A `.jsonl` file row by row: `field` (text) is judged; `prompt`, `reference`, `evidence`, `results` and
    the facts may stand beside it. Any other file is one text. Raises UserError with the line."""
    text = _read(path)
    if not path.lower().endswith(JSONL):
        if field is not None:
            raise UserError(
                f"--field {field}: {path} is one text, which has no fields; drop it, or give rows in a "
                f"{' or '.join(JSONL)} file"
            )
        return [Row(0, text, Context(sources=sources))]
    field = "text" if field is None else field
    rows = []
    for line, record in _records(path, text):
        where = f"{path}:{line}"
        if field not in record:
            raise UserError(f"{where}: no field {field!r}. {suggest(field, record)} Name it with --field")
        try:
            rows.append(Row(line, _text(record, field), _context(record, sources)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows


def read_evidence(path: str) -> tuple[Source, ...]:
    """JSONL of {id, text}; any other file is one source with the file's name."""
    text = _read(path)
    if not path.lower().endswith(JSONL):
        return (Source(Path(path).name, text),)
    found = []
    for line, record in _records(path, text):
        for name in ("id", "text"):
            if name not in record:
                raise UserError(f'{path}:{line}: evidence needs {name!r}. Write {{"id": ..., "text": ...}}')
        try:
            found.append(Source(str(record["id"]), _text(record, "text")))
        except UserError as error:
            raise UserError(f"{path}:{line}: {error}") from None
    return tuple(found)


def _context(record: Mapping[str, Any], sources: tuple[Source, ...]) -> Context:
    results = record.get("results", {})
    if not isinstance(results, Mapping):
        raise UserError(f'results={results!r:.60}: must be an object, such as {{"A1": true}}')
    return Context(
        prompt=_text(record, "prompt") if record.get("prompt") is not None else "",
        sources=(*sources, *_sources(record.get("evidence"))),
        reference=_text(record, "reference") if record.get("reference") is not None else None,
        results=dict(results),
        facts={name: record[name] for name in (*COUNTS, "diff") if record.get(name) is not None},
    )


def _sources(given: Any) -> Iterator[Source]:
    """A text, a list of texts or of {id, text}, or an object from id to text."""
    if given is None:
        return
    if isinstance(given, Mapping):
        given = [{"id": name, "text": text} for name, text in given.items()]
    for number, one in enumerate(given if isinstance(given, list) else [given], start=1):
        one = {"id": str(number), "text": one} if isinstance(one, str) else one
        if not isinstance(one, Mapping) or not isinstance(one.get("text"), str):
            raise UserError(
                f"evidence={one!r:.60}: must be a text, a list of texts, or an object from id to text"
            )
        yield Source(str(one.get("id", number)), one["text"])


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise UserError(f"{name}={value!r:.60}: must be text")
    return value


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})"
        ) from None


def _records(path: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            record = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f'{path}:{line}: must be an object, such as {{"text": ...}}')
        yield line, record
