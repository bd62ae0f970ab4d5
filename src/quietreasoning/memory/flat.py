"""Exact search by one matrix product, in NumPy: no package, no training, right from the first vector on."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.memory.index_settings import FlatSettings
from quietreasoning.memory.vectors import METRIC, as_ids, as_vectors, best, nothing

BLOCK = 1 << 24  # scores held at a time: 64 MB


class FlatIndex:
    """All vectors in one growing array."""

    kind = "flat"
    metric = METRIC
    trained = True

    def __init__(self, dim: int, settings: FlatSettings | None = None):
        self.dim, self.settings = dim, settings or FlatSettings()
        self._count = 0
        self._vectors_CD = np.empty((0, dim), np.float32)
        self._ids_C = np.empty(0, np.int64)

    def __len__(self) -> int:
        return self._count

    @property
    def vectors_ND(self) -> np.ndarray:
        return self._vectors_CD[: self._count]

    @property
    def ids_N(self) -> np.ndarray:
        return self._ids_C[: self._count]

    def train(self, vectors_ND: np.ndarray) -> None:
        """Nothing to learn."""

    def add(self, vectors_ND: np.ndarray, ids_N: np.ndarray) -> None:
        vectors_ND = as_vectors(vectors_ND, self.dim)
        ids_N = as_ids(ids_N, len(vectors_ND))
        end = self._count + len(ids_N)
        if end > len(self._ids_C):
            self._grow(max(end, 2 * len(self._ids_C), 64))
        self._vectors_CD[self._count : end], self._ids_C[self._count : end] = vectors_ND, ids_N
        self._count = end

    def _grow(self, room: int) -> None:
        """Room at least doubles, so that adding one by one copies each vector once or twice."""
        vectors_ND, ids_N = self.vectors_ND, self.ids_N
        self._vectors_CD = np.empty((room, self.dim), np.float32)
        self._ids_C = np.empty(room, np.int64)
        self._vectors_CD[: self._count], self._ids_C[: self._count] = vectors_ND, ids_N

    def remove(self, ids_N: np.ndarray) -> int:
        keep_N = ~np.isin(self.ids_N, ids_N)
        kept, before = int(keep_N.sum()), self._count
        if kept < before:
            self._vectors_CD[:kept], self._ids_C[:kept] = self.vectors_ND[keep_N], self.ids_N[keep_N]
            self._count = kept
        return before - kept

    def search(self, queries_MD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries_MD = as_vectors(queries_MD, self.dim, "queries")
        rows = max(1, BLOCK // max(self._count, 1))
        blocks = [queries_MD[at : at + rows] for at in range(0, len(queries_MD), rows)]
        found = [best(block_BD @ self.vectors_ND.T, self.ids_N, k) for block_BD in blocks]
        if not found:
            return nothing(0, k)
        scores, ids = zip(*found, strict=True)
        return np.concatenate(scores), np.concatenate(ids)

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, vectors=self.vectors_ND, ids=self.ids_N)

    @classmethod
    def load(cls, path: Path, dim: int, settings: FlatSettings | None = None) -> Self:
        index = cls(dim, settings)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                index.add(arrays["vectors"], arrays["ids"])
        except (ValueError, KeyError, OSError, BadZipFile) as error:
            raise UserError(f"{path} is no flat index of width {dim}: {error}") from error
        return index
