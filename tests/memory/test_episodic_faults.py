"""Killed at any moment, with a damaged index, beside another process: nothing is lost, nothing doubled."""

import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from quietreasoning.config import UserError
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.sidecar import sidecar_of
from quietreasoning.validation import validate

KILLS = int(os.environ.get("QUIET_EPISODIC_KILLS", "2"))
DIM, WRITES, EVENTS = 32, 1000, 150
FIRST = WRITES if "QUIET_EPISODIC_KILLS" in os.environ else 150  # of the writes, among which a kill falls
SETTINGS = {"backend": "faiss_hnsw", "index": {"flat_until": 100, "m": 8}, "save_every": 40}
CHILD = f"""
import sys
from test_episodic_faults import event, opened
store, start, step = opened(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for number in range(start, start + {WRITES} * step, step):
    store.write(event(number))
    print(number, flush=True)
store.close()
"""


def event(number):
    vector = np.random.default_rng(number).normal(size=DIM)
    return Entry(vector, f"event {number}", (number,))


def opened(folder, note=None, **more):
    settings = validate(EpisodicSettings, SETTINGS)
    more = {"dim": DIM, "encoder": "tiny@1", "settings": settings, **more}
    return EpisodicStore(folder, **more, **({} if note is None else {"note": note}))


def child(folder, start, step=1):
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CHILD, str(folder), str(start), str(step)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}, text=True)


def texts(store):
    return [entry.text for entry in store.journal.entries(store.journal.ids()).values()]


def check_whole(store):
    """Journal and index hold the same entries, each once, under its own vector."""
    ids = store.journal.ids()
    entries = store.journal.entries(ids)
    assert len(store.index) == len(store) == len(ids)
    assert len({entry.text for entry in entries.values()}) == len(ids)
    store.index.wait()
    queries_ND = np.stack([event(entry.tokens[0]).vector_D for entry in entries.values()])
    found = store.query(queries_ND, count=False)
    assert [row[0].entry.id for row in found] == list(entries)


def test_what_was_acknowledged_survives_kills_and_nothing_is_there_twice(tmp_path):
    draw, acknowledged, killed = random.Random(os.environ.get("QUIET_SEED", "0")), [], 0
    for kill in range(KILLS):
        writer = child(tmp_path, start=kill * WRITES)
        for _ in range(draw.randrange(1, FIRST - 50)):
            acknowledged.append(f"event {int(writer.stdout.readline())}")
        writer.send_signal(signal.SIGKILL)
        acknowledged += [f"event {line.strip()}" for line in writer.stdout if line.endswith("\n")]
        killed += writer.wait() == -signal.SIGKILL
        notes = []
        with opened(tmp_path, notes.append) as store:
            there = texts(store)
            assert there[: len(acknowledged)] == acknowledged  # in order, none missing
            assert len(there) <= len(acknowledged) + 1 and not notes  # the one that was being written
            check_whole(store)
            acknowledged = there
    assert killed == KILLS


def test_two_processes_on_one_store_add_every_event_once(tmp_path):
    """Both write the same events, and each also some that the other has not come to."""
    writers = [child(tmp_path, 0), child(tmp_path, 0, 2)]
    for writer in writers:
        for _ in range(25):
            writer.stdout.readline()
    for writer in writers:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    notes = []
    with opened(tmp_path, notes.append) as store:
        check_whole(store)
        wanted = {f"event {number}" for number in (*range(25), *range(0, 50, 2))}
        assert wanted <= set(texts(store)) and not notes


def test_a_half_written_index_that_another_process_finishes_stops_no_write(tmp_path):
    """Its temporary name is listed, and gone when it is looked at."""
    with opened(tmp_path) as store:
        (tmp_path / ".tmp-index-other.bin").symlink_to(tmp_path / "gone")
        store.write_many([event(number) for number in range(5)])
        store.index.save()
        check_whole(store)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    with opened(folder) as store:
        store.write_many([event(number) for number in range(EVENTS)])
        store.index.wait()
        assert store.index.kind == "faiss_hnsw"
    return folder


@pytest.fixture
def closed(filled, tmp_path):
    """The saved index in a folder with some events."""
    shutil.copytree(filled, tmp_path / "store")
    (path,) = (tmp_path / "store").glob("index-*.bin")
    return path


def spoil(old, new):
    def change(path):
        text = sidecar_of(path).read_text(encoding="utf-8")
        assert old in text
        sidecar_of(path).write_text(text.replace(old, new), encoding="utf-8")

    return change


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


DAMAGE = {
    "flipped header": (lambda path: flip(path, 9), "damaged"),
    "flipped body": (lambda path: flip(path, -99), "damaged"),
    "truncated": (lambda path: os.truncate(path, 500), "cut off"),
    "empty": (lambda path: os.truncate(path, 0), "cut off"),
    "no sidecar": (lambda path: sidecar_of(path).unlink(), "missing"),
    "other width": (spoil('"dim": 32', '"dim": 64'), "dim is 64"),
    "other kind": (spoil('"faiss_hnsw"', '"scann"'), "kind is scann"),
    "other structure": (spoil('"m": 8', '"m": 9'), "'m': 9"),
    "other encoder": (spoil('"tiny@1"', '"huge@1"'), "encoder 'huge@1'"),
    "other count": (
        spoil('"last_id": 150', '"last_id": 149'),
        "150 entries up to number 149, the journal 149",
    ),
    "hostile": (spoil('"file": "index-', '"file": "../../etc/index-'), "file is"),
    "absurd": (spoil('"entries": 150', '"entries": 1e30'), "counts is"),
    "no sidecar of ours": (lambda path: sidecar_of(path).write_text("[1"), "JSON"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_index_is_named_and_rebuilt_from_the_journal(name, closed):
    spoil_it, match = DAMAGE[name]
    spoil_it(closed)
    with pytest.warns(UserWarning, match=match) as told:
        store = opened(closed.parent)
    assert closed.name in str(told[0].message)
    with store:
        check_whole(store)
    assert not closed.exists() or name == "no sidecar"
    with opened(closed.parent, note=pytest.fail) as store:
        assert len(store.index) == EVENTS


def test_an_old_index_is_brought_up_to_date_and_not_rebuilt(closed):
    kept = {path: path.read_bytes() for path in (closed, sidecar_of(closed))}
    with opened(closed.parent) as store:
        store.write_many([event(number) for number in range(EVENTS, EVENTS + 20)])
        store.forget([3, EVENTS + 10])
    for path in closed.parent.glob("index-*"):
        path.unlink()
    for path, data in kept.items():
        path.write_bytes(data)
    with opened(closed.parent, note=pytest.fail) as store:
        check_whole(store)
        assert len(store) == EVENTS + 18


def test_without_its_journal_an_index_is_nothing(closed):
    journal = closed.parent / "journal.sqlite"
    data = bytearray(journal.read_bytes())
    data[20_000:30_000] = bytes(10_000)
    journal.write_bytes(data)
    with pytest.raises(UserError, match=r"journal.sqlite.*(damaged|malformed)"):
        opened(closed.parent)
    journal.write_bytes(b"not a database" * 1000)
    with pytest.raises(UserError, match="not a database"):
        opened(closed.parent)
    journal.unlink()
    with pytest.raises(UserError, match=r"journal.sqlite is missing beside an index"):
        opened(closed.parent)
