"""What follows from the name of a problem: split, rank, random numbers."""

from collections import Counter

import numpy as np
import pytest

from quietreasoning.data.example import Example
from quietreasoning.data.pairs.keys import Item, Problem, problem_id, rank_of, split_of, uniforms

IDS = [problem_id("task", f"problem {i}") for i in range(4000)]


def item(id, sample=0):
    return Item(Problem(id, "task", "exact", Example(id, "p", (), (), "a")), sample)


def test_spacing_and_unicode_form_do_not_make_another_problem_but_case_and_data_set_do():
    one = problem_id("gsm8k", "How many caf\u00e9s?\n")
    assert one == problem_id("gsm8k", "  How  many cafe\u0301s? ") and len(one) == 16
    assert (
        len({one, problem_id("aime", "How many caf\u00e9s?"), problem_id("gsm8k", "how many caf\u00e9s?")})
        == 3
    )


def test_splits_have_their_shares_on_every_rank():
    assert len(set(IDS)) == len(IDS)
    for ranks in (1, 2, 3, 4):
        for rank in range(ranks):
            mine = [id for id in IDS if rank_of(id, ranks) == rank]
            assert len(mine) == pytest.approx(len(IDS) / ranks, rel=0.1)
            shares = Counter(map(split_of, mine))
            assert shares["train"] / len(mine) == pytest.approx(0.8, abs=0.04)
            assert shares["valid"] / len(mine) == pytest.approx(0.1, abs=0.03)


def test_numbers_belong_to_seed_problem_and_sample_and_begin_the_same_when_longer():
    drawn = [
        uniforms(seed, item(id, sample), 50) for seed in (0, 1) for id in IDS[:3] for sample in (0, 1, 11)
    ]
    flat = np.concatenate(drawn)
    assert len(set(flat.tolist())) == len(flat) and 0 <= flat.min() and flat.max() < 1
    assert abs(flat.mean() - 0.5) < 0.03
    assert np.array_equal(uniforms(0, item(IDS[0]), 10), drawn[0][:10])


def test_these_numbers_never_change():
    """A folder begun with one version of this package goes on with the next."""
    assert IDS[0] == "c5697e6b18fbfab0" and split_of(IDS[0]) == "test" and rank_of(IDS[0], 3) == 0
    assert uniforms(0, item(IDS[0]), 2).tolist() == [0.5175908338266747, 0.7506180890006819]
