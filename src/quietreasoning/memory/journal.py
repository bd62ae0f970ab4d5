"""The journal of the episodic store: SQLite, the record of truth. What is acknowledged is on disk.

Write-ahead log with synchronous=FULL: a commit returns once the log is synced, so neither SIGKILL nor a power
cut loses it. Several processes may have one journal open; not over a network file system, where a
write-ahead log is not safe. Removed ids are listed too, so that an index can be brought up to date.
"""

from __future__ import annotations

import io
import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.disk import make_folder

FORMAT = 1
APPLICATION = 0x51524550  # written into SQLite's header: a journal of ours and no other database
PATIENCE = 60.0  # seconds to wait for another process's transaction
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    refreshed REAL NOT NULL, created REAL NOT NULL, hits INTEGER NOT NULL DEFAULT 0,
    vector BLOB NOT NULL, text TEXT NOT NULL, source TEXT NOT NULL, tokens BLOB NOT NULL, states BLOB
);
CREATE INDEX entries_refreshed ON entries (refreshed);
CREATE INDEX entries_hits ON entries (hits) WHERE hits > 0;
CREATE TABLE removals (number INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER NOT NULL);
"""
CONSOLIDATED = """CREATE TABLE IF NOT EXISTS consolidated (
    place TEXT NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (place, id)
) WITHOUT ROWID"""  # which entries a model holds in its weights; place: the name of what holds them
_COLUMNS = "id, vector, text, source, tokens, created, refreshed, hits"
_GIVEN = "id IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True)
class Entry:
    """One remembered event."""

    vector_D: np.ndarray  # float32, length 1
    text: str
    tokens: tuple[int, ...] = ()
    source: str = ""
    created: float | None = None  # seconds since 1970; None: now
    states_TD: np.ndarray | None = None  # for attention over retrieved states
    refreshed: float | None = None  # when it was last met with; None: when created
    hits: int = 0
    id: int = 0  # the journal's number, from 1 on; 0: none yet


@dataclass(frozen=True)
class Position:
    """How far an index has followed the journal."""

    last_id: int = 0
    last_removal: int = 0


class Journal:
    """Entries under numbers that are never given twice."""

    def __init__(self, path: Path, *, dim: int, encoder: str):
        self.path, self.dim, self.encoder = path, dim, encoder
        make_folder(path.parent)
        with self._told():
            self._db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            self.store = self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> str:
        with self._told():
            there = self._one("SELECT count(*) FROM sqlite_master")
            if there and self._one("PRAGMA application_id") != APPLICATION:
                raise UserError(f"{self.path} is no journal of an episodic store. Give another folder")
            if self._one("PRAGMA journal_mode = WAL") != "wal":
                raise UserError(
                    f"{self.path}: no write-ahead log is possible there. Give a folder on a local disk"
                )
            self._db.execute("PRAGMA synchronous = FULL")
            with self.transaction():
                if not self._one("SELECT count(*) FROM sqlite_master"):
                    self._create()
                self._db.execute(CONSOLIDATED)  # journals from before this table have the same format
            if (found := self._one("PRAGMA user_version")) != FORMAT:
                raise UserError(f"{self.path} has format {found}, and this version reads {FORMAT}")
            if (wrong := self._one("PRAGMA quick_check(1)")) != "ok":
                raise UserError(f"{self.path} is damaged ({wrong}). Put a copy back")
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
        for key, wanted in {"encoder": self.encoder, "dim": str(self.dim)}.items():
            if meta.get(key) != wanted:
                held = "holds events of" if len(self) else "is empty and was made for"
                raise UserError(
                    f"{self.path} {held} {key}={meta.get(key)}, and {key}={wanted} is asked for: such "
                    "vectors cannot be compared. Give another folder, or the model that this one is of"
                )
        return meta["store"]

    def _create(self) -> None:
        for statement in TABLES.split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id = {APPLICATION}")
        self._db.execute(f"PRAGMA user_version = {FORMAT}")
        facts = {"store": uuid.uuid4().hex, "encoder": self.encoder, "dim": str(self.dim)}
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; nobody else writes meanwhile. Committed, and on disk, when it ends."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            with self._told():
                self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def add(self, entries: Iterable[Entry]) -> list[int]:
        """Inside a transaction: the new ids, rising."""
        rows = [
            (
                *(e.refreshed, e.created, e.hits, e.vector_D.astype("<f4").tobytes(), e.text, e.source),
                *(np.asarray(e.tokens, "<i4").tobytes(), _packed(e.states_TD)),
            )
            for e in entries
        ]
        columns = "refreshed, created, hits, vector, text, source, tokens, states"
        sql = f"INSERT INTO entries ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        with self._told():
            return [self._db.execute(sql, row).lastrowid for row in rows]

    def refresh(self, ids: Mapping[int, float]) -> None:
        """Inside a transaction: id -> when it was met with again."""
        with self._told():
            self._db.executemany(
                "UPDATE entries SET refreshed = max(refreshed, ?) WHERE id = ?",
                [(time, number) for number, time in ids.items()],
            )

    def hit(self, counts: Mapping[int, int]) -> None:
        """Inside a transaction: id -> hits to add."""
        with self._told():
            self._db.executemany(
                "UPDATE entries SET hits = hits + ? WHERE id = ?",
                [(n, number) for number, n in counts.items()],
            )

    def remove(self, ids: Sequence[int]) -> int:
        """Inside a transaction: forget these; how many were there."""
        with self._told():
            at = json.dumps(list(ids))
            self._db.execute(f"INSERT INTO removals (id) SELECT id FROM entries WHERE {_GIVEN}", (at,))
            self._db.execute(f"DELETE FROM consolidated WHERE {_GIVEN}", (at,))
            return self._db.execute(f"DELETE FROM entries WHERE {_GIVEN}", (at,)).rowcount

    def __len__(self) -> int:
        with self._told():
            return self._one("SELECT count(*) FROM entries")

    def position(self) -> Position:
        """The end of the journal."""
        with self._told():
            ends = "(SELECT max(id) FROM entries), (SELECT max(number) FROM removals)"
            return Position(*(end or 0 for end in self._db.execute(f"SELECT {ends}").fetchone()))

    def ids(self, *, refreshed_until: float | None = None) -> list[int]:
        """All ids, or those last met with at that time or before."""
        where, values = ("", ()) if refreshed_until is None else ("WHERE refreshed <= ?", (refreshed_until,))
        with self._told():
            return [row[0] for row in self._db.execute(f"SELECT id FROM entries {where} ORDER BY id", values)]

    def vectors_after(self, last_id: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids_N, vectors_ND) of the first entries after an id, at most so many."""
        with self._told():
            sql = "SELECT id, vector FROM entries WHERE id > ? ORDER BY id LIMIT ?"
            return self._vectors(self._db.execute(sql, (last_id, most)).fetchall())

    def vectors_of(
        self, ids: Iterable[int], *, refreshed_after: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids_N rising, vectors_ND) of those that are there and were met with after that time."""
        sql, values = f"SELECT id, vector FROM entries WHERE {_GIVEN}", [json.dumps(list(ids))]
        if refreshed_after is not None:
            sql, values = f"{sql} AND refreshed > ?", [*values, refreshed_after]
        with self._told():
            return self._vectors(self._db.execute(f"{sql} ORDER BY id", values).fetchall())

    def removals_after(self, number: int) -> list[tuple[int, int]]:
        """(number of the removal, id of the entry), in order."""
        with self._told():
            sql = "SELECT number, id FROM removals WHERE number > ? ORDER BY number"
            return self._db.execute(sql, (number,)).fetchall()

    def count_at(self, position: Position) -> int:
        """How many entries an index must hold that followed the journal up to `position`."""
        with self._told():
            later = self._one("SELECT count(*) FROM entries WHERE id > ?", position.last_id)
            since = "SELECT count(*) FROM removals WHERE number > ? AND id <= ?"
            return len(self) - later + self._one(since, position.last_removal, position.last_id)

    def entries(self, ids: Iterable[int], *, states: bool = False) -> dict[int, Entry]:
        """The entries that are there; their states only where asked for."""
        columns = f"{_COLUMNS}, states" if states else f"{_COLUMNS}, NULL"
        with self._told():
            rows = self._db.execute(f"SELECT {columns} FROM entries WHERE {_GIVEN}", (json.dumps(list(ids)),))
            return {row[0]: self._entry(row) for row in rows}

    def often_hit(self, hits: int, refreshed_after: float) -> list[int]:
        """Ids of entries with so many hits (1 or more) that were met with after that time."""
        sql = "SELECT id FROM entries WHERE hits > 0 AND hits >= ? AND refreshed > ?"
        with self._told():
            return [row[0] for row in self._db.execute(sql, (hits, refreshed_after))]

    def consolidate(self, place: str, ids: Iterable[int]) -> None:
        """Inside a transaction: `place` holds these of the entries that are there, and no others."""
        with self._told():
            self._db.execute("DELETE FROM consolidated WHERE place = ?", (place,))
            sql = f"INSERT INTO consolidated SELECT ?, id FROM entries WHERE {_GIVEN}"
            self._db.execute(sql, (place, json.dumps(list(ids))))

    def consolidated(self, place: str) -> set[int]:
        """The entries that `place` holds."""
        with self._told():
            sql = "SELECT id FROM consolidated WHERE place = ?"
            return {row[0] for row in self._db.execute(sql, (place,))}

    def backup(self, path: Path) -> None:
        """A whole copy at one moment, while others read and write."""
        with self._told():
            copy = sqlite3.connect(path)
            try:
                self._db.backup(copy)
            finally:
                copy.close()

    def _entry(self, row: tuple) -> Entry:
        number, vector, text, source, tokens, created, refreshed, hits, states = row
        entry = Entry(
            self._vector(number, vector), text, tuple(np.frombuffer(tokens, "<i4").tolist()), source
        )
        states_TD = None if states is None else np.load(io.BytesIO(states), allow_pickle=False)
        return replace(entry, created=created, refreshed=refreshed, hits=hits, id=number, states_TD=states_TD)

    def _vectors(self, rows: list[tuple[int, bytes]]) -> tuple[np.ndarray, np.ndarray]:
        ids_N = np.array([row[0] for row in rows], np.int64)
        vectors_ND = np.concatenate([self._vector(*row) for row in rows] or [np.empty(0, np.float32)])
        return ids_N, vectors_ND.reshape(-1, self.dim)

    def _vector(self, number: int, blob: bytes) -> np.ndarray:
        if len(blob) != 4 * self.dim:
            raise UserError(
                f"{self.path} is damaged: entry {number} has {len(blob)} bytes of vector, not "
                f"{4 * self.dim}. Put a copy back"
            )
        return np.frombuffer(blob, "<f4")

    def _one(self, sql: str, *values: object):
        return self._db.execute(sql, values).fetchone()[0]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: {error}. Look at the disk's room and rights; where the file is damaged, put a "
                "copy back"
            ) from error


def _packed(states_TD: np.ndarray | None) -> bytes | None:
    if states_TD is None:
        return None
    file = io.BytesIO()
    np.save(file, states_TD, allow_pickle=False)
    return file.getvalue()
