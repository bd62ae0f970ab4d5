"""The index of an episodic store: a cache of its journal, never the truth.

Exact until there are enough entries for the backend of the settings; then that one is made aside, by a thread
with its own connection, while the exact index goes on serving, and takes its place. A backend whose size
depends on the number of entries is made anew as they grow. What a saved index lacks is read from the
journal. One that is damaged, of another store, encoder, width or structure, or whose counts the journal does
not confirm, is named and rebuilt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.memory.backends import load_index, make_index, save_index, structure
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.flat import FlatIndex
from quietreasoning.memory.index_settings import FlatSettings, IndexSettings
from quietreasoning.memory.journal import Journal, Position
from quietreasoning.memory.sidecar import read, sidecar_of
from quietreasoning.memory.vectors import VectorIndex

AGAIN = "it is rebuilt from the journal"
PART_BYTES = 1 << 26  # of vectors read from the journal at a time
ABANDONED = 3600  # seconds after which a half-written file has no owner

Note = Callable[[str], None]


class CachedIndex:
    """Follows one journal; not safe for several threads, which its owner sees to."""

    def __init__(self, folder: Path, journal: Journal, settings: EpisodicSettings, note: Note):
        self.folder, self.journal, self.settings, self.note = folder, journal, settings, note
        make_index(settings.backend, journal.dim, settings.index)  # refused now, not after many entries
        self._refused: list[Path] = []
        self._thread: Thread | None = None
        self._made: tuple[VectorIndex, Position] | Exception | None = None
        self._unsaved, self._saved_at = 0, Position()
        self._index, self._at = self._load() or self._build()
        self.catch_up()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def kind(self) -> str:
        return self._index.kind

    @property
    def exact(self) -> bool:
        """Whether its candidates are the nearest, so that no more of them need to be looked at."""
        return self.kind in ("flat", "faiss_flat")

    def search(self, queries_MD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `VectorIndex.search`; approximate where the backend is, and perhaps with ids removed since."""
        return self._index.search(queries_MD, k)

    def catch_up(self) -> None:
        """Follow the journal to its end, take over an index that was made, begin to make one that is due."""
        if self._thread is not None and not self._thread.is_alive():
            self._swap()
        end = self.journal.position()
        if end != self._at:
            self._at, added = follow(self.journal, self._index, self._at, end)
            self._unsaved += added
        if self._thread is None and self._grown():
            self._thread = Thread(target=self._make, name="episodic-index")
            self._thread.start()

    def add(self, vectors_ND: np.ndarray, ids: list[int]) -> None:
        """What this process has just committed after it had caught up."""
        self._index.add(vectors_ND, np.asarray(ids, np.int64))
        self._at = Position(ids[-1], self._at.last_removal)
        self._unsaved += len(ids)

    def wait(self) -> None:
        """Until the index that is being made, if any, is in place."""
        self.catch_up()
        if self._thread is not None:
            self._thread.join()
            self.catch_up()

    def save_if_due(self) -> None:
        if self._unsaved >= self.settings.save_every:
            self.save()

    def save(self) -> None:
        """Write the index under a new name and remove older ones. A full disk is noted; nothing is lost."""
        if self._at == self._saved_at:
            return
        path = self.folder / f"index-{self._at.last_id:015d}-{time.time_ns():020d}-{os.getpid()}.bin"
        counts = {"last_id": self._at.last_id, "last_removal": self._at.last_removal}
        try:
            save_index(self._index, path, counts, self._identity())
        except UserError as error:
            self.note(f"the index was not saved: {error}")
            return
        self._unsaved, self._saved_at = 0, self._at
        for old in [*_saved(self.folder), *self._refused]:
            if old != path and (old.name <= path.name or old in self._refused):
                old.unlink(missing_ok=True)
                sidecar_of(old).unlink(missing_ok=True)
        self._refused = []
        for half in self.folder.glob(".tmp-index-*"):
            with suppress(FileNotFoundError):  # another process has just put its own in its place
                if time.time() - half.stat().st_mtime > ABANDONED:
                    half.unlink()

    def _identity(self) -> dict[str, str]:
        return {"store": self.journal.store, "encoder": self.journal.encoder}

    def _grown(self) -> bool:
        """Whether there are enough entries for a later stage than the present index is of."""
        stages = self.settings.index.stages
        if self.settings.backend == "flat" or (due := stage_of(stages, len(self._index))) is None:
            return False
        now = structure(self._index.settings)
        return self.kind == "flat" or now in [structure(stage) for stage in stages[: stages.index(due)]]

    def _load(self) -> tuple[VectorIndex, Position] | None:
        """The newest saved index that the journal confirms."""
        for path in reversed(_saved(self.folder)):
            try:
                found = self._read(path)
                self._saved_at = found[1]
                return found
            except UserError as error:
                self._refused.append(path)
                self.note(str(error))
        return None

    def _read(self, path: Path) -> tuple[VectorIndex, Position]:
        sidecar, backend, settings = read(path, AGAIN), self.settings.backend, self.settings.index
        if sidecar.kind == "flat":
            backend, settings = "flat", FlatSettings()
        for stage in settings.stages:
            if structure(stage) == sidecar.made_by.get("structure"):
                settings = stage
        index, sidecar = load_index(path, backend, self.journal.dim, settings, AGAIN)
        for name, wanted in self._identity().items():
            if (found := sidecar.made_by.get(name)) != wanted:
                raise UserError(
                    f"{path} is of {name} {found!r:.80}, and the journal of {wanted!r:.80}; {AGAIN}"
                )
        at = Position(*(sidecar.counts.get(name, 0) for name in ("last_id", "last_removal")))
        if len(index) != (count := self.journal.count_at(at)):
            raise UserError(
                f"{path} holds {len(index)} entries up to number {at.last_id}, the journal {count}; {AGAIN}"
            )
        return index, at

    def _build(self) -> tuple[VectorIndex, Position]:
        if stage_of(self.settings.index.stages, len(self.journal)) is not None:
            return build(self.journal, self.settings)
        return FlatIndex(self.journal.dim), Position(0, self.journal.position().last_removal)

    def _make(self) -> None:
        try:
            journal = Journal(self.journal.path, dim=self.journal.dim, encoder=self.journal.encoder)
            try:
                self._made = build(journal, self.settings)
            finally:
                journal.close()
        except (UserError, RuntimeError, MemoryError) as error:  # FAISS raises RuntimeError
            self._made = error

    def _swap(self) -> None:
        made, self._made, self._thread = self._made, None, None
        if isinstance(made, tuple):
            self._index, self._at = made
            self._unsaved, self._saved_at = self.settings.save_every, Position()  # it took long to make
        else:
            self.note(f"the {self.settings.backend} index was not made, search stays exact: {made}")
            self.settings = self.settings.model_copy(update={"backend": "flat", "index": FlatSettings()})


