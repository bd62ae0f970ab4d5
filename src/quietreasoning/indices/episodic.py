"""`quiet index episodic`: a store of events that someone has chosen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quietreasoning.config import UserError, suggest
from quietreasoning.memory.arrays import open_array, open_keys
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.index_settings import INDEX_SETTINGS
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.knn_index import Show, quiet
from quietreasoning.memory.made import say_how_made

WRITTEN = 1000  # events of one transaction


def make_episodic(
    input: Path,
    output: Path,
    encoder: str,
    *,
    vectors: Path | None = None,
    backend: str = "faiss_ivfpq",
    ttl_days: float = 30.0,
    show: Show = quiet,
) -> dict[str, Any]:
    """A store of curated events: JSONL rows with `text` or `tokens`, and a `vector` each or all in a file.

    The same command again renews what is there. Events without `created` are of now.
    """
    if backend not in INDEX_SETTINGS:
        raise UserError(f"--backend {backend}: no such index. {suggest(backend, INDEX_SETTINGS)}")
    if not (math.isfinite(ttl_days) and ttl_days > 0):
        raise UserError(f"--ttl-days {ttl_days:g}: must be above 0")
    given = None if vectors is None else open_keys(vectors, "--vectors").take
    count, dim = _survey(input, vectors)  # all rows are looked at before any is written
    settings = EpisodicSettings(backend=backend, ttl_days=ttl_days)
    added = renewed = 0
    with EpisodicStore(output, dim=dim, encoder=encoder, settings=settings) as store:
        entries = _entries(input, given)
        for first in range(0, count, WRITTEN):
            some = [next(entries) for _ in range(min(WRITTEN, count - first))]
            fresh = [one.added for one in store.write_many(some)]
            added, renewed = added + sum(fresh), renewed + len(fresh) - sum(fresh)
            show("events", first + len(some), count)
        expired = store.sweep()
        held = len(store)
    about = say_how_made(output, encoder=encoder, dim=dim, settings=settings)
    return {"store": str(output), "events": count, "added": added, "renewed": renewed, "expired": expired} | {
        "entries": held,
        **about,
    }


def _survey(path: Path, vectors: Path | None) -> tuple[int, int]:
    """How many events, and the width of their vectors; UserError for the first row that is none."""
    rows = None if vectors is None else open_array(vectors, "--vectors", "float32 vectors (N, dim)")
    dims = set() if rows is None else {rows.shape[1]}
    count = 0
    for count, (where, row) in enumerate(_read(path), 1):  # noqa: B007
        if (rows is None) != ("vector" in row):
            raise UserError(
                f"{where}: give each row a vector, or all of them in --vectors FILE.npy, not both"
            )
        if rows is None:
            dims.add(len(row["vector"]))
        if len(dims) != 1:
            raise UserError(
                f"{where}: its vector has {len(row['vector'])} numbers, another has fewer or more"
            )
    if not count:
        raise UserError(f"--input {path} holds no event; give JSONL with a row each")
    if rows is not None and len(rows) != count:
        raise UserError(f"--vectors {vectors} has {len(rows)} vectors for {count} events; give one each")
    return count, dims.pop()


def _entries(path: Path, take: Any) -> Iterator[Entry]:
    for number, (_, row) in enumerate(_read(path)):
        vector = row["vector"] if take is None else take(np.array([number]))[0]
        yield Entry(
            vector_D=np.asarray(vector, np.float32),
            text=row.get("text", ""),
            tokens=tuple(row.get("tokens", ())),
            source=row.get("source", ""),
            created=row.get("created"),
        )


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", _row(f"{path}:{number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input {path} cannot be read as text: {error}. Give a JSONL file.") from error


def _row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is no JSON; give an object a line") from error
    if not isinstance(row, dict) or not (row.get("text") or row.get("tokens")):
        raise UserError(f"{where}: an event needs text or tokens")
    right = {
        "text": lambda v: isinstance(v, str),
        "vector": lambda v: isinstance(v, list) and v and all(map(_number, v)),
        "tokens": lambda v: isinstance(v, list) and all(isinstance(i, int) and 0 <= i < 2**31 for i in v),
        "source": lambda v: isinstance(v, str),
        "created": lambda v: _number(v) and v >= 0,
    }
    for name, value in row.items():
        if name not in right:
            raise UserError(f"{where}: no field {name!r}. {suggest(name, right)}")
        if not right[name](value):
            raise UserError(f"{where}: {name}={value!r:.40} cannot be; see docs/memory.md for what it holds")
    return row


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
