"""FAISS inverted lists and flat search, by inner product in the index and in its quantiser.

Compressed scores are approximate, so that whoever has the vectors ranks the candidates again by them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np

from quietreasoning.config import Settings, UserError
from quietreasoning.memory.index_settings import CODE_CENTRES, FlatSettings, IvfPqSettings, codes_of
from quietreasoning.memory.vectors import METRIC, as_ids, as_vectors, nothing, padded

BATCH = 1 << 16  # vectors added at a time


class _Faiss(ABC):
    """What an index with ids of its own does; `_index` is FAISS's."""

    metric = METRIC

    def __init__(self, dim: int, settings: Settings):
        self.dim, self.settings = dim, settings
        self._index = self._new()

    @abstractmethod
    def _new(self) -> Any:
        """FAISS's index, empty."""

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def trained(self) -> bool:
        return self._index.is_trained

    def add(self, vectors_ND: np.ndarray, ids_N: np.ndarray) -> None:
        assert self.trained, "train comes before add"
        vectors_ND = np.atleast_2d(vectors_ND)
        ids_N = as_ids(ids_N, len(vectors_ND))
        for at in range(0, len(ids_N), BATCH):  # memory-mapped vectors are read a part at a time
            part_ND = as_vectors(vectors_ND[at : at + BATCH], self.dim)
            self._index.add_with_ids(part_ND, ids_N[at : at + BATCH])

    def remove(self, ids_N: np.ndarray) -> int:
        return self._index.remove_ids(np.unique(np.asarray(ids_N, np.int64)))

    def search(self, queries_MD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries_MD = as_vectors(queries_MD, self.dim, "queries")
        found = min(k, len(self))
        if not found or not len(queries_MD):
            return nothing(len(queries_MD), k)
        return padded(*self._index.search(queries_MD, found), k)

    def save(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, dim: int, settings: Settings) -> Self:
        index = cls(dim, settings)
        index._index = read_faiss(path, dim, index._index)
        return index


class FaissFlat(_Faiss):
    """Exact search in FAISS."""

    kind = "faiss_flat"

    def __init__(self, dim: int, settings: FlatSettings | None = None):
        super().__init__(dim, settings or FlatSettings())

    def _new(self) -> Any:
        return faiss.IndexIDMap2(faiss.IndexFlatIP(self.dim))

    def train(self, vectors_ND: np.ndarray) -> None:
        """Nothing to learn."""


class FaissIvfPq(_Faiss):
    """The default of large stores: `nlist` lists, codes of `m` bytes (doi 10.1109/TPAMI.2010.57).

    Vectors are turned at random first, always alike. A code gives every part of a vector one byte, and the
    states of language models have a few columns that are larger than all others: turned, all parts weigh the
    same.
    """

    kind = "faiss_ivfpq"

    def __init__(self, dim: int, settings: IvfPqSettings | None = None):
        super().__init__(dim, settings or IvfPqSettings())

    def _new(self) -> Any:
        if self.dim % self.settings.m:
            raise UserError(
                f"m={self.settings.m} does not divide the vectors' width {self.dim}. Give "
                f"m={codes_of(self.dim, self.settings.m)}"
            )
        coarse = faiss.IndexFlatIP(self.dim)
        lists = faiss.IndexIVFPQ(
            coarse, self.dim, self.settings.nlist, self.settings.m, 8, faiss.METRIC_INNER_PRODUCT
        )
        lists.nprobe = self.settings.nprobe
        # how many vectors are enough is decided by `train`, not warned of by FAISS
        lists.cp.min_points_per_centroid = lists.pq.cp.min_points_per_centroid = 1
        turned = faiss.RandomRotationMatrix(self.dim, self.dim)
        turned.init(0)
        return faiss.IndexPreTransform(turned, lists)

    @property
    def lists(self) -> Any:
        """FAISS's index behind the rotation."""
        return faiss.extract_index_ivf(self._index)

    def train(self, vectors_ND: np.ndarray) -> None:
        """Lists and codes from a sample of at most `train_per_list` vectors for each list, drawn evenly.

        UserError for fewer vectors than FAISS can learn from: one for each list, 256 for the codes.
        """
        c = self.settings
        least = max(c.nlist, CODE_CENTRES)
        if len(vectors_ND) < least:
            raise UserError(
                f"{len(vectors_ND)} vectors cannot train nlist={c.nlist}, which needs {least}. Take a "
                "smaller nlist, or backend=flat"
            )
        at_S = np.arange(len(vectors_ND))
        if len(vectors_ND) > c.flat_until:
            at_S = np.random.default_rng(0).choice(len(vectors_ND), max(least, c.flat_until), replace=False)
        self._index.train(as_vectors(vectors_ND[np.sort(at_S)], self.dim))

    @classmethod
    def load(cls, path: Path, dim: int, settings: IvfPqSettings) -> Self:
        index = super().load(path, dim, settings)
        index.lists.nprobe = settings.nprobe
        return index


def read_faiss(path: Path, dim: int, like: Any) -> Any:
    """The index in a file; UserError unless it is of the kind of `like`, part by part.

    FAISS reads altered bytes without complaint (its header can claim any type and any count), so that the
    file's digest must have been checked before.
    """
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2].strip().replace("\n", " ")
        raise UserError(f"{path} is no FAISS index: {reason:.200}") from error
    expect(index, path, dim, like)
    return index


def expect(index: Any, path: Path, dim: int, like: Any) -> None:
    """UserError unless an index read from `path` is of the kind of `like`, as wide, and by inner product."""
    if kinds(index) != kinds(like) or index.d != dim or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise UserError(
            f"{path} holds {'/'.join(kinds(index))} of width {index.d}, and {'/'.join(kinds(like))} of width "
            f"{dim} by inner product is needed"
        )


def kinds(index: Any) -> tuple[str, ...]:
    """Class names of an index and of what it wraps."""
    index = faiss.downcast_index(index)
    inner = (getattr(index, "index", None), getattr(index, "quantizer", None))
    return (type(index).__name__, *(name for part in inner if part is not None for name in kinds(part)))
