"""One generation counts, whichever moment a writer is killed at; taking back brings the old bytes."""

import os
import signal
import sys

import numpy as np
import pytest

from quietreasoning.config import UserError
from quietreasoning.memory.episodic import EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.generations import Generations
from quietreasoning.memory.journal import Entry
from quietreasoning.workspace.table_file import write_table

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "sqlite3.connect"}
TABLE = "table.npy"


def opened(folder):
    return EpisodicStore(folder, dim=4, encoder="tiny@1", settings=EpisodicSettings(backend="flat"))


def promote(folder, slots, ids):
    """What a consolidation does with its folder and the journal; the table tells by its size."""
    generations = Generations(folder / "pkm")
    with generations.alone() as state, opened(folder / "store") as store:
        store.consolidate(state.name, generations.about(state.current).get("ids", []))
        with generations.made(state) as shadow:
            write_table(shadow / TABLE, slots, 4)
            state = generations.commit(shadow, state, {"before": state.current, "ids": ids})
        store.consolidate(state.name, ids)


def take_back(folder):
    generations = Generations(folder / "pkm")
    with generations.alone() as state, opened(folder / "store") as store:
        state = generations.rollback(state)
        store.consolidate(state.name, generations.about(state.current).get("ids", []))


def in_force(folder):
    """Slots of the table that counts, and the entries it says it holds; None before the first."""
    generations = Generations(folder / "pkm")
    state = generations.state()
    if not state.current:
        return None
    slots = len(np.load(generations.path(state.current) / TABLE))
    return slots, tuple(generations.about(state.current)["ids"])


def killed_at(event, work, *arguments):
    """Whether a child that does the work came to its end, rather than to its n-th touch of the disk."""
    child = os.fork()
    if not child:
        count = 0

        def watch(name, details):
            nonlocal count
            if name in CHANGES or (name == "open" and "w" in str(details[1])):
                count += 1
                if count == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            work(*arguments)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def folder(tmp_path):
    with opened(tmp_path / "store") as store:
        store.write_many([Entry(vector, str(i)) for i, vector in enumerate(np.eye(4, dtype=np.float32))])
    promote(tmp_path, 4, [1])
    return tmp_path


def test_a_kill_at_any_moment_leaves_the_old_table_or_the_new_one(folder):
    old, new = (4, (1,)), (9, (1, 2))
    whole = (folder / "pkm" / "000001" / TABLE).read_bytes()
    for work, arguments, start, end in ((promote, (9, [1, 2]), old, new), (take_back, (), new, old)):
        event, outcomes = 0, []
        while end not in outcomes:
            event += 1
            killed_at(event, work, folder, *arguments)
            outcomes.append(in_force(folder))
            assert outcomes[-1] in (start, end)
            assert (folder / "pkm" / "000001" / TABLE).read_bytes() == whole
        assert event > 2  # it died on the way, more than once
    promote(folder, 16, [1, 3])
    name = Generations(folder / "pkm").state().name
    with opened(folder / "store") as store:  # the journal follows whatever came to pass
        assert store.journal.consolidated(name) == {1, 3}
    assert not list((folder / "pkm").glob(".tmp-*"))


def test_only_the_last_change_can_be_taken_back_and_numbers_are_not_given_twice(folder):
    promote(folder, 9, [1, 2])
    promote(folder, 16, [1, 2, 3])
    promote(folder, 25, [4])
    take_back(folder)
    assert in_force(folder) == (16, (1, 2, 3))
    promote(folder, 36, [1])
    assert Generations(folder / "pkm").state().current == 5
    assert sorted(path.name for path in (folder / "pkm").glob("0*")) == ["000003", "000005"]
    take_back(folder)
    with pytest.raises(UserError, match="only the last change"):
        take_back(folder)
    (folder / "pkm" / "current.json").write_text('{"format": 1, "state": {"name": "x", "current": 9}}')
    with pytest.raises(UserError, match=r"current.json is of another format, or damaged"):
        Generations(folder / "pkm").state()


def test_one_writer_at_a_time(folder):
    with Generations(folder / "pkm").alone(), pytest.raises(UserError, match="another process writes here"):
        promote(folder, 9, [2])


def test_what_is_promoted_is_not_promotable_for_the_same_weights(folder):
    with opened(folder / "store") as store:
        for _ in range(3):
            store.query(np.eye(4, dtype=np.float32))
        name = Generations(folder / "pkm").state().name
        assert [entry.id for entry in store.promotable(3)] == [1, 2, 3, 4]
        assert [entry.id for entry in store.promotable(3, place=name)] == [2, 3, 4]
        assert [entry.id for entry in store.promotable(3, place="another model")] == [1, 2, 3, 4]
        store.forget([1])
        assert store.journal.consolidated(name) == set()
