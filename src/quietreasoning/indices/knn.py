"""`quiet index keys`, `knn` and `verify-knn`: from a model's reading of texts to a checked index."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quietreasoning.backbone import Backbone
from quietreasoning.backbone.weights import weights_identity
from quietreasoning.capture import Request, check, lay_out, open_data, open_teacher
from quietreasoning.config import UserError
from quietreasoning.data.config import build_task
from quietreasoning.data.load import load_split
from quietreasoning.data.teacher_cache.header import check_teacher, tokenizer_facts
from quietreasoning.memory.arrays import VALUES, Rows, open_keys, open_values
from quietreasoning.memory.datastore import Size, Source, build_datastore, source_in
from quietreasoning.memory.knn_index import (
    CANDIDATES,
    FACTORY,
    NPROBE,
    KNNIndex,
    Show,
    build,
    cells_of,
    comparable,
    exact,
    fitting,
    make,
    own_keys,
    quiet,
    recall,
    search_exactly,
)
from quietreasoning.memory.knn_lm import own_values, values_of
from quietreasoning.memory.sidecar import hash_of, replacing, seal

_LAID_OUT = 256  # rows at once


def make_keys(request: Request, size: Size, show: Show = quiet) -> dict[str, Any]:
    """A datastore of every position of the rows that a student of these data would read, each as often as it
    is there. The same command goes on where it ended."""
    check(request)
    teacher = open_teacher(request.model, request.revision, request.dtype)
    data, encoder = open_data(request, teacher)
    check_teacher(request.model, teacher.tokenizer, encoder.tokenizer)
    task = build_task(data)
    examples, dropped = load_split(task, request.split, data, encoder)
    rows = []
    for first in range(0, len(examples), _LAID_OUT):
        some = [examples[i] for i in range(first, min(first + _LAID_OUT, len(examples)))]
        rows += [row.ids for row in lay_out(encoder, some, text=task.text, steps=request.steps)]
    source = source_of(teacher.backbone, teacher.tokenizer)
    counts = build_datastore(teacher.backbone.model, rows, request.out, source, size=size, show=show)
    return {"datastore": str(request.out), "dim": source.dim, "dropped": dropped} | counts


def make_knn(
    keys: Path,
    values: Path,
    output: Path,
    dim: int,
    factory: str = FACTORY,
    nprobe: int | None = None,
    show: Show = quiet,
) -> dict[str, Any]:
    """An index of keys, its values beside it. Where the keys are too few for the factory, a smaller one is
    taken, and the result says so.

    What stood at `output` stays until all of the new is there. A kill between its pieces leaves what the next
    reader refuses, since the index vouches for its values.
    """
    _refuse(keys, values, output)
    asked = make(factory, dim)  # or refused before any work
    if nprobe is not None and not cells_of(asked):
        raise UserError(f"--nprobe {nprobe}: {factory} has no cells to look into; drop it, or give IVF")
    if keys.is_dir() != values.is_dir() or (keys.is_dir() and keys.resolve() != values.resolve()):
        raise UserError(f"--values {values}: a datastore is one folder, given as --keys and as --values")
    source = _source(source_in(keys)) if keys.is_dir() else None
    rows = open_keys(keys, "--keys", dim)
    tokens = open_values(values, "--values", len(rows))
    taken = fitting(factory, len(rows))
    beside = values_of(output)
    with replacing(beside) as temporary:
        _write_values(tokens, values, temporary)
        about = {
            "command": "quiet index knn",
            "asked": factory,
            "source": source,
            "keys": _place(keys, output),
            "keys_sha256": rows.sha256(),
            "values_sha256": hash_of(temporary),
        }
        sidecar = build(rows, output, taken, nprobe=nprobe or NPROBE, made_by=about, show=show)
    held = seal(beside, kind=VALUES, dim=1, metric="none", counts={"entries": len(tokens)})
    return {
        "index": str(output),
        "values": str(beside),
        "entries": len(rows),
        "dim": dim,
        "factory": taken,
        "asked": factory,
        "nprobe": sidecar.made_by["nprobe"],
        "index_bytes": sidecar.bytes,
        "values_bytes": held.bytes,
    }


def _refuse(keys: Path, values: Path, output: Path) -> None:
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, such as {output / 'knn.index'}")
    for flag, path in (("--keys", keys), ("--values", values)):
        if path.resolve() == output.resolve():
            raise UserError(f"--output {output} would replace the file of {flag}; name another")


def _write_values(tokens: Rows, values: Path, path: Path) -> None:
    out = np.lib.format.open_memmap(path, "w+", np.int32, (len(tokens),))
    for first, batch in tokens.batches(1 << 20):
        if batch.min() < 0 or batch.max() > np.iinfo(np.int32).max:
            raise UserError(f"--values {values}: ids go from {batch.min()} to {batch.max()}; give token ids")
        out[first : first + len(batch)] = batch
    out.flush()


def _place(keys: Path, output: Path) -> str:
    """Where keys lie, seen from their index; in full where they were named so and do not lie beneath it."""
    folder, path = output.parent.resolve(), keys.resolve()
    if keys.is_absolute() and not path.is_relative_to(folder):
        return str(path)
    return os.path.relpath(path, folder)


def _keys_of(index: KNNIndex, path: Path) -> Path:
    """Where the keys of the index at `path` lay when it was made; UserError where nothing is there."""
    place = index.sidecar.made_by.get("keys")
    if not isinstance(place, str):
        raise UserError(f"{path} does not say what keys it was made of. Name them: --keys FILE.npy")
    keys = path.parent.resolve() / place
    if not (keys.is_file() or keys.is_dir()):
        raise UserError(f"{path} was made of {keys}, which is gone. Say where it is now: --keys FILE.npy")
    return keys


def verify_knn(
    index: Path,
    queries: Path,
    k: int,
    keys: Path | None = None,
    candidates: int = CANDIDATES,
    show: Show = quiet,
) -> dict[str, Any]:
    """recall@k against an exact search of the keys that the index was made of, from the codes alone and with
    `candidates` for each neighbour ranked by the keys; milliseconds of both, a query at a time.

    keys: where they are now; None: where they were. k is at most the number of keys.
    """
    opened = KNNIndex.open(index)
    own_values(opened, index)
    rows = own_keys(opened, keys or _keys_of(opened, index), str(index))
    asked = open_keys(queries, "--queries", opened.dim)
    queries_MD = asked.take(np.arange(len(asked)))
    if not comparable(queries_MD).all():
        raise UserError(
            f"--queries {queries}: some numbers are not finite, or too large to square; leave those out"
        )
    most = min(k, len(opened))
    ways = {
        "": lambda query_1D: opened.search(query_1D, most),
        "reranked_": lambda query_1D: search_exactly(opened, rows, query_1D, most, candidates),
    }
    found = {name: [_timed(way, query_1D) for query_1D in queries_MD[:, None]] for name, way in ways.items()}
    ids = {name: np.concatenate([one.ids_1K for one in some]) for name, some in found.items()}
    distances = np.concatenate([one.far_1K for one in found[""]])[ids[""] >= 0]
    shares = recall(rows, queries_MD, exact(rows, queries_MD, most, show)[0], ids)
    return {
        "index": str(index),
        "entries": len(opened),
        "queries": len(queries_MD),
        "k": most,
        **{f"{name}recall": share for name, share in shares.items()},
        **{f"{name}ms": round(statistics.median(one.ms for one in some), 3) for name, some in found.items()},
        "candidates": candidates,
        "found_per_query": float((ids[""] >= 0).sum(1).mean()),
        "mean_distance": float(distances.mean()) if len(distances) else None,
        "factory": opened.sidecar.made_by.get("factory"),
        "nprobe": opened.sidecar.made_by.get("nprobe"),
    }


class _Search(NamedTuple):
    far_1K: np.ndarray
    ids_1K: np.ndarray
    ms: float


def _timed(way: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], query_1D: np.ndarray) -> _Search:
    began = time.perf_counter()
    far_1K, ids_1K = way(query_1D)
    return _Search(far_1K, ids_1K, 1000 * (time.perf_counter() - began))


def source_of(backbone: Backbone, tokenizer: Any) -> Source:
    """What keys and values of this model are made of; the hash of its weights reads them all."""
    facts = tokenizer_facts(tokenizer)
    return Source(
        weights_identity(backbone)["sha256"], facts["tokenizer_sha256"], backbone.width, facts["vocabulary"]
    )


def _source(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings.get(name) for name in asdict(Source("", "", 1, 1))}
