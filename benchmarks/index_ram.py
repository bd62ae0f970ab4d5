"""`python benchmarks/index_ram.py [--share 0.1] [--folder DIR]`: resident memory of all indices.

The starter scale is a kNN index of 5,000,000 keys of 2304 (IVF4096,PQ32), a store of 1,000,000 events of
2304, and a product-key table of 4,000,000 x 256 in int8. A share of all three is really built, then opened by
a fresh process and asked 200 times each, the kNN with its candidates ranked by the keys on disk. What is told
is what that process has in memory above what the imports took: its own (anonymous) and pages of mapped files,
which the system takes back when it needs room. Extrapolated: what grows with the entries by the inverse of
the share, the centroids and tables by their shapes. Fails above 10 GB. The kNN's centroids are drawn from
the keys and not learned, and keys dealt to them evenly: the bytes are the same, and k-means over 2304 columns
would take most of an hour of one core. The events' are learned.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from episodic import ENCODER, fill, made

from quietreasoning.memory.arrays import open_keys
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.knn_index import CANDIDATES, FACTORY, KIND, NPROBE, KNNIndex, make, search_exactly
from quietreasoning.memory.sidecar import replacing, seal

DIM, K, ASKED, LIMIT = 2304, 32, 200, 10e9
ENTRIES, EVENTS, SLOTS, VALUE_DIM = 5_000_000, 1_000_000, 4_000_000, 256
CELLS, CODES, PART = 4096, 32, 20_000


def main(share: float, folder: Path) -> int:
    counts = {"entries": round(ENTRIES * share), "events": round(EVENTS * share)}
    counts["slots"] = round((SLOTS * share) ** 0.5) ** 2
    began = time.process_time()
    build(folder, **counts)
    print(f"{counts}: built in {time.process_time() - began:.0f} s of CPU", flush=True)
    done = subprocess.run(
        [sys.executable, __file__, "--ask", str(folder)], stdout=subprocess.PIPE, check=True
    )
    held = json.loads(done.stdout)
    total = 0.0
    for name, (scale, fixed) in {
        "kNN index": (ENTRIES / counts["entries"], 4 * DIM * (CELLS + 256) + 4 * CELLS * CODES * 256),
        "kNN values": (ENTRIES / counts["entries"], 0),
        "episodic store": (EVENTS / counts["events"], 4 * DIM * 256),
        "product-key table": (SLOTS / counts["slots"], 0),
    }.items():
        own, mapped = held[name]
        whole = max(own - fixed, 0) * scale + fixed
        if name == "episodic store":
            whole += 4 * DIM * CELLS  # the lists of a store of a million
        if name in ("kNN values", "product-key table"):
            whole += mapped * scale  # all of it read once, and kept
        total += whole
        print(
            f"  {name}: {own / 1e6:.1f} MB its own, {mapped / 1e6:.1f} MB mapped; at full size "
            f"{whole / 1e9:.2f} GB"
        )
    own, mapped = held["keys on disk"]
    print(
        f"  ranking by the keys on disk: {own / 1e6:.1f} MB its own, {mapped / 1e6:.1f} MB mapped, which may "
        "go"
    )
    print(f"  the whole process: {held['all'][0] / 1e6:.1f} MB its own, {held['all'][1] / 1e6:.1f} MB mapped")
    print(f"starter scale: {total / 1e9:.2f} GB (bound {LIMIT / 1e9:.0f})")
    return 0 if total < LIMIT else 1


def build(folder: Path, entries: int, events: int, slots: int) -> None:
    draw = np.random.default_rng(0)
    keys = np.lib.format.open_memmap(folder / "keys.npy", "w+", np.float32, (entries, DIM))
    for at in range(0, entries, PART):
        keys[at : at + PART] = draw.standard_normal((min(PART, entries - at), DIM), np.float32)
    keys.flush()
    index = make(FACTORY, DIM)
    index.quantizer.add(np.ascontiguousarray(keys[:CELLS]))
    index.quantizer_trains_alone = 1  # and has nothing left to learn
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.pq.train(np.ascontiguousarray(keys[CELLS : CELLS + 4000]))
    index.is_trained = True
    index.precompute_table()
    for at in range(0, entries, PART):
        part, ids = np.ascontiguousarray(keys[at : at + PART]), np.arange(at, min(at + PART, entries))
        lists = ids % CELLS  # held until they are read: FAISS is given addresses
        pointers = (faiss.swig_ptr(array) for array in (part, ids, lists))
        index.add_core(len(part), *pointers, None)
    index.nprobe = NPROBE
    with replacing(folder / "knn.index") as temporary:
        faiss.write_index(index, str(temporary))
    about = {"nprobe": NPROBE}
    seal(folder / "knn.index", kind=KIND, dim=DIM, metric="l2", counts={"entries": entries}, made_by=about)
    np.save(folder / "values.npy", draw.integers(0, 50_000, entries).astype(np.int32))
    (folder / "store").mkdir()
    fill(str(folder / "store"), made(draw, events, DIM, False))
    with EpisodicStore(folder / "store", dim=DIM, encoder=ENCODER) as store:
        store.index.wait()
    table = np.lib.format.open_memmap(folder / "pkm.npy", "w+", np.int8, (slots, VALUE_DIM))
    for at in range(0, slots, PART):
        table[at : at + PART] = draw.integers(-127, 127, (min(PART, slots - at), VALUE_DIM), np.int8)
    np.save(folder / "pkm.scale.npy", np.ones((slots, 1), np.float32))


def ask(folder: Path) -> None:
    """In a process of its own: open each, ask it, say what it took."""
    draw, told, before = np.random.default_rng(1), {}, resident()
    start = before

    def note(name: str) -> None:
        nonlocal before
        now = resident()
        told[name] = [now[0] - before[0], now[1] - before[1]]
        before = now

    queries = draw.standard_normal((ASKED, DIM), np.float32)
    index = KNNIndex.open(folder / "knn.index")
    index.search(queries, K)
    note("kNN index")
    values = np.load(folder / "values.npy", mmap_mode="r")
    assert values[:].sum() > 0
    note("kNN values")
    keys = open_keys(folder / "keys.npy", "--keys")
    for query_1D in queries[:, None]:
        search_exactly(index, keys, query_1D, K, CANDIDATES)
    note("keys on disk")
    with EpisodicStore(folder / "store", dim=DIM, encoder=ENCODER) as store:
        for query_1D in queries[:, None]:
            store.query(query_1D, 10)
        note("episodic store")
        kind = store.index.kind
    table, scale = (np.load(folder / name, mmap_mode="r") for name in ("pkm.npy", "pkm.scale.npy"))
    assert table[:].any() and scale[:].all()  # every row, as after long service
    note("product-key table")
    now = resident()
    told["all"] = [now[0] - start[0], now[1] - start[1]]
    assert kind == "faiss_ivfpq"
    print(json.dumps(told))


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: its own, and pages of files (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    return found["RssAnon"], found["RssFile"] + found["RssShmem"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--folder", type=Path, help="where the files go; default: a temporary folder")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.ask:
        ask(asked.ask)
    else:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            raise SystemExit(main(asked.share, Path(folder)))
