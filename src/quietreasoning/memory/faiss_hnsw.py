"""A navigable small-world graph in FAISS that can forget.

The graph cannot lose a node. What is removed stays as a tombstone, through which searches pass and which they
never return; when tombstones make `rebuild_share` of the nodes, the graph is built anew without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import faiss
import numpy as np

from quietreasoning.config import UserError
from quietreasoning.memory.faiss_index import expect
from quietreasoning.memory.index_settings import HnswSettings
from quietreasoning.memory.vectors import METRIC, NONE, as_ids, as_vectors, nothing, padded


class FaissHnsw:
    """Nodes 0, 1, ... of the graph, and the id of each; a tombstone's id is -1."""

    kind = "faiss_hnsw"
    metric = METRIC
    trained = True

    def __init__(self, dim: int, settings: HnswSettings | None = None):
        self.dim, self.settings = dim, settings or HnswSettings()
        self._graph = self._new()
        self._ids_N = np.empty(0, np.int64)

    def _new(self) -> Any:
        graph = faiss.IndexHNSWFlat(self.dim, self.settings.m, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = self.settings.ef_construction
        return graph

    def __len__(self) -> int:
        return int((self._ids_N != NONE).sum())

    @property
    def tombstones(self) -> int:
        return len(self._ids_N) - len(self)

    def train(self, vectors_ND: np.ndarray) -> None:
        """Nothing to learn."""

    def add(self, vectors_ND: np.ndarray, ids_N: np.ndarray) -> None:
        vectors_ND = as_vectors(vectors_ND, self.dim)
        ids_N = as_ids(ids_N, len(vectors_ND))
        self._graph.add(vectors_ND)
        self._ids_N = np.concatenate([self._ids_N, ids_N])

    def remove(self, ids_N: np.ndarray) -> int:
        gone_N = np.isin(self._ids_N, ids_N) & (self._ids_N != NONE)
        self._ids_N = np.where(gone_N, NONE, self._ids_N)
        if self.tombstones > self.settings.rebuild_share * len(self._ids_N):
            self.rebuild()
        return int(gone_N.sum())

    def rebuild(self) -> None:
        """A graph of what is left, swapped in when it is done."""
        kept_K = np.flatnonzero(self._ids_N != NONE)
        graph = self._new()
        if len(kept_K):
            graph.add(self._graph.reconstruct_batch(kept_K))
        self._graph, self._ids_N = graph, self._ids_N[kept_K]

    def search(self, queries_MD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries_MD = as_vectors(queries_MD, self.dim, "queries")
        found = min(k, len(self))
        if not found or not len(queries_MD):
            return nothing(len(queries_MD), k)
        chosen: dict[str, Any] = {"efSearch": max(self.settings.ef, found)}
        if self.tombstones:
            alive = np.packbits(self._ids_N != NONE, bitorder="little")
            chosen["sel"] = faiss.IDSelectorBitmap(alive)
        scores_MK, at_MK = self._graph.search(queries_MD, found, params=faiss.SearchParametersHNSW(**chosen))
        return padded(scores_MK, np.where(at_MK < 0, NONE, self._ids_N[at_MK]), k)

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, graph=faiss.serialize_index(self._graph), ids=self._ids_N)

    @classmethod
    def load(cls, path: Path, dim: int, settings: HnswSettings) -> Self:
        index = cls(dim, settings)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                graph, ids_N = faiss.deserialize_index(arrays["graph"]), arrays["ids"]
        except (ValueError, KeyError, OSError, RuntimeError, BadZipFile) as error:
            raise UserError(f"{path} is no saved graph: {error!s:.200}") from error
        expect(graph, path, dim, index._graph)
        if ids_N.shape != (graph.ntotal,) or ids_N.dtype != np.int64:
            raise UserError(f"{path}: {graph.ntotal} nodes and {ids_N.dtype} ids of shape {ids_N.shape}")
        index._graph, index._ids_N = graph, ids_N
        return index
