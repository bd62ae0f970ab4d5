"""Batches depend on integers alone: cuts, ranks, seeks and repeats give the same rows."""

import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.batches import Batches, count_tokens, permutation
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tokenizers import build_tokenizer

N = 50


@pytest.fixture(scope="module")
def parts():
    config = DataConfig(train=N, tokenizer={"train": "words"})
    task = build_task(config)
    return task.split("train", N), Encoder(build_tokenizer(config, task))


def make(parts, batch_size: int = 16, seed: int = 3) -> Batches:
    return Batches(*parts, batch_size=batch_size, seed=seed)


def rows(batch) -> list[tuple]:
    """Each row without its padding: what must not depend on the cut."""

    def bare(ids: torch.Tensor) -> tuple[int, ...]:
        return tuple(ids[ids != IGNORE].tolist())

    return [
        (
            int(batch.keys_B[i]),
            bare(batch.prompt_BP[i]),
            tuple(filter(None, map(bare, batch.steps_BKS[i]))),
            tuple(filter(None, map(bare, batch.results_BKR[i]))),
            bare(batch.answer_BA[i]),
        )
        for i in range(len(batch))
    ]


@pytest.mark.parametrize(("lanes", "world"), [(8, 1), (1, 2), (4, 2), (2, 8), (16, 1)])
@pytest.mark.parametrize("step", [0, 3, 100])
def test_cuts_hold_the_same_rows(parts, lanes, world, step):
    whole = rows(make(parts).batch_at(step))
    cut = make(parts)
    pieces = [
        rows(cut.batch_at(step, lane, lanes, rank, world)) for lane in range(lanes) for rank in range(world)
    ]
    assert [row for piece in pieces for row in piece] == whole


def test_any_step_can_be_asked_for_first(parts):
    walked = make(parts)
    in_order = [rows(walked.batch_at(step)) for step in range(12)]
    for step in (11, 0, 7, 3):
        assert rows(make(parts).batch_at(step)) == in_order[step]


def test_every_row_comes_once_an_epoch(parts):
    batches = make(parts, batch_size=10)
    for epoch in range(3):
        seen = [row for step in range(5) for row in batches.rows_at(5 * epoch + step)]
        assert sorted(seen) == list(range(N))


def test_epochs_and_seeds_have_different_orders(parts):
    orders = [tuple(permutation(N, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert permutation(6, 0, 0).tolist() == permutation(6, 0, 0).tolist()


def test_the_order_is_fixed_for_good():
    """A change of numpy must not change the order of a run that resumes."""
    assert permutation(8, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]


def test_keys_follow_the_example_and_change_with_the_epoch(parts):
    batches = make(parts, batch_size=N)
    first, second = (
        dict(zip(batches.rows_at(e), batches.batch_at(e).keys_B.tolist(), strict=True)) for e in (0, 1)
    )
    assert len(set(first.values()) | set(second.values())) == 2 * N
    assert all(0 <= key < 2**63 for key in first.values())
    other_seed = make(parts, batch_size=N, seed=9)
    assert dict(zip(other_seed.rows_at(0), other_seed.batch_at(0).keys_B.tolist(), strict=True)) == first


def test_a_batch_may_straddle_epochs(parts):
    batches = make(parts, batch_size=32)
    assert len(batches.rows_at(1)) == 32
    assert sorted(batches.rows_at(0) + batches.rows_at(1)[:18]) == list(range(N))


def test_prepare_changes_nothing(parts):
    ready = make(parts)
    ready.prepare()
    assert rows(ready.batch_at(5)) == rows(make(parts).batch_at(5))


def test_prepare_draws_what_the_steps_read_and_no_other_example(parts):
    drawn = []

    class Noting(list):
        def __getitem__(self, i):
            drawn.append(i)
            return super().__getitem__(i)

    batches = Batches(Noting(parts[0]), parts[1], 4, seed=3)
    batches.prepare(3)
    read = [row for step in range(3) for row in batches.rows_at(step)]
    assert sorted(drawn) == sorted(read) and len(read) == 12
    batches.batch_at(2)
    assert len(drawn) == 12
    batches.prepare(N)
    assert sorted(drawn) == list(range(N))


def test_fingerprint_sees_rows_and_encoding(parts):
    examples, encoder = parts
    assert make(parts).fingerprint() == make(parts, batch_size=4, seed=0).fingerprint()
    assert Batches(examples[:-1], encoder, 4).fingerprint() != make(parts).fingerprint()
    changed = [*examples[:-1], build_task(DataConfig(seed=1)).split("train", N)[-1]]
    assert Batches(changed, encoder, 4).fingerprint() != make(parts).fingerprint()


def test_tokens_are_counted_without_padding(parts):
    batch = make(parts).batch_at(0)
    expected = sum(len(p) + sum(map(len, s)) + len(a) for _, p, s, _, a in rows(batch))
    assert count_tokens(batch) == expected


def test_bad_cuts_and_empty_data_are_one_clear_line(parts):
    with pytest.raises(UserError, match="batch_size=16 is not divisible by accumulate=3 x ranks=1"):
        make(parts).batch_at(0, lane=0, lanes=3)
    with pytest.raises(UserError, match="holds no examples"):
        Batches([], parts[1], 4)
