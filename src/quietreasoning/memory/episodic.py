"""The episodic store: what happened, under vectors, found again by cosine.

    journal.sqlite      the record of truth (`journal`)
    index-*.bin, .json  a cache of it (`episodic_index`)

A write is one transaction. Inside it the store first reads what other processes wrote, looks for the nearest
remembered event, and then either renews that one or adds the new one; so two processes cannot add the same
event twice. A search asks the index for candidates and the journal for their vectors, ranks them exactly and
leaves out what has expired or is gone.

Shapes: D width, N events, M queries, K neighbours, T tokens of an event.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.memory.backends import make_index
from quietreasoning.memory.episodic_index import CachedIndex
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.journal import Entry, Journal
from quietreasoning.memory.vectors import NONE, as_vectors, unit

JOURNAL = "journal.sqlite"
DAY = 86_400.0


@dataclass(frozen=True)
class Written:
    """What became of an event: the number it stands under, and whether it is new."""

    id: int
    added: bool


@dataclass(frozen=True)
class Found:
    """A remembered event and its cosine with the query."""

    entry: Entry
    score: float


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


class EpisodicStore:
    """Open it in a `with` block, or close it: hits not yet written and the saved index depend on that.

    encoder: what made the vectors, such as "name@revision:last". A folder of another encoder or width is
    refused. clock gives seconds since 1970; note is told what was rebuilt and why.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dim: int,
        encoder: str,
        settings: EpisodicSettings | None = None,
        clock: Callable[[], float] = time.time,
        note: Callable[[str], None] = _warn,
    ):
        self.folder, self.settings, self.clock = Path(folder), settings or EpisodicSettings(), clock
        path = self.folder / JOURNAL
        if not path.is_file() and any(self.folder.glob("index-*.bin")):
            raise UserError(
                f"{path} is missing beside an index of it, and no index can replace it. Put it back, or "
                f"remove {self.folder} to begin anew"
            )
        if not path.exists():  # refused before a journal is bound to this encoder
            make_index(self.settings.backend, dim, self.settings.index)
        self._lock = threading.RLock()
        self._hits: Counter[int] = Counter()
        self.journal = Journal(path, dim=dim, encoder=encoder)
        try:
            self.index = CachedIndex(self.folder, self.journal, self.settings, note)
        except BaseException:
            self.journal.close()
            raise

    def __enter__(self) -> EpisodicStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Entries in the journal, expired ones among them until they are swept."""
        with self._lock:
            return len(self.journal)

    def close(self) -> None:
        """Write down the hits, wait for an index that is being made, save the index."""
        with self._lock:
            self.index.wait()
            with self._transaction():
                self.index.catch_up()
            self.index.save()
            self.journal.close()

    def write(self, entry: Entry) -> Written:
        """Remember one event, durably when this returns."""
        return self.write_many([entry])[0]

    def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        """Remember events in this order, as one by one, but all of them or none, and much faster.

        An event whose cosine with a remembered one exceeds `dedupe_cosine` renews that one: its time of life
        begins anew, all else stays as it was. Vectors of any length; they are stored at length 1.
        """
        if not entries:
            return []
        with self._lock:
            now = self.clock()
            rows = [as_vectors(np.reshape(entry.vector_D, (1, -1)), self.journal.dim) for entry in entries]
            vectors_ND = self._unit(np.concatenate(rows))
            times = [now if entry.created is None else float(entry.created) for entry in entries]
            with self._transaction():
                self.index.catch_up()
                same = self._same(vectors_ND, times, now)
                new = [row for row, (place, _) in enumerate(same) if place == row]
                ids = self.journal.add(
                    replace(
                        entries[row],
                        vector_D=vectors_ND[row],
                        created=times[row],
                        refreshed=times[row],
                        hits=0,
                    )
                    for row in new
                )
                id_of = dict(zip(new, ids, strict=True))
                written, renewed = [], {}
                for row, (place, known) in enumerate(same):
                    number = known if place is None else id_of[place]
                    written.append(Written(number, place == row))
                    if place != row:
                        renewed[number] = max(times[row], renewed.get(number, times[row]))
                self.journal.refresh(renewed)
            if ids:
                self.index.add(vectors_ND[new], ids)
            self.index.save_if_due()
            return written

    def query(
        self,
        queries_MD: np.ndarray,
        k: int = 1,
        *,
        now: float | None = None,
        count: bool = True,
        states: bool = False,
    ) -> list[list[Found]]:
        """The nearest k living events of each query, best first; fewer where there are fewer.

        count: what is found gets a hit each time. states: give their states too. now: seconds since 1970, of
        the clock if None.
        """
        if k < 1:
            raise UserError(f"k={k} must be at least 1")
        with self._lock:
            now = self.clock() if now is None else now
            self.index.catch_up()
            scores_MK, ids_MK = self._nearest(self._unit(queries_MD), k, now)
            entries = self.journal.entries(np.unique(ids_MK[ids_MK != NONE]).tolist(), states=states)
            found = [
                [Found(entries[i], s) for i, s in zip(ids_K, scores_K, strict=True) if i in entries]
                for ids_K, scores_K in zip(ids_MK.tolist(), scores_MK.tolist(), strict=True)
            ]
            if count:
                self._hits.update(one.entry.id for row in found for one in row)
                if self._hits.total() >= self.settings.hits_every:
                    with self._transaction():
                        pass
            return found

    def sweep(self, now: float | None = None) -> int:
        """Forget what has expired; how many that were."""
        with self._lock:
            now = self.clock() if now is None else now
            return self._remove(lambda: self.journal.ids(refreshed_until=self._deadline(now)))

    def forget(self, ids: Iterable[int]) -> int:
        """Remove these entries; how many were there."""
        with self._lock:
            return self._remove(lambda: list(ids))

    def promotable(self, min_hits: int, *, now: float | None = None, place: str | None = None) -> list[Entry]:
        """Living entries with at least so many hits, most hits first, with states. Changes nothing.

        place: whose weights they might go into; what these hold already is left out.
        """
        if min_hits < 1:
            raise UserError(f"min_hits={min_hits} must be at least 1")
        with self._lock:
            deadline = self._deadline(self.clock() if now is None else now)
            ids = {*self.journal.often_hit(min_hits, deadline), *self._hits}
            ids -= set() if place is None else self.journal.consolidated(place)
            known = self.journal.entries(ids, states=True).values()
            counted = [replace(entry, hits=entry.hits + self._hits[entry.id]) for entry in known]
            chosen = [e for e in counted if e.hits >= min_hits and e.refreshed > deadline]
            return sorted(chosen, key=lambda entry: (-entry.hits, entry.id))

    def consolidate(self, place: str, ids: Iterable[int]) -> None:
        """Note down that the weights called `place` hold these entries, and no others."""
        with self._lock, self._transaction():
            self.journal.consolidate(place, ids)

    def backup(self, path: str | Path) -> None:
        """A whole copy of the journal, to be put in a folder of its own as journal.sqlite."""
        with self._lock:
            with self._transaction():
                pass
            self.journal.backup(Path(path))

    def _unit(self, vectors_ND: np.ndarray) -> np.ndarray:
        vectors_ND = unit(as_vectors(vectors_ND, self.journal.dim))
        if not vectors_ND.any(axis=1).all():
            raise UserError("vectors: one is zero and has no direction. Leave it out")
        return vectors_ND

    def _deadline(self, now: float) -> float:
        """Who was last met with at this time or before has expired."""
        return now - self.settings.ttl_days * DAY

    def _remove(self, which: Callable[[], list[int]]) -> int:
        with self._transaction():
            gone = self.journal.remove(which())
        self.index.catch_up()
        return gone

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """The journal's, and the hits so far are written down with it."""
        with self.journal.transaction():
            yield
            self.journal.hit(self._hits)
        self._hits = Counter()

    def _nearest(self, queries_MD: np.ndarray, k: int, now: float) -> tuple[np.ndarray, np.ndarray]:
        """(cosines_MK, ids_MK) of the nearest living events by their stored vectors, as `VectorIndex.search`.

        Where too many candidates have expired, more are asked for, until the index has no more to give.
        """
        deadline, asked = self._deadline(now), k * (1 if self.index.exact else self.settings.rerank)
        while True:
            _, ids_MN = self.index.search(queries_MD, asked)
            there_N, vectors_ND = self.journal.vectors_of(
                np.unique(ids_MN[ids_MN != NONE]).tolist(), refreshed_after=deadline
            )
            alive_MN = np.isin(ids_MN, there_N)
            short_M = (alive_MN.sum(1) < k) & (ids_MN[:, -1] != NONE)
            if asked >= len(self.index) or not short_M.any():
                break
            asked = min(4 * asked, len(self.index))
        scores_MK = np.full((len(queries_MD), k), -np.inf, np.float32)
        ids_MK = np.full((len(queries_MD), k), NONE, np.int64)
        for row, (query_D, alive_N) in enumerate(zip(queries_MD, alive_MN, strict=True)):
            ids_A = ids_MN[row, alive_N]
            scores_A = vectors_ND[np.searchsorted(there_N, ids_A)] @ query_D
            order = np.lexsort((ids_A, -scores_A))[:k]
            scores_MK[row, : len(order)], ids_MK[row, : len(order)] = scores_A[order], ids_A[order]
        return scores_MK, ids_MK

    def _same(self, vectors_ND: np.ndarray, times: list[float], now: float) -> list[tuple[int | None, int]]:
        """What each new event is the same as: (its row, 0) of this batch, or (None, id) of the store.

        An event that is like no other is (its own row, 0).
        """
        known_N, ids_N = (found[:, 0] for found in self._nearest(vectors_ND, 1, now))
        same: list[tuple[int | None, int]] = []
        new, new_ND = [], np.empty_like(vectors_ND)
        for row, vector_D in enumerate(vectors_ND):
            within = new_ND[: len(new)] @ vector_D
            best = float(within.max(initial=-np.inf))
            if max(best, known_N[row]) <= self.settings.dedupe_cosine:
                same.append((row, 0))
                if times[row] > self._deadline(now):
                    new_ND[len(new)] = vector_D
                    new.append(row)
            elif known_N[row] >= best:
                same.append((None, int(ids_N[row])))
            else:
                same.append((new[int(within.argmax())], 0))
        return same
