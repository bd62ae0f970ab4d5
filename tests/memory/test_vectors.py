"""Every index finds what a plain matrix product finds, forgets what it should, and comes back from disk."""

import importlib.util

import faiss
import numpy as np
import pytest

from quietreasoning.config import UserError
from quietreasoning.memory.backends import BACKENDS, load_index, make_index, save_index
from quietreasoning.memory.faiss_hnsw import FaissHnsw
from quietreasoning.memory.faiss_index import FaissFlat, FaissIvfPq
from quietreasoning.memory.flat import FlatIndex
from quietreasoning.memory.index_settings import INDEX_SETTINGS, HnswSettings, IvfPqSettings, ScannSettings
from quietreasoning.memory.sidecar import seal
from quietreasoning.memory.vectors import unit

DIM, N = 16, 300
SMALL = {
    "faiss_ivfpq": IvfPqSettings(nlist=4, m=16, nprobe=4),
    "scann": ScannSettings(flat_until=256),
}


def vectors(count=N, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, DIM)))


def made(kind):
    if kind in ("hnswlib", "scann") and importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    index = make_index(kind, DIM, SMALL.get(kind))
    if not index.trained:
        index.train(vectors())
    return index


def exact(vectors_ND, ids_N, queries_MD, k):
    order = np.argsort(-(queries_MD @ vectors_ND.T), axis=1)[:, :k]
    found = np.full((len(queries_MD), k), -1)
    found[:, : order.shape[1]] = ids_N[order]
    return found


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_index_finds_what_a_matrix_product_finds(kind, tmp_path):
    index, ids_N, x_ND = made(kind), 7 * np.arange(N) + 3, vectors()
    queries_MD = x_ND[:20] + 0.05 * vectors(20, seed=1)
    scores, ids = index.search(queries_MD, 3)
    assert (ids == -1).all() and np.isneginf(scores).all() and ids.shape == (20, 3)
    for count in (1, 2, N):  # and one by one as well as together
        start = len(index)
        index.add(x_ND[start] if count < 3 else x_ND[start:count], ids_N[start:count])
        scores, ids = index.search(queries_MD, 3)
        assert len(index) == count and (ids[:, :count] >= 0).all() and (ids[:, count:] == -1).all()
        assert (ids[:, 0] == exact(x_ND[:count], ids_N[:count], queries_MD, 1)[:, 0]).mean() >= 0.95
        assert (np.diff(scores[:, :count]) <= 1e-6).all()
    gone = ids_N[:10]
    assert index.remove(np.append(gone, 999_999)) == 10 and len(index) == N - 10
    save_index(index, tmp_path / "index.bin", {"last_id": 5})
    again, sidecar = load_index(tmp_path / "index.bin", kind, DIM, index.settings, "rebuild it")
    assert sidecar.counts == {"entries": N - 10, "last_id": 5}
    wanted = exact(x_ND[10:], ids_N[10:], queries_MD, 1)
    for one in (index, again):
        ids = one.search(queries_MD, N)[1]
        assert not np.isin(ids, gone).any() and (ids[:, 0] == wanted[:, 0]).mean() >= 0.95
        one.add(x_ND[:1], gone[:1])
        assert one.search(x_ND[:1], 1)[1] == gone[0]
        assert one.remove(ids_N) == N - 9 and one.search(x_ND[:1], 1)[1] == -1


@pytest.mark.parametrize("count", [1990, 64 * 31])
def test_the_largest_of_many_are_found_by_blocks(count):
    index, x_ND, queries_MD = FlatIndex(DIM), vectors(count), vectors(50, seed=1)
    index.add(x_ND, np.arange(count))
    for k in (1, 7):
        assert (index.search(queries_MD, k)[1] == exact(x_ND, np.arange(count), queries_MD, k)).all()


@pytest.mark.parametrize("kind", ["faiss_hnsw", "hnswlib"])
def test_a_graph_is_built_anew_when_too_many_nodes_are_tombstones(kind):
    made(kind)
    index, x_ND, ids_N = make_index(kind, DIM, HnswSettings(rebuild_share=0.25)), vectors(), np.arange(N)
    index.add(x_ND, ids_N)
    index.remove(ids_N[: N // 4])
    assert index.tombstones == N // 4
    assert not np.isin(index.search(x_ND, 5)[1], ids_N[: N // 4]).any()
    index.remove(ids_N[N // 4 : N // 4 + 1])
    assert index.tombstones == 0 and len(index) == N - N // 4 - 1
    assert (index.search(x_ND[N // 2 :], 1)[1][:, 0] == ids_N[N // 2 :]).all()


def test_inverted_lists_compare_by_inner_product_throughout_and_look_where_they_are_told():
    index = FaissIvfPq(DIM, IvfPqSettings(nlist=4, m=16, nprobe=3))
    index.train(vectors())
    inner = index.lists
    assert inner.metric_type == inner.quantizer.metric_type == faiss.METRIC_INNER_PRODUCT
    assert inner.nprobe == 3 and inner.cp.spherical
    with pytest.raises(UserError, match="260 vectors cannot train nlist=270, which needs 270"):
        FaissIvfPq(DIM, IvfPqSettings(nlist=270, m=16)).train(vectors(260))
    with pytest.raises(UserError, match=r"m=5 does not divide the vectors' width 16\. Give m=4"):
        FaissIvfPq(DIM, IvfPqSettings(m=5))


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["flat", "faiss_flat", "faiss_hnsw"])
def test_an_index_of_another_kind_width_or_content_is_refused_by_name(kind, tmp_path):
    path, index = tmp_path / "index.bin", make_index(kind, DIM)
    index.add(vectors(), np.arange(N))

    def refused(match, dim=DIM, backend=kind, settings=None):
        with pytest.raises(UserError, match=match):
            load_index(path, backend, dim, settings or INDEX_SETTINGS[backend](), "rebuild it")

    save_index(index, path, {})
    refused("width|dim", dim=DIM * 2)
    refused("kind is", backend="faiss_ivfpq")
    if kind == "faiss_hnsw":
        refused("was made with .*'m': 32.*'m': 8", settings=HnswSettings(m=8))
    flip(path)
    refused("damaged")
    other = FaissFlat(DIM) if kind == "faiss_hnsw" else FaissHnsw(DIM)  # sealed as what it is not
    other.add(vectors(), np.arange(N))
    other.save(path)
    made_by = {"structure": {"m": 32, "ef_construction": 200} if kind == "faiss_hnsw" else {}}
    seal(path, kind=kind, dim=DIM, metric="ip", counts={"entries": N}, made_by=made_by)
    refused("index.bin (holds|is no)")
    index.save(path)
    seal(path, kind=kind, dim=DIM, metric="ip", counts={"entries": N + 1}, made_by=made_by)
    refused("entries")


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(UserError, match=r"faiss_flt.*Did you mean 'faiss_flat'"):
        make_index("faiss_flt", DIM)
    index = FlatIndex(DIM)
    for bad, match in ((np.ones((2, DIM + 1)), "shape"), (np.full((1, DIM), np.nan), "finite")):
        with pytest.raises(UserError, match=match):
            index.add(bad, np.arange(len(bad)))
    with pytest.raises(UserError, match="below 0"):
        index.add(vectors(1), np.array([-1]))
    if importlib.util.find_spec("scann") is None:
        with pytest.raises(UserError, match="pip install scann"):
            make_index("scann", DIM)
