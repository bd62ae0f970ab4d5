"""An index of keys for nearest neighbours by squared L2 distance: built from mapped files, checked, searched.

Inverted lists of product-quantised vectors (IVF-PQ, 2011, doi 10.1109/TPAMI.2010.57) as faiss has them
(arXiv 2401.08281). Shapes: N keys, M queries, D width, K neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from quietreasoning.config import UserError
from quietreasoning.memory.arrays import Rows, open_keys
from quietreasoning.memory.index_settings import codes_of
from quietreasoning.memory.sidecar import Sidecar, check, replacing, seal

KIND = "knn-index"
FACTORY = "IVF4096,PQ32"
AGAIN = "build it anew with quiet index knn"
NPROBE = 256  # cells looked into; of a million keys, 32 hold .58 of the ten nearest and 256 hold .94
CANDIDATES = 8  # keys read from disk for each neighbour, where the keys are at hand
PER_CELL = 39  # points faiss wants for each centroid of k-means, below which it warns
PER_CODE = 256 * PER_CELL  # of the 256 centroids of each part of a product quantiser of 8 bits
_SAMPLE = 64  # points for each cell that training reads, where there are so many
_SAMPLE_BYTES = 2 << 30  # but no more than this, as long as faiss does not complain
ADDED = 1 << 16  # vectors in memory at once
_TYPES = (  # what may be read from a file
    *("IndexFlat", "IndexFlatL2", "IndexIVFFlat", "IndexIVFPQ", "IndexIVFScalarQuantizer", "IndexPQ"),
    *("IndexScalarQuantizer", "IndexHNSWFlat", "IndexPreTransform"),
)
Show = Callable[[str, int, int], None]
"""(what is being done, done, in all): called now and then."""


def quiet(what: str, done: int, total: int) -> None:
    """A `Show` that shows nothing."""


def fitting(factory: str, entries: int) -> str:
    """The factory, or the largest like it that so many entries can train; faiss's own minima decide.

    IVF: 39 vectors a cell, fewer cells below that, by powers of two. PQ: 9,984, plain vectors below that.
    """
    lists = re.search(r"IVF(\d+)", factory)
    if lists and entries < PER_CELL * int(lists[1]):
        cells = 1 << max((entries // PER_CELL).bit_length() - 1, 0)
        factory = (
            factory.replace(lists[0], f"IVF{cells}") if cells > 1 else re.sub(r"IVF\d+\w*,", "", factory)
        )
    if re.search(r"PQ\d", factory) and entries < PER_CODE:
        factory = re.sub(r"O?PQ[\dx_]+$", "Flat", re.sub(r"OPQ[\d_]+,", "", factory))
    return factory


def make(factory: str, dim: int) -> faiss.Index:
    """An empty index; UserError for a factory that faiss does not know or that does not fit `dim`."""
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_L2)
    except RuntimeError:
        index = None
    if index is None or not set(_types(index)) <= set(_TYPES):
        raise UserError(
            f"--factory {factory}: makes no index of vectors of dim {dim}. Give one such as "
            f"IVF4096,PQ{codes_of(dim)}, IVF256,Flat, HNSW32 or Flat; the number behind PQ must divide dim."
        )
    inner = faiss.downcast_index(faiss.try_extract_index_ivf(index) or index)
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False  # most of the time of training, and no search here uses it
    return index


def build(
    keys: Rows,
    path: Path,
    factory: str = FACTORY,
    *,
    nprobe: int = NPROBE,
    made_by: Mapping[str, Any] | None = None,
    show: Show = quiet,
) -> Sidecar:
    """Train an index on a sample of the keys, add all in batches, write it; its sidecar.

    A key's id is its row. UserError for keys that cannot be compared, and as `make` has it.
    """
    index = make(factory, keys.dim)
    if not index.is_trained:
        ids_S = _sample(keys, index)
        sample = _checked(keys.take(ids_S), ids_S)
        show("training", 0, len(sample))
        index.train(sample)
        show("training", len(sample), len(sample))
        del sample
    for first, batch in keys.batches(ADDED):
        index.add(_checked(batch, np.arange(first, first + len(batch))))
        show("adding", first + len(batch), len(keys))
    probes = _probe(index, nprobe)
    with replacing(path) as temporary:
        faiss.write_index(index, str(temporary))
    about = {"factory": factory, "nprobe": probes} | dict(made_by or {})
    return seal(path, kind=KIND, dim=keys.dim, metric="l2", counts={"entries": index.ntotal}, made_by=about)


class KNNIndex:
    """An index that was read from a file."""

    def __init__(self, index: faiss.Index, sidecar: Sidecar):
        self.index, self.sidecar = index, sidecar

    @classmethod
    def open(cls, path: Path, dim: int | None = None) -> KNNIndex:
        """UserError for a file that its sidecar does not vouch for, or that is not what the sidecar says."""
        sidecar = check(path, kind=KIND, again=AGAIN, dim=dim, metric="l2")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise UserError(f"{path} cannot be read by faiss {faiss.__version__}; {AGAIN}") from error
        if not set(_types(index)) <= set(_TYPES):
            raise UserError(f"{path} is a {' in a '.join(_types(index))}, which is never built here; {AGAIN}")
        metric = "l2" if index.metric_type == faiss.METRIC_L2 else "ip"
        sidecar.agree(path, AGAIN, entries=index.ntotal, dim=index.d, metric=metric)
        nprobe = sidecar.made_by.get("nprobe")
        if _probe(index, nprobe if isinstance(nprobe, int) and nprobe > 0 else NPROBE) != nprobe:
            raise UserError(f"{path}: nprobe is {nprobe!r:.40} in its sidecar, which cannot be; {AGAIN}")
        return cls(index, sidecar)

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def dim(self) -> int:
        return self.index.d

    def search(self, queries_MD: NDArray[np.float32], k: int) -> tuple[NDArray, NDArray]:
        """Squared distances, nearest first, and row numbers [M, K]; -1 where fewer were found.

        The distances are those of the quantised keys. ValueError for queries of another width.
        """
        queries_MD = np.ascontiguousarray(queries_MD, dtype=np.float32)
        if queries_MD.ndim != 2 or queries_MD.shape[1] != self.dim:
            raise ValueError(f"queries {queries_MD.shape} do not fit an index of dim {self.dim}")
        return self.index.search(queries_MD, k)


def exact(keys: Rows, queries_MD: NDArray[np.float32], k: int, show: Show = quiet) -> tuple[NDArray, NDArray]:
    """`search` over all keys as they are, batch by batch."""
    best_MK = np.full((len(queries_MD), k), np.inf, np.float32)
    ids_MK = np.full((len(queries_MD), k), -1, np.int64)
    for first, batch in keys.batches(ADDED):
        found_Mk, at_Mk = faiss.knn(queries_MD, batch, min(k, len(batch)))
        both, ids = np.concatenate([best_MK, found_Mk], 1), np.concatenate([ids_MK, at_Mk + first], 1)
        order = np.argsort(both, 1, kind="stable")[:, :k]
        best_MK, ids_MK = np.take_along_axis(both, order, 1), np.take_along_axis(ids, order, 1)
        show("exact search", first + len(batch), len(keys))
    return best_MK, ids_MK


def search_exactly(
    index: KNNIndex, keys: Rows, queries_MD: NDArray[np.float32], k: int, candidates: int
) -> tuple[NDArray, NDArray]:
    """`search` for `candidates` times k keys, the best k of them by the keys as they were."""
    _, ids_MC = index.search(queries_MD, min(candidates * k, len(index)))
    return _ranked(np.where(ids_MC >= 0, distances_to(keys, queries_MD, ids_MC), np.inf), ids_MC, k)


def search_for_others(
    index: KNNIndex,
    keys: Rows | None,
    queries_MD: NDArray[np.float32],
    asked_MD: NDArray[np.float32],
    k: int,
    candidates: int,
) -> tuple[NDArray, NDArray]:
    """What the index finds for `asked`, at its squared distances to `queries`, nearest first.

    keys: as for `search_exactly`; None: the index is asked alone, and distances are to the keys as it holds
    them, quantised or not.
    """
    if keys is not None:
        _, ids_MK = search_exactly(index, keys, asked_MD, k, candidates)
        far_MK = distances_to(keys, queries_MD, ids_MK)
    else:
        _, ids_MK, held_MKD = index.index.search_and_reconstruct(np.ascontiguousarray(asked_MD), k)
        gap_MKD = held_MKD.astype(np.float64) - queries_MD[:, None]
        far_MK = np.einsum("mkd,mkd->mk", gap_MKD, gap_MKD)
    return _ranked(np.where(ids_MK >= 0, far_MK, np.inf), ids_MK, k)


def _ranked(far_MC: NDArray, ids_MC: NDArray[np.int64], k: int) -> tuple[NDArray, NDArray]:
    far_MC = far_MC.astype(np.float32)
    order_MK = np.argsort(far_MC, 1, kind="stable")[:, :k]
    return np.take_along_axis(far_MC, order_MK, 1), np.take_along_axis(ids_MC, order_MK, 1)


def distances_to(keys: Rows, queries_MD: NDArray[np.float32], ids_MC: NDArray[np.int64]) -> NDArray:
    """Squared L2 distances [M, C] of each query to its candidates; of -1 it is that to the first key."""
    far_MC = np.empty(ids_MC.shape)
    for row, (query_D, ids_C) in enumerate(zip(queries_MD, ids_MC, strict=True)):
        gap_CD = keys.take(np.maximum(ids_C, 0)).astype(np.float64) - query_D
        far_MC[row] = np.einsum("cd,cd->c", gap_CD, gap_CD)
    return far_MC


def own_keys(index: KNNIndex, path: Path, where: str) -> Rows:
    """The keys that an index was made of; UserError for others."""
    keys = open_keys(path, "--keys", index.dim)
    if len(keys) != len(index) or keys.sha256() != index.sidecar.made_by.get("keys_sha256"):
        raise UserError(f"--keys {path}: index {where} was made of other keys. Give those.")
    return keys


def recall(
    keys: Rows, queries_MD: NDArray[np.float32], best_MK: NDArray, found: Mapping[str, NDArray[np.int64]]
) -> dict[str, float]:
    """Share of the k nearest keys in what was found, over all queries; best: squared distances by `exact`.

    One that is found counts where it lies no farther than the k-th of the exact search, so that keys which
    are alike do not count against the index.
    """
    limit_M1 = best_MK[:, -1:] * (1 + 1e-4) + 1e-6
    return {
        name: float(((distances_to(keys, queries_MD, ids_MK) <= limit_M1) & (ids_MK >= 0)).mean())
        for name, ids_MK in found.items()
    }


def cells_of(index: faiss.Index) -> int:
    """How many cells its keys lie in; 0 of an index that has none."""
    return getattr(faiss.try_extract_index_ivf(index), "nlist", 0)


def comparable(vectors_nD: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which vectors [n] lie at finite distances, in float32, from each other: over an infinite one, k-means
    in faiss ends the process."""
    reach = (np.finfo(np.float32).max / (4 * vectors_nD.shape[1])) ** 0.5
    return (vectors_nD.min(1) >= -reach) & (vectors_nD.max(1) <= reach)