def build(journal: Journal, settings: EpisodicSettings) -> tuple[VectorIndex, Position]:
    """An index of the settings' backend over the whole journal, trained on a sample of it."""
    stages = settings.index.stages
    stage = stage_of(stages, len(journal)) or stages[0]
    index = make_index(settings.backend, journal.dim, stage)
    start = Position(0, journal.position().last_removal)  # removals from here on are applied by `follow`
    if not index.trained:
        ids = np.asarray(journal.ids())
        most = stage.flat_until
        if len(ids) > most:
            ids = np.sort(np.random.default_rng(0).choice(ids, most, replace=False))
        index.train(journal.vectors_of(ids.tolist())[1])
    return index, follow(journal, index, start, journal.position())[0]


def stage_of(stages: Sequence[IndexSettings], entries: int) -> IndexSettings | None:
    """The last stage that so many entries are enough for; None: search stays exact."""
    reached = [stage for stage in stages if entries >= max(stage.flat_until, 1)]
    return reached[-1] if reached else None


def follow(journal: Journal, index: VectorIndex, at: Position, end: Position) -> tuple[Position, int]:
    """Add and remove what the journal has between two positions.

    Returns where the index is then and how many entries were added.
    """
    added, last_id, part = 0, at.last_id, max(1, PART_BYTES // (4 * journal.dim))
    while last_id < end.last_id:
        ids_N, vectors_ND = journal.vectors_after(last_id, part)
        if not len(ids_N):
            break
        index.add(vectors_ND, ids_N)
        added, last_id = added + len(ids_N), int(ids_N[-1])
    removals = journal.removals_after(at.last_removal)  # read after the entries: none of them is missed
    if removals:
        index.remove(np.asarray([number for _, number in removals if number <= last_id], np.int64))
    last_removal = removals[-1][0] if removals else at.last_removal
    return Position(max(last_id, end.last_id), last_removal), added


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("index-*.bin"))
