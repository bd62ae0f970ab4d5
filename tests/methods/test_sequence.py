"""The visible part, greedy text and the books a Response keeps, against loops over rows."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietreasoning.backbone import role_of
from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.methods.sequence import (
    count_labels,
    find,
    greedy,
    read_prompt,
    respond,
    row_seeds,
    visible_part,
)

MARKERS = Markers(answer_prefix=(27, 28), eos=29)
tokens = st.integers(0, 26)
rows_of_steps = st.lists(
    st.tuples(
        st.lists(st.lists(tokens, min_size=1, max_size=4), max_size=4),
        st.lists(tokens, min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


def padded(rows, width=None):
    width = max(map(len, rows), default=0) if width is None else width
    return torch.tensor([r + [IGNORE] * (width - len(r)) for r in rows]).long().reshape(len(rows), width)


def batch_of(rows) -> Batch:
    """(steps, answer) rows to a batch; the steps of a row stand anywhere in a block wide enough for all."""
    count = max(len(steps) for steps, _ in rows)
    width = max((len(step) for steps, _ in rows for step in steps), default=0)
    blocks = [padded([*steps, *[[]] * (count - len(steps))], width) for steps, _ in rows]
    steps_BKS = torch.stack(blocks).reshape(len(rows), count, width)
    prompt_BP = torch.ones(len(rows), 2).long()
    answers = padded([[*answer, MARKERS.eos] for _, answer in rows])
    keys_B, unknown_B = torch.arange(len(rows)), torch.full((len(rows),), IGNORE)
    return Batch(keys_B, prompt_BP, steps_BKS, steps_BKS, answers, unknown_B)


@given(rows_of_steps, st.one_of(st.none(), st.integers(0, 4)))
def test_visible_part_equals_a_loop(rows, first_step):
    batch = batch_of(rows)
    visible = visible_part(batch, MARKERS, first_step)
    count = 0
    for row, (steps, answer) in enumerate(rows):
        chain = [] if first_step is None else [t for step in steps[first_step:] for t in step]
        pieces = [(t, Role.STEP) for t in chain]
        pieces += [(t, Role.MARKER) for t in MARKERS.answer_prefix]
        pieces += [(t, Role.ANSWER) for t in [*answer, MARKERS.eos]]
        length = len(pieces)
        assert visible.ids_BT[row, :length].tolist() == [t for t, _ in pieces]
        assert visible.role_BT[row, :length].tolist() == [int(role) for _, role in pieces]
        assert (visible.ids_BT[row, length:] == IGNORE).all()
        assert (visible.role_BT[row, length:] == Role.PAD).all()
        labels = [IGNORE if first_step is None and role == Role.MARKER else t for t, role in pieces]
        assert visible.labels_BT[row, :length].tolist() == labels
        count += sum(label != IGNORE for label in labels)
    assert int((visible.labels_BT != IGNORE).sum()) == count == count_labels(batch, MARKERS, first_step)
    if first_step is not None:
        assert (visible.ids_BT != IGNORE).any(0).all(), "no column of padding alone"


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_find_equals_a_loop(written, prefix):
    starts = [i for i in range(len(written)) if written[i : i + len(prefix)] == prefix]
    assert find(written, tuple(prefix)) == (starts[0] if starts else None)


def write(backbone, prompts, limit, eos=-1, done=None):
    width = max(map(len, prompts))
    prompt_BP = torch.tensor([[IGNORE] * (width - len(p)) + p for p in prompts])
    with torch.no_grad():
        states = read_prompt(backbone, prompt_BP)
        return greedy(
            backbone, states.past, states.hidden_BTD[:, -1], max_new_tokens=limit, eos=eos, done=done
        )


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2]]


def naive_greedy(backbone, prompt, limit, eos=-1, done=None):
    written = []
    while len(written) < limit:
        ids_BT = torch.tensor([[*prompt, *written]])
        with torch.no_grad():
            hidden_BTD = backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD
            token = int(backbone.logits(hidden_BTD[0, -1]).argmax())
        if token == eos:
            break
        written.append(token)
        if done and done(written):
            break
    return written


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_greedy_equals_a_loop(backbone, limit):
    expected = [naive_greedy(backbone, prompt, limit) for prompt in PROMPTS]
    assert write(backbone, PROMPTS, limit) == expected
    assert all(len(row) == limit for row in expected)


def test_greedy_stops_each_row_at_its_end(backbone):
    free = write(backbone, PROMPTS, 7)
    for end in {token for row in free for token in row}:
        expected = [naive_greedy(backbone, prompt, 7, eos=end) for prompt in PROMPTS]
        assert write(backbone, PROMPTS, 7, eos=end) == expected
        assert all(end not in row for row in expected)


def test_greedy_stops_where_done_says(backbone):
    free = write(backbone, PROMPTS, 7)
    target = free[2][3]
    for done in (lambda row: len(row) == 2, lambda row: row[-1] == target):
        expected = [naive_greedy(backbone, prompt, 7, done=done) for prompt in PROMPTS]
        assert write(backbone, PROMPTS, 7, done=done) == expected


def test_greedy_reads_no_more_than_it_must(backbone):
    for limit, eos, calls_expected in ((1, -1, 1), (5, -1, 5), (5, None, 1)):
        first = write(backbone, PROMPTS[:1], 1)[0][0]
        with backbone.tap() as calls:
            write(backbone, PROMPTS[:1], limit, eos=first if eos is None else eos)
        assert len(calls) == calls_expected  # the prompt's pass gives the first token


def response(rows, *, given, passes=0, latent_steps=0):
    return respond(
        rows, MARKERS, given=given, passes=passes, latent_steps=latent_steps, started=time.perf_counter()
    )


def test_books_where_the_prefix_was_given():
    answer = response([[1, 2], []], given=True, passes=3, latent_steps=4)
    assert answer.tokens == [[27, 28, 1, 2], [27, 28]] and answer.answers == [[1, 2], []]
    assert answer.visible_tokens == [0, 0] and answer.passes == [3, 3] and answer.latent_steps == [4, 4]
    assert answer.milliseconds >= 0


@pytest.mark.parametrize("passes", [0, 2])
def test_books_where_the_prefix_is_searched(passes):
    rows = [[5, 6, 7, 27, 28, 1], [27, 28, 1, 27, 28], [5, 27, 6], [], [4, 27, 28]]
    answer = response(rows, given=False, passes=passes)
    assert answer.tokens == rows
    assert answer.answers == [[1], [1, 27, 28], [], [], []]
    assert answer.visible_tokens == [3, 0, 3, 0, 1]
    assert answer.passes == [passes + n for n in (5, 2, 3, 0, 3)]


def test_seeds_follow_the_tokens_alone():
    rows = [[1, 2, 3], [3, 2, 1], [0, 1, 2, 3], [2, 3]]

    def seeds(columns):
        return row_seeds(torch.tensor([[IGNORE] * (columns - len(r)) + r for r in rows]))

    assert seeds(4) == seeds(9) and len(set(seeds(4))) >= 3