def _checked(keys_nD: NDArray[np.float32], rows_n: NDArray[np.int64]) -> NDArray[np.float32]:
    wrong_n = ~comparable(keys_nD)
    if wrong_n.any():
        finite = np.isfinite(keys_nD[wrong_n][0]).all()
        what = "a number that is too large to square" if finite else "what is no finite number"
        raise UserError(f"the key of row {rows_n[wrong_n][0]} holds {what}; leave it out with its value")
    return keys_nD


def _sample(keys: Rows, index: faiss.Index) -> NDArray[np.int64]:
    """Rows, rising, that training reads."""
    cells = cells_of(index)
    least = max(PER_CELL * cells, PER_CODE)
    size = max(min(_SAMPLE * cells, _SAMPLE_BYTES // (4 * keys.dim)), least)
    if size >= len(keys):
        return np.arange(len(keys))
    drawn = np.random.Generator(np.random.Philox(0)).choice(len(keys), size, replace=False)
    return np.sort(drawn)


def _probe(index: faiss.Index, nprobe: int) -> int | None:
    """Set how many cells a search looks into; None of an index that has no cells."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        return None
    ivf.nprobe = min(nprobe, ivf.nlist)
    return ivf.nprobe


def _types(index: faiss.Index) -> list[str]:
    """Class of an index, and of the one inside it."""
    index = faiss.downcast_index(index)
    inner = [index.index] if isinstance(index, faiss.IndexPreTransform) else []
    return [type(index).__name__, *(name for one in inner for name in _types(one))]
