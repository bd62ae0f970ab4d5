"""What every nearest-neighbour index here promises, and how one is kept on disk.

The metric is the inner product everywhere; on unit vectors that is the cosine. Backends stand in files of
their own (`flat`, `faiss_index`, `faiss_hnsw`, `hnswlib_index`, `scann_index`) and are listed in `backends`.

Shapes: N vectors, D their width, M queries, K neighbours.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np

from quietreasoning.config import Settings, UserError

METRIC = "ip"
NONE = -1  # the id where fewer than K were found; its score is -inf
_BLOCK = 64  # columns of which the largest is sought at once


class VectorIndex(Protocol):
    """Vectors under ids of the caller's choice; each id at most once, which the caller sees to."""

    kind: ClassVar[str]
    """The name of the backend."""
    metric: ClassVar[str]
    dim: int
    settings: Settings

    def __init__(self, dim: int, settings: Settings) -> None: ...

    def __len__(self) -> int:
        """Vectors that can be found; removed ones do not count."""
        ...

    @property
    def trained(self) -> bool:
        """False where `train` must come before `add`."""
        ...

    def train(self, vectors_ND: np.ndarray) -> None:
        """Learn codes from a sample; nothing is added. Backends without codes do nothing."""
        ...

    def add(self, vectors_ND: np.ndarray, ids_N: np.ndarray) -> None:
        """float32 vectors and int64 ids >= 0; UserError for another width or numbers that are not finite."""
        ...

    def remove(self, ids_N: np.ndarray) -> int:
        """Forget these ids, unknown ones among them; returns how many were there."""
        ...

    def search(self, queries_MD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores_MK float32, ids_MK int64), best first; -inf and -1 where fewer than k were found.

        Scores of compressed vectors are approximate. k may exceed the number of vectors.
        """
        ...

    def save(self, path: Path) -> None:
        """Write the index alone; `backends.save_index` makes that safe and adds the sidecar."""
        ...

    @classmethod
    def load(cls, path: Path, dim: int, settings: Settings) -> Self:
        """The index that `save` wrote, its digest checked before. UserError if it is no such index."""
        ...


def as_vectors(vectors_ND: np.ndarray, dim: int, what: str = "vectors") -> np.ndarray:
    """The same numbers as contiguous float32 [N, dim]; one vector may come as [dim]."""
    array = np.atleast_2d(np.asarray(vectors_ND))
    if array.ndim != 2 or array.shape[1] != dim:
        raise UserError(
            f"{what}: shape {array.shape} where [any, {dim}] is expected. Give vectors of the model that "
            "made the others."
        )
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{what}: some numbers are not finite, and nothing is near those. Leave them out.")
    return array


def as_ids(ids_N: np.ndarray, count: int) -> np.ndarray:
    """The same ids as int64 [count]; -1 means "none" in results and is refused here."""
    array = np.asarray(ids_N)
    if array.shape != (count,) or not (np.issubdtype(array.dtype, np.integer) or count == 0):
        raise UserError(f"ids: {array.dtype} of shape {array.shape}; give {count} integers, one a vector")
    if count and array.min() < 0:
        raise UserError(f"ids: {array.min()} is below 0; give none, or numbers from 0 on")
    return np.ascontiguousarray(array, dtype=np.int64)


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """float32 vectors of length 1, for which the inner product is the cosine; zero vectors stay zero."""
    array = np.asarray(vectors_ND, dtype=np.float32)
    length = np.linalg.norm(array.astype(np.float64), axis=-1, keepdims=True)
    return (array / np.where(length > 0, length, 1.0)).astype(np.float32)


def padded(scores_MK: np.ndarray, ids_MK: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Results of at most k columns as exactly k, with -inf where the id is -1."""
    missing = ((0, 0), (0, k - ids_MK.shape[1]))
    ids_MK = np.pad(np.asarray(ids_MK, dtype=np.int64), missing, constant_values=NONE)
    scores_MK = np.pad(np.asarray(scores_MK, dtype=np.float32), missing, constant_values=-np.inf)
    return np.where(ids_MK == NONE, np.float32(-np.inf), scores_MK), ids_MK


def nothing(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What a search of nothing finds."""
    return padded(np.empty((rows, 0)), np.empty((rows, 0)), k)


def best(scores_MN: np.ndarray, ids_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row with their ids, best first.

    The k largest lie in the k blocks of columns with the largest maxima, and to find a maximum takes far less
    time than to part a row.
    """
    rows, count = scores_MN.shape
    ids_MN = np.broadcast_to(ids_N, scores_MN.shape)
    whole = count // _BLOCK * _BLOCK
    if whole > 4 * k * _BLOCK:
        most_MB = scores_MN[:, :whole].reshape(rows, -1, _BLOCK).max(2)
        blocks_MK = np.argpartition(most_MB, -k, axis=1)[:, -k:]
        at_MC = (blocks_MK[:, :, None] * _BLOCK + np.arange(_BLOCK)).reshape(rows, -1)
        rest_MC = np.broadcast_to(np.arange(whole, count), (rows, count - whole))
        at_MC = np.concatenate([at_MC, rest_MC], axis=1)
        scores_MN, ids_MN = np.take_along_axis(scores_MN, at_MC, 1), ids_N[at_MC]
    order_MK = np.argsort(-scores_MN, axis=1, kind="stable")[:, :k]
    return padded(np.take_along_axis(scores_MN, order_MK, 1), np.take_along_axis(ids_MN, order_MK, 1), k)


def need(package: str, backend: str) -> None:
    """UserError with the command that installs an optional package, where it is absent."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"backend={backend} needs {package}, which is not installed. Run: pip install {package}"
        )
