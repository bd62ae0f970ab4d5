"""Layout against a mask written position by position; anchors, caps and numbers by their rules."""

import pytest
import torch

from quietreasoning.contract import IGNORE, Role
from quietreasoning.nn.thought_tree import (
    Kind,
    Thoughts,
    choose_anchors,
    grow_tree,
    keyed_uniforms,
    thought_cap,
)

START, END, TALK, STEPS, GROUP = 90, 91, 3, 3, 2
WIDTH = STEPS + TALK + 1
IDS = torch.tensor([[IGNORE, 10, 11, 12, 13, 14, IGNORE], [20, 21, 22, 23, 24, 25, 26]])
ROLE = torch.where(IDS == IGNORE, int(Role.PAD), int(Role.PROMPT))
ROLE[1, 5:] = int(Role.ANSWER)
ANCHORS = torch.tensor([[2, 5], [4, -1]])
LENGTHS = torch.tensor([[[3, 1], [0, 2]], [[2, 3], [0, 0]]])


def tree(ids=IDS):
    words = 40 + torch.arange(2 * 2 * GROUP * STEPS).view(2, 2, GROUP, STEPS)
    words[torch.arange(STEPS) >= LENGTHS[..., None]] = IGNORE
    thoughts = Thoughts(words, LENGTHS, (LENGTHS < STEPS) & (ANCHORS >= 0)[..., None])
    return grow_tree(ids, ROLE, ANCHORS, thoughts, talk=TALK, start=START, end=END), thoughts


def test_columns_by_hand():
    packed, thoughts = tree()
    long, short, last = (packed.ids_BS[0, 7 + WIDTH * n : 7 + WIDTH * (n + 1)].tolist() for n in (0, 1, 2))
    assert long == [START, 40, 41, 42, END, 12, 13]
    assert short == [START, 43, IGNORE, IGNORE, END, 12, 13]
    assert last == [START, IGNORE, IGNORE, IGNORE, END, IGNORE, IGNORE], "nothing follows the last token"
    assert packed.position_BS[0, 7 : 7 + WIDTH].tolist() == [2, 3, 4, 5, 6, 7, 8]
    at = packed.position_BS[0, 7 + WIDTH : 7 + 2 * WIDTH]
    assert at[[0, 1, 4, 5, 6]].tolist() == [2, 3, 4, 5, 6], "an early end leaves no gap"
    assert (packed.kind_BS[1, 7 + 2 * WIDTH :] == Kind.PAD).all() and packed.kind_BS.shape[1] == 7 + 4 * WIDTH
    assert packed.target_BKM.tolist() == [[[3, 4, 5], [-1] * 3], [[5, 6, -1], [-1] * 3]]
    assert packed.labels_BKM.tolist() == [
        [[12, 13, 14], [IGNORE] * 3],
        [[25, 26, IGNORE], [IGNORE] * 3],
    ]
    assert packed.choice_BKGL[0].tolist() == [
        [[40, 41, 42], [43, END, IGNORE]],
        [[END, IGNORE, IGNORE], [49, 50, END]],
    ]
    assert packed.choice_BKGL[1, 1].eq(IGNORE).all() and torch.equal(
        packed.choice_BKGL[0], thoughts.choices_BKGL(END)[0]
    )
    column_BS1 = torch.arange(7 + 4 * WIDTH).expand(2, -1)[..., None]
    assert packed.policy(column_BS1)[0, 1, 0, :, 0].tolist() == [21, 22, 23]
    assert packed.thoughts(column_BS1)[0, 1, 0, :, 0].tolist() == [22, 23, 24]
    assert packed.talks(column_BS1)[0, 1, 0, :, 0].tolist() == [25, 26, 27]
    assert packed.bases(column_BS1)[1, 0, :2, 0].tolist() == [4, 5]
    role_BS1 = packed.role_BS[..., None]
    assert packed.talks(role_BS1)[1, 0, 0, :, 0].tolist() == [Role.THOUGHT, Role.ANSWER, Role.PAD]
    assert torch.equal(packed.role_BS == Role.PAD, packed.kind_BS == Kind.PAD)


