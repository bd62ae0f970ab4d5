"""The store finds what it was told, from the first event on; renews what it knows; forgets in time."""

import numpy as np
import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.memory.episodic import DAY, EpisodicStore
from quietreasoning.memory.episodic_settings import EpisodicSettings
from quietreasoning.memory.events import EventWriter
from quietreasoning.memory.journal import Entry
from quietreasoning.memory.surprise import SurpriseBoundaries, SurpriseSettings
from quietreasoning.memory.vectors import unit
from quietreasoning.validation import validate

DIM = 16
IVF = {
    "backend": "faiss_ivfpq",
    "index": {"nlist": 4, "m": 16, "nprobe": 4, "train_per_list": 75},
}  # from 300 on
HNSW = {"backend": "faiss_hnsw", "index": {"flat_until": 40}}
FLAT = {"backend": "faiss_flat", "index": {}}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def vectors(count, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, DIM)))


@pytest.fixture
def opened(tmp_path):
    """Open the store of this test, as often as one likes; everything it notes fails the test."""
    clock, stores = Clock(), []

    def note(text):
        raise AssertionError(text)

    def open_store(settings=None, folder="store", **more):
        settings = validate(EpisodicSettings, {"index": {"m": 16}} | (settings or {}))
        more = {"dim": DIM, "encoder": "tiny@1:last", "clock": clock, "note": note, **more}
        stores.append(EpisodicStore(tmp_path / folder, settings=settings, **more))
        return stores[-1]

    open_store.clock = clock
    yield open_store
    for store in stores:
        store.journal.close()


def found_ids(store, queries_MD, k=1, **more):
    return [[one.entry.id for one in row] for row in store.query(queries_MD, k, **more)]


@pytest.mark.parametrize("settings", [IVF, HNSW, FLAT, {}])
def test_search_is_exact_from_the_first_entry_and_across_each_change_of_index(opened, settings):
    store, x_ND = opened(settings), vectors(400)
    assert store.query(x_ND[:2], 3) == [[], []]
    kinds = []
    for start, end in ((0, 1), (1, 2), (2, 39), (39, 41), (41, 299), (299, 301), (301, 400)):
        store.write_many([Entry(x_ND[i], f"event {i}", (i, i + 1), "book") for i in range(start, end)])
        for wait in (False, True):  # while the next index is being made, and with it
            if wait:
                store.index.wait()
            kinds.append(store.index.kind)
            queries_MD = unit(x_ND[:end] + 0.05 * vectors(end, seed=2))
            k = min(end, 3)
            wanted = np.argsort(-(queries_MD @ x_ND[:end].T), axis=1)[:, :k] + 1
            found = np.array(found_ids(store, queries_MD, 3, count=False))
            assert found.shape == wanted.shape and (found[:, 0] == wanted[:, 0]).all()
            assert (found == wanted).mean() > (0.97 if store.index.kind == "faiss_ivfpq" else 0.999)
    last = settings.get("backend", "flat")  # the default waits for 163,840 entries
    assert list(dict.fromkeys(kinds)) == list(dict.fromkeys(("flat", last)))
    one = store.query(3 * x_ND[7:8])[0][0]
    assert (one.entry.text, one.entry.tokens, one.entry.source) == ("event 7", (7, 8), "book")
    assert one.score == pytest.approx(1.0) and np.allclose(one.entry.vector_D, x_ND[7])
    store.close()
    again = opened(settings)  # the saved index, without a note
    assert again.index.kind == last and found_ids(again, x_ND) == [[i + 1] for i in range(400)]


def test_a_growing_store_gets_more_lists_and_opens_as_it_was_closed(opened):
    """A quarter of the lists first, then all of them; a saved index of either stage is taken as it is."""
    grows = {"index": {"nlist": 1024, "m": 16, "nprobe": 300, "train_per_list": 1}}
    x_ND, written, lists = vectors(1100), 0, []
    for end in (255, 300, 1000, 1100):
        store = opened(grows)
        store.write_many([Entry(x_ND[i], f"event {i}") for i in range(written, end)])
        written = end
        store.index.wait()
        index = store.index._index
        lists.append(getattr(index.settings, "nlist", 0))
        if lists[-1]:
            assert index.lists.nprobe == min(300, lists[-1])
            found = np.array(found_ids(store, x_ND[:end]))[:, 0]
            assert len(index) == end and np.mean(found == np.arange(1, end + 1)) > 0.95
        store.close()
    assert lists == [0, 256, 256, 1024]


