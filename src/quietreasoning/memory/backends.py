"""The index backends by name, and their files: an index, whole or absent, and the sidecar vouching for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quietreasoning.config import Settings, UserError, suggest
from quietreasoning.memory.faiss_hnsw import FaissHnsw
from quietreasoning.memory.faiss_index import FaissFlat, FaissIvfPq
from quietreasoning.memory.flat import FlatIndex
from quietreasoning.memory.hnswlib_index import HnswlibIndex
from quietreasoning.memory.index_settings import INDEX_SETTINGS
from quietreasoning.memory.scann_index import ScannIndex
from quietreasoning.memory.sidecar import Sidecar, check, replacing, seal
from quietreasoning.memory.vectors import METRIC, VectorIndex

_CLASSES = (FlatIndex, FaissFlat, FaissIvfPq, FaissHnsw, HnswlibIndex, ScannIndex)
BACKENDS: dict[str, type[VectorIndex]] = {index.kind: index for index in _CLASSES}
_STRUCTURE = ("nlist", "m", "ef_construction")  # settings that an index is made by; the others serve searches


def make_index(backend: str, dim: int, settings: Settings | None = None) -> VectorIndex:
    """An empty index; UserError for a name that is none, and for a package that is not installed."""
    if backend not in BACKENDS:
        raise UserError(f"backend={backend!r} names no index. {suggest(backend, BACKENDS)}")
    return BACKENDS[backend](dim, settings or INDEX_SETTINGS[backend]())


def save_index(
    index: VectorIndex, path: Path, counts: Mapping[str, int], made_by: Mapping[str, Any] | None = None
) -> Sidecar:
    """Write index and sidecar; counts and made_by are kept beside those of the index itself.

    Who replaces an index that is there, and dies between the two, leaves one that its sidecar refuses.
    """
    with replacing(path) as temporary:
        index.save(temporary)
    return seal(
        path,
        kind=index.kind,
        dim=index.dim,
        metric=METRIC,
        counts={"entries": len(index), **counts},
        made_by={"structure": structure(index.settings), **(made_by or {})},
    )


def load_index(
    path: Path, backend: str, dim: int, settings: Settings, again: str
) -> tuple[VectorIndex, Sidecar]:
    """The index that `save_index` wrote with such settings; UserError naming what is wrong.

    again: the cure, as in "it is rebuilt from the journal".
    """
    sidecar = check(path, kind=backend, again=again, dim=dim, metric=METRIC)
    if sidecar.made_by.get("structure") != structure(settings):
        made_with = sidecar.made_by.get("structure")
        raise UserError(f"{path} was made with {made_with}, and {structure(settings)} is set; {again}")
    index = BACKENDS[backend].load(path, dim, settings)
    sidecar.agree(path, again, entries=len(index), dim=index.dim)
    return index, sidecar


def structure(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in settings.model_dump().items() if name in _STRUCTURE}
