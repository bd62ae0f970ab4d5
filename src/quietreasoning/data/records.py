"""Read records from JSONL, JSON, TSV or `question||steps #### answer` text, gzipped or not.

A broken line is reported as file:line and counted; beyond a budget the file is refused.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from quietreasoning.config import UserError

SUFFIXES = tuple(suffix + gz for gz in ("", ".gz") for suffix in (".jsonl", ".json", ".tsv", ".txt"))
T = TypeVar("T")


class Fault(ValueError):
    """One broken record: what is wrong, in a few words."""


def read(
    path: Path, parse: Callable[[Mapping[str, Any], int], T], max_bad_fraction: float
) -> tuple[list[T], list[str]]:
    """Every record through `parse(record, number)`; number counts lines (items of a JSON list) from 1.

    Returns what was parsed and one `file:line: fault` for each record that was left out. UserError
    where more than max_bad_fraction of the records are broken, or none is left.
    """
    parsed: list[T] = []
    faults: list[str] = []
    for number, record in records(path):
        try:
            if isinstance(record, Fault):
                raise record
            if not isinstance(record, dict):
                raise Fault(f"not an object but {type(record).__name__}")
            parsed.append(parse(record, number))
        except Fault as fault:
            faults.append(f"{path}:{number}: {fault}")
    if not parsed and not faults:
        raise UserError(f"{path} holds no records; check data.path")
    check_faults(faults, len(parsed), "records", max_bad_fraction)
    return parsed, faults


def check_faults(faults: list[str], good: int, what: str, max_bad_fraction: float) -> None:
    """UserError where too large a share is broken, or nothing is left."""
    total = good + len(faults)
    if len(faults) > max_bad_fraction * total or not good:
        raise UserError(
            f"{faults[0]} ({len(faults)} of {total} {what} are broken; mend them, or allow a share with "
            f"data.options.max_bad_fraction, now {max_bad_fraction:g})"
        )


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, record) of each line or list item; a Fault in place of a record that cannot be read."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    found = lines(path)
    if kind == "json":
        yield from _json(path, found)
        return
    if kind == "tsv":
        yield from _tsv(found)
        return
    for number, line in found:
        if isinstance(line, Fault):
            yield number, line
        elif line.strip():
            yield number, _from_text(line) if kind == "txt" else _from_json(line)


def lines(path: Path) -> Iterator[tuple[int, str | Fault]]:
    """(number, line) from 1, its end kept; a Fault in place of one that is not UTF-8."""
    number = 0
    try:
        opened = gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")
        with opened as file:
            for number, raw in enumerate(file, start=1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    yield number, Fault("not UTF-8")
    except FileNotFoundError:
        raise UserError(f"data.path: {path} does not exist") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path}:{number + 1}: the gzip file is damaged or cut off; fetch it again") from None
    except OSError as error:
        raise UserError(f"data.path: {path} cannot be read ({error.strerror})") from None


def _json(path: Path, given: Iterator[tuple[int, str | Fault]]) -> Iterator[tuple[int, Any]]:
    """Items of one JSON list; a file named .json that holds JSON lines is read as such."""
    listed = list(given)
    for number, line in listed:
        if isinstance(line, Fault):
            raise UserError(f"{path}:{number}: {line}")
    text = "".join(str(line) for _, line in listed)
    if not text.strip():
        return
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line
            yield from ((number, _from_json(str(line))) for number, line in listed if str(line).strip())
            return
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    yield from enumerate(items if isinstance(items, list) else [items], start=1)


def _tsv(given: Iterator[tuple[int, str | Fault]]) -> Iterator[tuple[int, Any]]:
    """Rows under the names in the first line; every cell is text, quoted where it holds quotes."""
    names: list[str] | None = None
    for number, line in given:
        cells = line if isinstance(line, Fault) else _cells(line)
        if isinstance(cells, Fault) or not cells:
            yield from [(number, cells)] if cells else []
        elif names is None:
            names = cells
        elif len(cells) != len(names):
            yield number, Fault(f"{len(cells)} columns where the first line has {len(names)}")
        else:
            yield number, dict(zip(names, cells, strict=True))


def _cells(line: str) -> list[str] | Fault:
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter="\t", strict=True), [])
    except csv.Error as error:
        return Fault(f"not TSV ({error})")


def _from_json(line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        return Fault(f"not JSON ({reason})")


def _from_text(line: str) -> Any:
    question, bar, rest = line.strip().partition("||")
    steps, mark, answer = rest.rpartition("####")
    if not bar or not mark:
        return Fault("not of the form question||steps #### answer")
    return {"question": question.strip(), "steps": steps.strip(), "answer": answer.strip()}


def text(record: Mapping[str, Any], *keys: str) -> str:
    """The first of `keys` that is present, as text; Fault where none is, or it is empty or no text."""
    for key in keys:
        if key in record:
            value = record[key]
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise Fault(f"field '{key}' is {type(value).__name__}, not text")
            if not str(value).strip():
                raise Fault(f"field '{key}' is empty")
            return str(value)
    wanted = "', '".join(keys)
    raise Fault(f"no field '{wanted}' among {', '.join(sorted(record)) or 'none'}")
