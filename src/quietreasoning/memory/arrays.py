"""NumPy files that stay on disk: opened mapped, checked, and read in batches. Several may count as one.

Shapes: N rows, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quietreasoning.config import UserError
from quietreasoning.memory.sidecar import check, hash_of, sidecar_of

KEYS, VALUES = "knn-keys", "knn-values"  # kinds of sidecars
_SCAN = 1 << 20  # values looked at together


@dataclass(frozen=True)
class Rows:
    """Mapped arrays of one type and width, one after another; nothing is read before it is asked for."""

    paths: tuple[Path, ...]
    parts: tuple[NDArray, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def dim(self) -> int:
        return self.parts[0].shape[1]

    def batches(self, size: int) -> Iterator[tuple[int, NDArray]]:
        """(number of the first row, rows) in order, `size` rows or fewer; copies in memory."""
        first = 0
        for part in self.parts:
            for at in range(0, len(part), size):
                yield first + at, np.ascontiguousarray(part[at : at + size])
            first += len(part)

    def take(self, ids_N: NDArray[np.int64]) -> NDArray:
        """The rows of these numbers, in their order; those of a part are read in the order of the file."""
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        out = np.empty((len(ids_N), *self.parts[0].shape[1:]), self.parts[0].dtype)
        order = np.argsort(ids_N, kind="stable")
        edges = np.searchsorted(ids_N[order], starts)
        for part, start, low, high in zip(self.parts, starts, edges, edges[1:], strict=False):
            places = order[low:high]
            out[places] = part[ids_N[places] - start]
        return out

    def sha256(self) -> str:
        """Of the file; of several, of their hashes in order."""
        hashes = [hash_of(path) for path in self.paths]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def open_keys(path: Path, flag: str, dim: int | None = None) -> Rows:
    """float32 vectors (N, D) of a file, or of a datastore's folder. UserError for other shapes and types."""
    rows = _open(
        path, flag, KEYS, "a float32 array (N, dim)", lambda a: a.ndim == 2 and a.dtype == np.float32
    )
    if len({part.shape[1] for part in rows.parts}) > 1 or (dim is not None and rows.dim != dim):
        widths = sorted({part.shape[1] for part in rows.parts})
        raise UserError(
            f"{flag} {path}: vectors have dim {widths}, and {'one' if dim is None else dim} is needed. Give "
            "vectors of that dim, or the dim of these."
        )
    return rows


def open_values(path: Path, flag: str, count: int) -> Rows:
    """Token ids (N,) of a file, or of a datastore's folder. UserError where there are not `count`."""
    what = "an array (N,) of whole numbers"
    rows = _open(path, flag, VALUES, what, lambda a: a.ndim == 1 and a.dtype.kind in "iu")
    if len(rows) != count:
        raise UserError(
            f"{flag} {path} has {len(rows)} entries, and there are {count} keys: each needs its own value. "
            "Give files that were made together."
        )
    return rows


def bounds(values: Rows) -> tuple[int, int]:
    """The smallest and the largest; (0, 0) of none."""
    ends = [(int(part.min()), int(part.max())) for _, part in values.batches(_SCAN)]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0, 0)


def open_array(path: Path, flag: str, what: str) -> NDArray:
    """A .npy file, mapped; UserError where it is none. What has a sidecar must match it."""
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file. Give {what} in a .npy file.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{flag} {path} is no whole .npy file. Give {what}, as numpy.save writes it."
        ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{flag} {path} holds several arrays. Give {what} in a .npy file of its own.")
    return array


def _open(path: Path, flag: str, kind: str, what: str, fits) -> Rows:
    paths: Sequence[Path] = [path]
    if path.is_dir():
        paths = sorted(path.glob(f"{kind.removeprefix('knn-')}-*.npy"))
        if not paths:
            raise UserError(
                f"{flag} {path}: the folder holds no datastore. Give one that is whole, or a file."
            )
    parts = []
    for one in paths:
        array = open_array(one, flag, what)
        if sidecar_of(one).exists():
            check(one, kind=kind, again="make the datastore anew")
        if not fits(array):
            raise UserError(f"{flag} {one} is {array.dtype} {array.shape}. Give {what}.")
        parts.append(array)
    rows = Rows(tuple(paths), tuple(parts))
    if not len(rows):
        raise UserError(f"{flag} {path} is empty. Give {what}, with an entry at least.")
    return rows
