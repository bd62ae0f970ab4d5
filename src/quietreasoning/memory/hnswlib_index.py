"""The graph of hnswlib, an optional package.

Removed nodes are marked and passed through until there are too many, as in `faiss_hnsw`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.memory.index_settings import HnswSettings
from quietreasoning.memory.vectors import METRIC, as_ids, as_vectors, need, nothing, padded


class HnswlibIndex:
    """hnswlib calls ids labels, and the distance is 1 - inner product."""

    kind = "hnswlib"
    metric = METRIC
    trained = True

    def __init__(self, dim: int, settings: HnswSettings | None = None):
        need("hnswlib", self.kind)
        self.dim, self.settings = dim, settings or HnswSettings()
        self._graph = self._new(0)
        self._alive: set[int] = set()

    def _new(self, room: int) -> Any:
        import hnswlib

        graph = hnswlib.Index(space="ip", dim=self.dim)
        c = self.settings
        graph.init_index(max(room, 64), M=c.m, ef_construction=c.ef_construction, random_seed=0)
        return graph

    def __len__(self) -> int:
        return len(self._alive)

    @property
    def tombstones(self) -> int:
        return self._graph.get_current_count() - len(self._alive)

    def train(self, vectors_ND: np.ndarray) -> None:
        """Nothing to learn."""

    def add(self, vectors_ND: np.ndarray, ids_N: np.ndarray) -> None:
        vectors_ND = as_vectors(vectors_ND, self.dim)
        ids_N = as_ids(ids_N, len(vectors_ND))
        end = self._graph.get_current_count() + len(ids_N)
        if end > self._graph.get_max_elements():
            self._graph.resize_index(max(end, 2 * self._graph.get_max_elements()))
        self._graph.add_items(vectors_ND, ids_N)
        self._alive.update(ids_N.tolist())

    def remove(self, ids_N: np.ndarray) -> int:
        gone = self._alive.intersection(np.asarray(ids_N).tolist())
        for label in gone:
            self._graph.mark_deleted(label)
        self._alive -= gone
        if self.tombstones > self.settings.rebuild_share * self._graph.get_current_count():
            self.rebuild()
        return len(gone)

    def rebuild(self) -> None:
        """A graph of what is left, swapped in when it is done."""
        ids = sorted(self._alive)
        graph = self._new(len(ids))
        if ids:
            graph.add_items(np.asarray(self._graph.get_items(ids), np.float32), np.asarray(ids))
        self._graph = graph

    def search(self, queries_MD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries_MD = as_vectors(queries_MD, self.dim, "queries")
        found = min(k, len(self))
        if not found or not len(queries_MD):
            return nothing(len(queries_MD), k)
        self._graph.set_ef(max(self.settings.ef, found + self.tombstones))  # fewer than asked for is an error
        ids_MK, distances_MK = self._graph.knn_query(queries_MD, k=found)
        return padded(1.0 - distances_MK, ids_MK.astype(np.int64), k)

    def save(self, path: Path) -> None:
        if self.tombstones:
            self.rebuild()  # which labels are marked cannot be read back
        self._graph.save_index(str(path))

    @classmethod
    def load(cls, path: Path, dim: int, settings: HnswSettings) -> Self:
        index = cls(dim, settings)
        index._graph = index._graph.__class__(space="ip", dim=dim)
        try:
            index._graph.load_index(str(path))
        except RuntimeError as error:
            raise UserError(f"{path} is no hnswlib index: {error}") from error
        index._alive = set(index._graph.get_ids_list())
        return index