def test_a_known_event_is_renewed_and_a_batch_is_as_good_as_one_by_one(opened):
    near = vectors(60)
    near = unit(
        np.concatenate([near, near[:30] + 0.1 * vectors(30, seed=1), near[:30] + 0.5 * vectors(30, seed=3)])
    )
    cosines = (near @ near.T)[np.triu_indices(len(near), 1)]
    assert ((0.85 < cosines) & (cosines < 0.92)).any() and (cosines > 0.92).sum() > 20
    one, many = opened(folder="one"), opened(folder="many")
    for place in (one, many):
        opened.clock.now = 5.0
        place.write(Entry(near[0], "first"))
        opened.clock.now = 9.0
    alone = [one.write(Entry(vector, f"{i}")) for i, vector in enumerate(near)]
    assert many.write_many([Entry(vector, f"{i}") for i, vector in enumerate(near)]) == alone
    first = many.query(near[:1])[0][0].entry
    assert (first.text, first.created, first.refreshed, first.id) == ("first", 5.0, 9.0, 1)
    assert not alone[0].added and 60 <= len(many) < len(near) and len(many) == len(many.index)


def test_time_of_life_counts_from_the_last_meeting_and_zero_is_a_time(opened):
    store, x_ND = opened({"ttl_days": 2}), vectors(60)
    store.write_many([Entry(v, f"{i}") for i, v in enumerate(x_ND[:50])])  # at time 0
    opened.clock.now = DAY
    store.write(Entry(x_ND[0], "met again"))
    store.write(Entry(x_ND[50], "new, of old", created=0.0))
    opened.clock.now = 2 * DAY - 1
    assert found_ids(store, x_ND[:51]) == [[i + 1] for i in range(51)]
    assert found_ids(store, x_ND[:1], now=3 * DAY) == [[]]
    opened.clock.now = 2 * DAY  # exactly
    # 50 expired neighbours stand between the query and the only living one
    assert found_ids(store, x_ND[:51], 3) == [[1]] * 51 and len(store) == 51
    assert store.write(Entry(x_ND[5], "born again")).id == 52  # not the expired one renewed
    assert store.sweep() == 50 and len(store) == len(store.index) == 2 and store.sweep() == 0
    assert found_ids(store, x_ND[:1], now=0.0) == [[1]] and store.forget([1, 7]) == 1
    store.close()
    assert found_ids(opened({"ttl_days": 2}), x_ND[:6], 5) == [[52]] * 6


def test_hits_are_written_down_together_and_many_make_an_entry_promotable(opened):
    store, x_ND = opened({"hits_every": 10}), vectors(5)
    states_TD = np.arange(8, dtype=np.float16).reshape(2, 4)
    store.write_many([Entry(v, f"{i}", states_TD=states_TD if i == 2 else None) for i, v in enumerate(x_ND)])
    for _ in range(4):
        store.query(x_ND[1:3])
    store.query(x_ND[2:3], count=False)
    changes = store.journal._db.total_changes
    assert [(e.id, e.hits) for e in store.promotable(4)] == [(2, 4), (3, 4)] and not store.promotable(5)
    assert store.journal._db.total_changes == changes and not store.journal.often_hit(1, -1.0)
    store.query(x_ND[2:4])  # the tenth
    assert sorted(store.journal.often_hit(1, -1.0)) == [2, 3, 4]
    store.query(x_ND[2:3])
    best = store.promotable(1)
    assert [(e.id, e.hits) for e in best] == [(3, 6), (2, 4), (4, 1)]
    assert np.array_equal(best[0].states_TD, states_TD) and best[1].states_TD is None
    assert store.query(x_ND[2:3], states=True)[0][0].entry.states_TD.dtype == np.float16
    store.close()
    again = opened()
    assert [e.hits for e in again.promotable(1)] == [7, 4, 1] and not again.promotable(1, now=31 * DAY)


