"""`python benchmarks/knn.py [entries ...]`: a kNN-LM index of N x 256 keys, by default 100,000.

Keys and queries are drawn alike: 32 hidden directions, mixed into 256, and a tenth of noise. Each size goes
through what `quiet index knn` and `quiet index verify-knn` call, files and hashes included: seconds of the
CPU and of the clock to build, milliseconds of a look-up of 32 neighbours beside an exact search by faiss over
the same keys in memory, recall@10, and bytes. Then what an index of the starter scale takes (5,000,000 keys
of 2304, 1,000,000 events of 2304, a table of 4,000,000 x 256), from the bytes an entry measured here and the
arithmetic of its centroids. Fails where that is above 10 GB, or the index is not faster than exact search.
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
from quietreasoning.indices.pkm import make_pkm
from quietreasoning.memory.knn_index import KNNIndex

DIM, HIDDEN, VOCABULARY, QUERIES, K = 256, 32, 50_000, 200, 32
STARTER = {"entries": 5_000_000, "events": 1_000_000, "dim": 2304, "cells": 4096, "codes": 32}
LIMIT = 10e9
TENTH = 632**2  # slots: about a tenth of 4,000,000


def main(*sizes: int) -> None:
    print(f"cpu, {faiss.omp_get_max_threads()} thread(s), faiss {faiss.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for entries in sizes or (100_000,):
            index, done = build(Path(folder), entries)
            search(Path(folder), index, done)
        starter(Path(folder), index, done)


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
    found = verify_knn(folder / "knn.index", folder / "queries.npy", 10, folder / "keys.npy")
    print(
        f"  a look-up of {K}: {mine:.2f} ms alone, {together:.2f} ms among {len(queries)}, exact "
        f"{exact:.2f} ms ({exact / mine:.1f} x); recall@10 {found['recall']:.3f} with nprobe {done['nprobe']}"
    )
    per_entry = done["index_bytes"] / done["entries"]
    print(
        f"  index {done['index_bytes'] / 1e6:.1f} MB ({per_entry:.1f} bytes an entry), values "
        f"{done['values_bytes'] / 1e6:.1f} MB, resident after loading {done['resident'] / 1e6:.1f} MB"
    )
    assert mine < exact, "the index is slower than exact search"


def starter(folder: Path, index: KNNIndex, done: dict) -> None:
    """Bytes at the starter scale: codes and ids as measured, centroids and tables by their shapes."""
    s, ivf = STARTER, faiss.extract_index_ivf(index.index)
    centroids = 4 * DIM * (ivf.nlist + 256)
    each = (done["index_bytes"] - centroids) / done["entries"]
    fixed = (
        4 * s["dim"] * (s["cells"] + 256) + 4 * s["cells"] * s["codes"] * 256
    )  # and the table of L2 searches
    pkm = make_pkm(folder / "pkm.npy", TENTH, 256)
    table = (pkm["values_bytes"] + pkm["scale_bytes"]) * 4_000_000 / TENTH
    parts = {
        "kNN index": each * s["entries"] + fixed,
        "kNN values": 4 * s["entries"],
        "episodic index": each * s["events"] + fixed,
        "product-key table": table,
    }
    told = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items())
    print(f"starter scale, {each:.1f} bytes an entry: {told}; in all {sum(parts.values()) / 1e9:.2f} GB")
    assert sum(parts.values()) < LIMIT, "above 10 GB"


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    fields = Path("/proc/self/statm").read_text(encoding="utf-8").split()
    return int(fields[1]) * 4096


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
