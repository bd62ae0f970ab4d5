"""`python benchmarks/episodic.py [--entries 1000,100000] [--dim 256] [--backend faiss_ivfpq] [--random]`

The episodic store: writes/s one at a time (each on disk before the next) and in batches of 100, and ms a
query, where it holds so many entries already; beside it exact search by one matrix product over the same
vectors in memory, in turns. Recall is the share of the ten nearest by exact search that the store returns;
fails below 0.95. Vectors: topics of about 50 events with a cosine of 0.6 to one another, a query with 0.9 to
an event. With --random they have no structure at all, which is the worst for inverted lists.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quietreasoning.memory.episodic import JOURNAL, EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.flat import FlatIndex
from quietreasoning.memory.journal import Entry, Journal
from quietreasoning.memory.vectors import unit

K, QUERIES, ALONE, TOPIC, RECALL = 10, 100, 100, 50, 0.95
ENCODER = "benchmark@1"


def main(entries: tuple[int, ...], dim: int, backend: str, random: bool) -> int:
    print(f"cpu, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}, width {dim}, {backend}")
    low = [count for count in entries if measure(count, dim, backend, random) < RECALL]
    if low:
        print(f"FAILED: recall below {RECALL} at {', '.join(f'{count:,}' for count in low)} entries")
    return 1 if low else 0


def measure(count: int, dim: int, backend: str, random: bool) -> float:
    """Print the figures for one size; the recall."""
    draw = np.random.default_rng(0)
    vectors_ND = made(draw, count, dim, random)
    asked = draw.choice(count, QUERIES, replace=False)
    queries_MD = unit(vectors_ND[asked] + 0.48 * unit(draw.normal(size=(QUERIES, dim))))
    exact = FlatIndex(dim)
    exact.add(vectors_ND, np.arange(1, count + 1))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fill(folder, vectors_ND)
        filled = time.perf_counter()
        settings = EpisodicSettings.model_validate({"backend": backend})
        with EpisodicStore(folder, dim=dim, encoder=ENCODER, settings=settings) as store:
            store.index.wait()
            opened = time.perf_counter()
            kind = store.index.kind
            ours, theirs, found, wanted = [], [], [], []
            for query_D in queries_MD:
                ours.append(timed(lambda q=query_D: store.query(q[None], K), found))
                theirs.append(timed(lambda q=query_D: exact.search(q[None], K), wanted))
            new = [Entry(vector, "new") for vector in made(draw, 12 * ALONE, dim, True)]
            alone = timed(lambda: [store.write(entry) for entry in new[:ALONE]])
            parts = [new[at : at + 100] for at in range(ALONE, len(new), 100)]
            batches = timed(lambda: [store.write_many(part) for part in parts])
    recall = statistics.mean(
        len({one.entry.id for one in rows[0]} & set(ids_MK[0].tolist())) / K
        for rows, (_, ids_MK) in zip(found, wanted, strict=True)
    )
    ratio = statistics.median(slow.wall / fast.wall for slow, fast in zip(theirs, ours, strict=True))
    walls, work = [1e3 * one.wall for one in ours], statistics.median(1e3 * one.cpu for one in ours)
    print(
        f"{count:,} entries ({kind}): filled in {filled - began:.1f} s, index made in {opened - filled:.1f} s"
    )
    print(
        f"  one write at a time: {ALONE / alone.wall:,.0f}/s ({1e3 * alone.cpu / ALONE:.2f} ms of CPU each)"
    )
    rest = len(new) - ALONE
    print(f"  by the hundred: {rest / batches.wall:,.0f}/s ({1e3 * batches.cpu / rest:.2f} ms of CPU each)")
    print(
        f"  a query: median {statistics.median(walls):.2f} ms ({work:.2f} ms of CPU), 95 % within "
        f"{np.quantile(walls, 0.95):.2f} ms; exact search in memory takes {ratio:.2f} x that"
    )
    print(f"  recall@{K}: {recall:.3f}", flush=True)
    return recall


def made(draw: np.random.Generator, count: int, dim: int, random: bool) -> np.ndarray:
    """Unit vectors [count, dim], float32."""
    vectors_ND = draw.standard_normal((count, dim), np.float32)
    if not random:
        topics_CD = draw.standard_normal((count // TOPIC + 1, dim), np.float32)
        vectors_ND *= 0.8
        vectors_ND += topics_CD[draw.integers(len(topics_CD), size=count)]
    length = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.divide(vectors_ND, length, out=vectors_ND)


def fill(folder: str, vectors_ND: np.ndarray) -> None:
    """Straight into the journal: what is measured is a store that holds these already."""
    journal = Journal(Path(folder, JOURNAL), dim=vectors_ND.shape[1], encoder=ENCODER)
    now = time.time()
    for at in range(0, len(vectors_ND), 10_000):
        part = [
            Entry(vector, f"event {at + i}", created=now, refreshed=now)
            for i, vector in enumerate(vectors_ND[at : at + 10_000])
        ]
        with journal.transaction():
            journal.add(part)
    journal.close()


class Took(NamedTuple):
    wall: float  # seconds
    cpu: float  # of this process and its threads


def timed(work: Callable[[], Any], results: list | None = None) -> Took:
    """Do it once; what it returns is added to `results`."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    took = Took(time.perf_counter() - wall, time.process_time() - cpu)
    if results is not None:
        results.append(result)
    return took


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", default="1000,100000")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--backend", default="faiss_ivfpq")
    parser.add_argument("--random", action="store_true")
    asked = parser.parse_args()
    sizes = tuple(int(size) for size in asked.entries.split(","))
    raise SystemExit(main(sizes, asked.dim, asked.backend, asked.random))
