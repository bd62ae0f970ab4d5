"""Greedy text and the books a Response keeps, against loops over rows."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietreasoning.backbone import role_of
from quietreasoning.contract import IGNORE, Markers, Role
from quietreasoning.methods.sequence import read_prompt
from quietreasoning.methods.writing import Ready, find, greedy, respond, row_seeds

MARKERS = Markers(answer_prefix=(27, 28), eos=29)


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_find_equals_a_loop(written, prefix):
    starts = [i for i in range(len(written)) if written[i : i + len(prefix)] == prefix]
    assert find(written, tuple(prefix)) == (starts[0] if starts else None)


def write(backbone, prompts, limit, eos=-1):
    width = max(map(len, prompts))
    prompt_BP = torch.tensor([[IGNORE] * (width - len(p)) + p for p in prompts])
    with torch.no_grad():
        states = read_prompt(backbone, prompt_BP)
        return greedy(backbone, states.past, states.hidden_BTD[:, -1], max_new_tokens=limit, eos=eos)


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2]]


def naive_greedy(backbone, prompt, limit, eos=-1):
    written = []
    while len(written) < limit:
        ids_BT = torch.tensor([[*prompt, *written]])
        with torch.no_grad():
            hidden_BTD = backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD
            token = int(backbone.logits(hidden_BTD[0, -1]).argmax())
        if token == eos:
            break
        written.append(token)
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


def test_greedy_reads_no_more_than_it_must(backbone):
    for limit, eos, calls_expected in ((1, -1, 1), (5, -1, 5), (5, None, 1)):
        first = write(backbone, PROMPTS[:1], 1)[0][0]
        with backbone.tap() as calls:
            write(backbone, PROMPTS[:1], limit, eos=first if eos is None else eos)
        assert len(calls) == calls_expected  # the prompt's pass gives the first token


def response(rows, *, given, passes=0, latent_steps=0, heads=None):
    ready = Ready(None, given=given, passes=passes, latent_steps=latent_steps, heads=heads)
    return respond(rows, MARKERS, ready, time.perf_counter())


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


def test_what_was_written_before_stands_first_and_latent_steps_may_differ_by_row():
    heads = [[5, 27, 28], [27, 28]]
    answer = response([[1], [2, 3]], given=False, heads=heads, latent_steps=[2, 6])
    assert answer.tokens == [[5, 27, 28, 1], [27, 28, 2, 3]] and answer.answers == [[1], [2, 3]]
    assert answer.visible_tokens == [1, 0] and answer.latent_steps == [2, 6]


def test_seeds_follow_the_tokens_alone():
    rows = [[1, 2, 3], [3, 2, 1], [0, 1, 2, 3], [2, 3]]

    def seeds(columns):
        return row_seeds(torch.tensor([[IGNORE] * (columns - len(r)) + r for r in rows]))

    assert seeds(4) == seeds(9) and len(set(seeds(4))) >= 3