def test_the_mask_position_by_position():
    packed, _ = tree()
    columns = packed.ids_BS.shape[1]
    for row in range(2):
        real = (packed.kind_BS[row] != Kind.PAD).tolist()
        for query in range(columns):
            for key in range(columns):
                seen = query == key
                if real[query] and real[key]:
                    if key < 7:
                        limit = query if query < 7 else int(ANCHORS[row, (query - 7) // (GROUP * WIDTH)])
                        seen |= key <= limit
                    elif query >= 7:
                        seen |= key <= query and (key - 7) // WIDTH == (query - 7) // WIDTH
                assert bool(packed.seen_BSS[row, query, key]) == seen, (row, query, key)


def rows_of_entropy(rows=6, length=40):
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(0))


def test_the_hardest_and_the_drawn():
    entropy_BT, allowed_BT = rows_of_entropy(), torch.ones(6, 40, dtype=torch.bool)
    allowed_BT[0, 3:] = False  # room for one
    uniforms_BK = keyed_uniforms(torch.arange(6)[:, None], torch.arange(6))
    chosen = choose_anchors(entropy_BT, allowed_BT, 6, 1 / 3, 4, uniforms_BK)
    assert chosen.column_BK[0, 1:].eq(-1).all() and not chosen.probability_BK[0, 1:].any()
    for row in range(1, 6):
        columns = chosen.column_BK[row]
        assert (columns.diff() >= 4).all() and chosen.uniform_BK[row].sum() == 2
        drawn, hardest = columns[chosen.uniform_BK[row]], columns[~chosen.uniform_BK[row]]
        assert chosen.probability_BK[row][~chosen.uniform_BK[row]].eq(1).all()
        assert chosen.probability_BK[row].min() == pytest.approx(1 / 40)
        free = entropy_BT[row].clone()
        for column in drawn:
            free[max(int(column) - 3, 0) : int(column) + 4] = -1
        found = []
        for _ in range(4):
            found.append(int(free.argmax()))
            free[max(found[-1] - 3, 0) : found[-1] + 4] = -1
        assert sorted(found) == hardest.tolist()
    pure = choose_anchors(entropy_BT, allowed_BT, 3, 0.0, 1, uniforms_BK)
    assert torch.equal(pure.column_BK[1:], entropy_BT[1:].topk(3).indices.sort().values)


def test_neighbours_and_padding_choose_nothing():
    entropy_BT, allowed_BT = rows_of_entropy(), rows_of_entropy() > 0.2
    uniforms_BK = keyed_uniforms(torch.arange(6)[:, None], torch.arange(4))
    together = choose_anchors(entropy_BT, allowed_BT, 4, 0.5, 3, uniforms_BK)
    for row in range(6):
        one = slice(row, row + 1)
        more = [torch.nn.functional.pad(x[one], (5, 2)) for x in (entropy_BT, allowed_BT)]
        alone = choose_anchors(*more, 4, 0.5, 3, uniforms_BK[one])
        assert torch.equal(alone.column_BK - 5, together.column_BK[one])


def test_draws_are_even():
    allowed_BT = torch.ones(20_000, 8, dtype=torch.bool)
    allowed_BT[:, 2] = False
    numbers = keyed_uniforms(torch.arange(20_000)[:, None], torch.arange(1))
    chosen = choose_anchors(torch.zeros(20_000, 8), allowed_BT, 1, 1.0, 1, numbers)
    share = torch.bincount(chosen.column_BK[:, 0], minlength=8) / 20_000
    assert share[2] == 0 and (share[[0, 1, 3, 4, 5, 6, 7]] - 1 / 7).abs().max() < 0.01


def test_the_cap_by_its_table():
    lengths = torch.tensor([0, 1, 20, 49, 50, 54, 55, 75, 99, 100, 5000])
    assert thought_cap(lengths).tolist() == [10, 10, 10, 10, 10, 10, 11, 15, 19, 20, 20]
    assert thought_cap(lengths, floor=2, cap=4, divisor=20).tolist() == [2, 2, 2, 2, 2, 2, 2, 3, 4, 4, 4]


def test_keyed_numbers_are_even_and_depend_on_every_part():
    key, at = torch.arange(200)[:, None, None], torch.arange(50)[:, None]
    numbers = keyed_uniforms(key, at, torch.arange(4))
    assert numbers.shape == (200, 50, 4) and numbers.min() >= 0 and numbers.max() < 1
    assert numbers.unique().numel() == numbers.numel()
    share = torch.histc(numbers.float(), 20, 0, 1) / numbers.numel()
    assert (share - 0.05).abs().max() < 0.006
    flat = numbers - 0.5
    for one, other in ((flat[1:], flat[:-1]), (flat[:, 1:], flat[:, :-1]), (flat[..., 1:], flat[..., :-1])):
        assert (one * other).mean().abs() * 12 < 0.02, "neighbouring keys do not resemble each other"
    assert keyed_uniforms(key[7], at[3], 2) == numbers[7, 3, 2]
    assert keyed_uniforms(torch.tensor(-5), 1) != keyed_uniforms(torch.tensor(1), -5)


def test_values_out_of_range_are_refused():
    entropy_BT, allowed_BT = rows_of_entropy(), torch.ones(6, 40, dtype=torch.bool)
    for anchors, share, spacing in ((0, 0.5, 1), (2, 1.5, 1), (2, 0.5, 0)):
        with pytest.raises(ValueError, match="spacing of at least 1 and a share"):
            choose_anchors(entropy_BT, allowed_BT, anchors, share, spacing, entropy_BT)
    thoughts = tree()[1]
    with pytest.raises(ValueError, match="talk=0"):
        grow_tree(IDS, ROLE, ANCHORS, thoughts, talk=0, start=START, end=END)
