"""`python benchmarks/knn.py [entries ...]`: a kNN-LM index of N x 256 keys, by default 100,000.

Keys and queries are drawn alike: 32 hidden directions, mixed into 256, and a tenth of noise. Each size goes
through what `quiet index knn` and `quiet index verify-knn` call, files and hashes included: seconds of the
CPU and of the clock to build, milliseconds of a look-up of 32 neighbours beside an exact search by faiss over
the same keys in memory, recall@10 and @32 from the codes alone and with the candidates ranked by the keys on
disk, and bytes. Fails where re-ranked recall@10 is below 0.9, or the index is not faster than exact search.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from quietreasoning.indices.knn import make_knn, verify_knn
from quietreasoning.memory.knn_index import KNNIndex

DIM, HIDDEN, VOCABULARY, QUERIES, K = 256, 32, 50_000, 200, 32


def main(*sizes: int) -> None:
    print(f"cpu, {faiss.omp_get_max_threads()} thread(s), faiss {faiss.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for entries in sizes or (100_000,):
            index, done = build(Path(folder), entries)
            search(Path(folder), index, done)


def draw(count: int, seed: int) -> np.ndarray:
    mixing = np.random.default_rng(0).normal(size=(HIDDEN, DIM)).astype(np.float32)
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((count, HIDDEN), np.float32)
    return hidden @ mixing + 0.1 * HIDDEN**0.5 * rng.standard_normal((count, DIM), np.float32)


def build(folder: Path, entries: int) -> tuple[KNNIndex, dict]:
    keys = np.lib.format.open_memmap(folder / "keys.npy", "w+", np.float32, (entries, DIM))
    for at in range(0, entries, 50_000):
        keys[at : at + 50_000] = draw(min(50_000, entries - at), 1 + at)
    keys.flush()
    np.save(folder / "values.npy", np.random.default_rng(1).integers(0, VOCABULARY, entries))
    np.save(folder / "queries.npy", draw(QUERIES, -1 % 2**32))
    clock, cpu = time.perf_counter(), time.process_time()
    done = make_knn(folder / "keys.npy", folder / "values.npy", folder / "knn.index", DIM)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    print(f"{entries:,} x {DIM}: {done['factory']}, built in {cpu:.0f} s of CPU, {clock:.0f} s by the clock")
    before = resident()
    index = KNNIndex.open(folder / "knn.index")
    index.search(draw(1, 3), K)
    done["resident"] = resident() - before
    return index, done


def search(folder: Path, index: KNNIndex, done: dict) -> None:
    queries = np.load(folder / "queries.npy")
    flat = faiss.IndexFlatL2(DIM)
    flat.add(np.load(folder / "keys.npy", mmap_mode="r"))
    times: dict[str, list[float]] = {"index": [], "exact": []}
    for query in queries[:100, None]:
        for name, way in (("index", index), ("exact", flat)):
            began = time.perf_counter()
            way.search(query, K)
            times[name].append(1000 * (time.perf_counter() - began))
    mine, exact = (statistics.median(times[name]) for name in ("index", "exact"))
    began = time.perf_counter()
    index.search(queries, K)
    together = 1000 * (time.perf_counter() - began) / len(queries)
    print(
        f"  a look-up of {K}: {mine:.2f} ms alone, {together:.2f} ms among {len(queries)}, exact "
        f"{exact:.2f} ms ({exact / mine:.1f} x); nprobe {done['nprobe']}"
    )
    for k in (10, K):
        found = verify_knn(folder / "knn.index", folder / "queries.npy", k, folder / "keys.npy")
        print(
            f"  recall@{k}: {found['recall']:.3f} by codes in {found['ms']:.2f} ms, "
            f"{found['reranked_recall']:.3f} by {found['candidates']} candidates each in "
            f"{found['reranked_ms']:.2f} ms"
        )
        assert k > 10 or found["reranked_recall"] >= 0.9, "recall"
    per_entry = done["index_bytes"] / done["entries"]
    print(
        f"  index {done['index_bytes'] / 1e6:.1f} MB ({per_entry:.1f} bytes an entry), values "
        f"{done['values_bytes'] / 1e6:.1f} MB, resident after loading {done['resident'] / 1e6:.1f} MB"
    )
    assert mine < exact, "the index is slower than exact search"


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    fields = Path("/proc/self/statm").read_text(encoding="utf-8").split()
    return int(fields[1]) * 4096


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
