"""`quiet index episodic`: a store of events that someone has chosen, of what a run was trained on, or of what
surprised a model in a text."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from quietreasoning.backbone import Backbone, role_of
from quietreasoning.capture import Request, load_rows, open_data, open_teacher
from quietreasoning.config import UserError, suggest
from quietreasoning.contract import IGNORE, Role
from quietreasoning.disk import refuse_file
from quietreasoning.indices.surprise import texts_in, write_surprises
from quietreasoning.memory.arrays import Rows, open_keys
from quietreasoning.memory.episodic import DAY, EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.index_settings import INDEX_SETTINGS, IvfPqSettings, codes_of
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.knn_index import Show, quiet
from quietreasoning.memory.made import say_how_made
from quietreasoning.memory.surprise import SurpriseSettings
from quietreasoning.methods.recall.events import encoded, encoder_of

WRITTEN = 1000  # events of one transaction
READ = 256  # rows that a model reads at once
ALIKE = 0.9999  # cosine of rows that are one event: training rows differ, and few words make them differ


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
    settings = _settings(backend, ttl_days)
    refuse_file(output)
    if not encoder.strip():
        raise UserError("--encoder names nothing; say what made the vectors, such as NAME@REVISION:last")
    given = None if vectors is None else open_keys(vectors, "--vectors")
    deadline = time.time() - ttl_days * DAY
    count, dim, expired = _survey(input, given, deadline)  # all rows are looked at before any is written
    figures = _write(output, _entries(input, given), count, dim, encoder, settings, show)
    return figures | {"expired_on_arrival": expired}


def make_episodic_of_run(
    run: str, output: Path, *, backend: str = "faiss_ivfpq", ttl_days: float = 30.0, show: Show = quiet
) -> dict[str, Any]:
    """A store of the different rows that a run learned in its last stage, as its own model reads them:
    prompt, answer prefix, answer. Its encoder is the hash of the weights, for which `methods.recall` asks.

    The same command again renews what is there, unless the run has learned since: then it is refused.
    """
    settings = _settings(backend, ttl_days, dedupe_cosine=ALIKE)
    refuse_file(output)
    teacher = open_teacher(run, None, None)
    if teacher.run is None:
        raise UserError(f"--run {run}: is no run of this toolkit. Give its folder, such as runs/NAME")
    data, encoder = open_data(Request(model=run, out=output), teacher)
    rows, dropped = load_rows(data, encoder, "train", lambda: None, steps=False)
    ids = [row.ids for row in rows]

    def events() -> Iterator[Entry]:
        for first in range(0, len(ids), READ):
            some = ids[first : first + READ]
            for vector_D, row in zip(vectors_of(teacher.backbone, some), some, strict=True):
                yield Entry(vector_D, encoder.text(row.tolist()), tuple(row.tolist()), source="train")

    backbone = teacher.backbone
    figures = _write(output, events(), len(ids), backbone.width, encoder_of(backbone), settings, show)
    return figures | {"dropped": dropped}


def make_episodic_of_text(
    run: str,
    text: Path,
    output: Path,
    surprise: Mapping[str, Any],
    *,
    backend: str = "faiss_ivfpq",
    ttl_days: float = 30.0,
) -> dict[str, Any]:
    """A store of what a run's model, or that of a model folder, met with in a text: an event ends where a
    token surprises it, as `SurpriseSettings` of these values say. Its encoder is the hash of the weights; the
    same command again renews what is there."""
    try:
        chosen = SurpriseSettings.model_validate(surprise)
    except ValidationError as error:
        raise UserError(f"--surprise {surprise.get('kind')}: choose token or bayes") from error
    refuse_file(output)
    settings = _settings(backend, ttl_days)
    for _ in texts_in(text):  # all rows are looked at before the model is opened
        pass
    teacher = open_teacher(run, None, None)
    backbone, width = teacher.backbone, teacher.backbone.width
    settings, encoder = _fitted(settings, width), encoder_of(backbone)
    with EpisodicStore(output, dim=width, encoder=encoder, settings=settings) as store:
        written = write_surprises(teacher, text, store, chosen)
        expired, held = store.sweep(), len(store)
    added = sum(one.added for one in written)
    figures = {"events": len(written), "added": added, "renewed": len(written) - added, "expired": expired}
    return _told(output, figures, held, encoder, width, settings)


@torch.no_grad()
def vectors_of(backbone: Backbone, rows: Sequence[np.ndarray]) -> np.ndarray:
    """What rows of token ids stand under in a store [n, D]."""
    longest, device = max(map(len, rows)), next(backbone.parameters()).device
    padded = [[*row.tolist(), *[IGNORE] * (longest - len(row))] for row in rows]
    ids_BT = torch.tensor(padded, device=device)
    hidden_BTD = backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD
    return encoded(hidden_BTD, ids_BT != IGNORE).cpu().numpy()


def _settings(backend: str, ttl_days: float, **more: Any) -> EpisodicSettings:
    if backend not in INDEX_SETTINGS:
        raise UserError(f"--backend {backend}: no such index. {suggest(backend, INDEX_SETTINGS)}")
    if not (math.isfinite(ttl_days) and ttl_days > 0):
        raise UserError(f"--ttl-days {ttl_days:g}: must be above 0")
    return EpisodicSettings(backend=backend, ttl_days=ttl_days, **more)


def _fitted(settings: EpisodicSettings, dim: int) -> EpisodicSettings:
    """With codes of as many bytes as this width allows."""
    index = settings.index
    if not isinstance(index, IvfPqSettings) or dim % index.m == 0:
        return settings
    return settings.model_copy(update={"index": index.model_copy(update={"m": codes_of(dim, index.m)})})


def _write(
    output: Path,
    entries: Iterator[Entry],
    count: int,
    dim: int,
    encoder: str,
    settings: EpisodicSettings,
    show: Show,
) -> dict[str, Any]:
    added, renewed, settings = 0, 0, _fitted(settings, dim)
    with EpisodicStore(output, dim=dim, encoder=encoder, settings=settings) as store:
        for first in range(0, count, WRITTEN):
            some = [next(entries) for _ in range(min(WRITTEN, count - first))]
            fresh = [one.added for one in store.write_many(some)]
            added, renewed = added + sum(fresh), renewed + len(fresh) - sum(fresh)
            show("events", first + len(some), count)
        expired = store.sweep()
        held = len(store)
    figures = {"events": count, "added": added, "renewed": renewed, "expired": expired}
    return _told(output, figures, held, encoder, dim, settings)


def _told(
    output: Path, figures: dict[str, int], held: int, encoder: str, dim: int, settings: EpisodicSettings
) -> dict[str, Any]:
    about = say_how_made(output, encoder=encoder, dim=dim, settings=settings)
    about |= about.pop("index")
    return {"store": str(output), **figures, "entries": held, **about}


def _survey(path: Path, given: Rows | None, deadline: float) -> tuple[int, int, int]:
    """How many events, the width of their vectors, and how many were created by the deadline; UserError for
    the first row that is none."""
    dims = set() if given is None else {given.dim}
    count = expired = 0
    for count, (where, row, vector_D) in enumerate(_vectors(path, given), 1):  # noqa: B007
        dims.add(len(vector_D))
        if len(dims) != 1:
            raise UserError(f"{where}: its vector has {len(vector_D)} numbers, another has fewer or more")
        expired += row.get("created", math.inf) <= deadline
    if not count:
        raise UserError(f"--input {path} holds no event; give JSONL with a row each")
    if given is not None and len(given) != count:
        raise UserError(
            f"--vectors {given.paths[0]} has {len(given)} vectors for {count} events; give one each"
        )
    return count, dims.pop(), expired


def _entries(path: Path, given: Rows | None) -> Iterator[Entry]:
    for _, row, vector_D in _vectors(path, given):
        yield Entry(
            vector_D=vector_D,
            text=row.get("text", ""),
            tokens=tuple(row.get("tokens", ())),
            source=row.get("source", ""),
            created=row.get("created"),
        )


def _vectors(path: Path, given: Rows | None) -> Iterator[tuple[str, dict[str, Any], np.ndarray]]:
    """(where it stands, row, its vector [D]); UserError for a vector that nothing can be near to."""
    for number, (where, row) in enumerate(_read(path)):
        if (given is None) != ("vector" in row):
            raise UserError(
                f"{where}: give each row a vector, or all of them in --vectors FILE.npy, not both"
            )
        if given is not None and number == len(given):
            raise UserError(f"{where}: --vectors {given.paths[0]} has only {number} vectors; give one each")
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused
            numbers = row["vector"] if given is None else given.take(np.array([number]))[0]
            vector_D = np.asarray(numbers, np.float32)
        if not np.isfinite(vector_D).all():
            raise UserError(f"{where}: its vector holds what is no finite number in float32; leave it out")
        if not vector_D.any():
            raise UserError(f"{where}: its vector is zero and has no direction; leave it out")
        yield where, row, vector_D


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
    if row.get("created", 0) > time.time() + DAY:
        raise UserError(f"{where}: created={row['created']:g} is yet to come; give seconds since 1970")
    return row


def _number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