def test_two_stores_on_one_folder_see_each_others_writes_and_removals(opened):
    one, two, x_ND = opened(IVF), opened(IVF), vectors(330)
    one.write(Entry(x_ND[0], "of one"))
    assert two.query(x_ND[:1])[0][0].entry.text == "of one"
    assert not two.write(Entry(x_ND[0], "of two")).added
    two.write_many([Entry(v, "of two") for v in x_ND[1:]])
    assert one.query(x_ND[329:])[0][0].entry.id == 330
    one.forget([330])
    assert two.query(x_ND[329:])[0][0].entry.id != 330 and len(two.index) == 329
    one.close(), two.close()
    both = opened(IVF)
    assert len(both) == len(both.index) == 329 and both.index.kind == "faiss_ivfpq"


def test_a_copy_made_while_the_store_is_open_is_whole(opened, tmp_path):
    store, x_ND = opened(), vectors(20)
    store.write_many([Entry(v, "") for v in x_ND])
    (tmp_path / "copy").mkdir()
    store.backup(tmp_path / "copy" / "journal.sqlite")
    assert found_ids(opened(folder="copy"), x_ND) == [[i + 1] for i in range(20)]


def test_another_encoder_or_width_is_refused_by_name_and_so_is_what_has_no_direction(opened):
    store = opened()
    store.write(Entry(vectors(1)[0], "x"))
    for more, match in (
        ({"encoder": "other"}, "encoder=tiny@1:last.*encoder=other"),
        ({"dim": 8}, "dim=16.*dim=8"),
    ):
        with pytest.raises(UserError, match=match):
            opened(**more)
    for bad, match in ((np.zeros(DIM), "zero"), (np.ones(3), "shape"), (np.full(DIM, np.inf), "finite")):
        with pytest.raises(UserError, match=match):
            store.write_many([Entry(vectors(1, seed=4)[0], "good"), Entry(bad, "bad")])
    assert len(store) == len(store.index) == 1
    with pytest.raises(UserError, match="m=16 does not divide the vectors' width 12"):
        opened(folder="odd", dim=12)
    with pytest.raises(UserError, match=r"index\.ef"):
        opened({"backend": "faiss_ivfpq", "index": {"ef": 5}})


def test_events_end_at_surprises_and_stand_under_the_mean_of_their_states(opened):
    store, generator = opened(), torch.Generator().manual_seed(0)
    tokens_RT = torch.arange(400).view(2, 200)
    states_RTD = torch.randn(2, 200, DIM, generator=generator)
    surprise_RT = 2 + 0.1 * torch.rand(2, 200, generator=generator)
    surprise_RT[0, 70], surprise_RT[1, 90], surprise_RT[0, 150] = 9.0, 9.0, 9.0
    valid_RT = torch.ones(2, 200, dtype=torch.bool)
    valid_RT[1, :10] = False
    boundaries = SurpriseBoundaries(2, SurpriseSettings(gamma=5.0))
    writer = EventWriter(store, boundaries, lambda ids: " ".join(map(str, ids)), source="s", keep_states=True)
    for part in range(0, 200, 50):
        at = (slice(None), slice(part, part + 50))
        writer.observe(tokens_RT[at], states_RTD[at], surprise_RT[at], valid_RT[at])
    assert len(store) == 3
    writer.finish(0), writer.finish(1)
    spans = [(0, 0, 70), (1, 10, 90), (0, 70, 150), (0, 150, 200), (1, 90, 200)]
    entries = store.journal.entries(range(1, 9), states=True)
    assert len(entries) == len(spans)
    for entry, (row, start, end) in zip(entries.values(), spans, strict=True):
        states_TD = states_RTD[row, start:end]
        assert entry.tokens == tuple(tokens_RT[row, start:end].tolist()) and entry.text.split()[0] == str(
            entry.tokens[0]
        )
        mean_D = states_TD.mean(0)
        assert np.allclose(entry.vector_D, (mean_D / mean_D.norm()).numpy(), atol=1e-6)
        assert np.array_equal(entry.states_TD, states_TD.half().numpy())
