"""ScaNN, an optional package (Linux): a searcher over what there was when it was built, and an exact rest.

A searcher of ScaNN is built once and for all. So what is added later is searched exactly beside it, what is
removed is passed over, and the searcher is built anew when both exceed `rebuild_share` of all vectors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np

from quietreasoning.memory.flat import FlatIndex
from quietreasoning.memory.index_settings import CODE_CENTRES, ScannSettings
from quietreasoning.memory.vectors import METRIC, NONE, as_ids, as_vectors, need, nothing, padded


class ScannIndex:
    """All vectors in a flat index; the searcher knows the first of them by their places."""

    kind = "scann"
    metric = METRIC
    trained = True

    def __init__(self, dim: int, settings: ScannSettings | None = None):
        need("scann", self.kind)
        self.dim, self.settings = dim, settings or ScannSettings()
        self._rest = FlatIndex(dim)  # not in the searcher
        self._built_ND = np.empty((0, dim), np.float32)
        self._ids_N = np.empty(0, np.int64)  # of the searcher; -1: removed
        self._searcher: Any = None

    def __len__(self) -> int:
        return int((self._ids_N != NONE).sum()) + len(self._rest)

    def train(self, vectors_ND: np.ndarray) -> None:
        """The searcher learns when it is built."""

    def add(self, vectors_ND: np.ndarray, ids_N: np.ndarray) -> None:
        vectors_ND = as_vectors(vectors_ND, self.dim)
        self._rest.add(vectors_ND, as_ids(ids_N, len(vectors_ND)))
        self._rebuild_if_due()

    def remove(self, ids_N: np.ndarray) -> int:
        before = len(self)
        self._rest.remove(ids_N)
        self._ids_N = np.where(np.isin(self._ids_N, ids_N), NONE, self._ids_N)
        gone = before - len(self)
        self._rebuild_if_due()
        return gone

    def _rebuild_if_due(self) -> None:
        changed = len(self._rest) + int((self._ids_N == NONE).sum())
        if changed > self.settings.rebuild_share * max(len(self), 1):
            self.rebuild()

    def rebuild(self) -> None:
        """Everything into one searcher, if it is enough to learn codes from."""
        vectors_ND, ids_N = self._all()
        if len(ids_N) < CODE_CENTRES:
            self._rest, self._built_ND, self._ids_N = FlatIndex(self.dim), vectors_ND[:0], ids_N[:0]
            self._rest.add(vectors_ND, ids_N)
            self._searcher = None
            return
        import scann

        leaves = math.isqrt(len(ids_N))
        probes = min(self.settings.leaves_to_search, leaves)
        builder = scann.scann_ops_pybind.builder(vectors_ND, 10, "dot_product")
        builder = builder.tree(leaves, probes, training_sample_size=len(ids_N))
        self._searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
        self._built_ND, self._ids_N, self._rest = vectors_ND, ids_N, FlatIndex(self.dim)

    def _all(self) -> tuple[np.ndarray, np.ndarray]:
        kept_N = self._ids_N != NONE
        return (
            np.concatenate([self._built_ND[kept_N], self._rest.vectors_ND]),
            np.concatenate([self._ids_N[kept_N], self._rest.ids_N]),
        )

    def search(self, queries_MD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries_MD = as_vectors(queries_MD, self.dim, "queries")
        found = min(k, len(self))
        if not found or not len(queries_MD):
            return nothing(len(queries_MD), k)
        scores_MK, ids_MK = self._rest.search(queries_MD, found)
        if self._searcher is not None:
            removed = int((self._ids_N == NONE).sum())
            asked = min(found + removed, len(self._ids_N))
            at_MK, built_MK = self._searcher.search_batched(
                queries_MD, final_num_neighbors=asked, pre_reorder_num_neighbors=max(100, 2 * asked)
            )
            built_ids_MK = self._ids_N[at_MK.astype(np.int64)]
            built_MK = np.where(built_ids_MK == NONE, -np.inf, built_MK)
            scores_MK = np.concatenate([scores_MK, built_MK], axis=1)
            ids_MK = np.concatenate([ids_MK, built_ids_MK], axis=1)
        order_MK = np.argsort(-scores_MK, axis=1, kind="stable")[:, :found]
        return padded(np.take_along_axis(scores_MK, order_MK, 1), np.take_along_axis(ids_MK, order_MK, 1), k)

    def save(self, path: Path) -> None:
        """The vectors; a searcher is built from them on loading."""
        whole = FlatIndex(self.dim)
        whole.add(*self._all())
        whole.save(path)

    @classmethod
    def load(cls, path: Path, dim: int, settings: ScannSettings) -> Self:
        index, whole = cls(dim, settings), FlatIndex.load(path, dim)
        index.add(whole.vectors_ND, whole.ids_N)
        return index
