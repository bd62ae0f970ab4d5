"""Which gold token each thought must say, against loops over rows, blocks and columns."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.contract import IGNORE, Batch
from quietreasoning.methods.supervision import (
    count_targets,
    embedding_rms,
    score_decoded,
    score_slots,
    step_targets,
)
from quietreasoning.nn.latents import StepDecoder

tokens = st.integers(0, 29)
step = st.lists(tokens, min_size=1, max_size=4)
rows_of_steps = st.lists(st.lists(st.tuples(step, st.integers(0, 2)), max_size=4), min_size=1, max_size=3)


def nest(rows, width=None):
    """[[tokens, ...], ...] to [B, K, S]."""
    count = max(map(len, rows))
    width = max((len(part) for row in rows for part in row), default=0) if width is None else width
    filled = torch.full((len(rows), count, width), IGNORE)
    for b, row in enumerate(rows):
        for k, part in enumerate(row):
            filled[b, k, : len(part)] = torch.tensor(part).long()
    return filled


def batch_of(rows) -> Batch:
    """Rows of (step, how many of its last tokens are its result; 0 where the result is unknown)."""
    steps = nest([[s for s, _ in row] for row in rows])
    results = nest([[s[len(s) - n :] if n <= len(s) else [] for s, n in row] for row in rows])
    some = torch.zeros(len(rows), 1).long()
    return Batch(some[:, 0], some, steps, results, some, some[:, 0])


def naive_targets(rows, target, blocks, width, repeat_last):
    said = []
    for row in rows:
        sources = [s if target == "step" else s[len(s) - n :] if n <= len(s) else [] for s, n in row]
        for block in range(blocks):
            source = sources[block] if block < len(row) else sources[-1] if row and repeat_last else []
            said.append([*source[:width], *[IGNORE] * (width - len(source))])
    return said


@settings(max_examples=200)
@given(
    rows_of_steps,
    st.sampled_from(["step", "result"]),
    st.integers(0, 6),
    st.integers(1, 5),
    st.booleans(),
)
def test_targets_equal_a_loop(rows, target, blocks, width, repeat_last):
    found = step_targets(batch_of(rows), target, blocks, width, repeat_last=repeat_last)
    expected = naive_targets(rows, target, blocks, width, repeat_last)
    assert found.shape == (len(rows), blocks, width)
    assert found.flatten(0, 1).tolist() == expected
    assert count_targets(found) == sum(token != IGNORE for row in expected for token in row)


def test_targets_leave_the_batch_alone():
    batch = batch_of([[([1, 2], 1)], [([3], 1), ([4, 5], 2)]])
    before = batch.steps_BKS.clone(), batch.results_BKR.clone()
    for target, repeat in product(("step", "result"), (True, False)):
        step_targets(batch, target, 3, 2, repeat_last=repeat).fill_(7)
    assert torch.equal(batch.steps_BKS, before[0]) and torch.equal(batch.results_BKR, before[1])


TARGETS = [[[4, 5, 6], [7], []], [[], [], []], [[8, 9], [1, 2, 3], [0]]]


def log_probability(backbone, state_D, token):
    return float(backbone.logits(state_D).log_softmax(-1)[token])


def random_states(*shape):
    return torch.randn(*shape, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_slots_say_their_own_token(backbone):
    target_BJW, hidden_BJWD = nest(TARGETS), random_states(3, 3, 3)
    total, hits, count = score_slots(backbone, hidden_BJWD, target_BJW)
    expected = [
        log_probability(backbone, hidden_BJWD[b, j, w], token)
        for b, row in enumerate(TARGETS)
        for j, part in enumerate(row)
        for w, token in enumerate(part)
    ]
    assert total.item() == pytest.approx(-sum(expected), rel=1e-5)
    right = backbone.logits(hidden_BJWD).argmax(-1) == target_BJW
    assert (int(hits), int(count)) == (int(right.sum()), len(expected))


@torch.no_grad()
def test_decoder_says_each_step_from_one_thought(backbone):
    torch.manual_seed(0)
    decoder, hidden_BJD = StepDecoder(16), random_states(3, 3)
    total, _, count = score_decoded(backbone, decoder, hidden_BJD, nest(TARGETS))
    expected = 0.0
    for b, row in enumerate(TARGETS):
        for j, part in enumerate(row):
            if part:
                states_SD = decoder(hidden_BJD[b, j][None], backbone.embed(torch.tensor([part])))[0]
                expected -= sum(
                    log_probability(backbone, states_SD[s], token) for s, token in enumerate(part)
                )
    assert (total.item(), int(count)) == (pytest.approx(expected, rel=1e-5), 10)


@pytest.mark.parametrize("width", [0, 2])
def test_without_targets_there_is_a_zero_with_a_graph(backbone, width):
    hidden_BJD = random_states(2, 3).requires_grad_()
    nothing = torch.full((2, 3, width), IGNORE)
    for total, hits, count in (
        score_decoded(backbone, StepDecoder(16), hidden_BJD, nothing),
        score_slots(backbone, hidden_BJD[:, :, None].expand(-1, -1, width, -1), nothing),
    ):
        assert (total.item(), int(hits), int(count)) == (0.0, 0, 0)
        total.backward()
    assert not hidden_BJD.grad.any()


def test_size_of_an_embedding(backbone):
    table_VD = backbone.model.get_input_embeddings().weight.detach().double()
    expected = math.sqrt(sum(x * x for row in table_VD.tolist() for x in row) / table_VD.numel())
    assert embedding_rms(backbone) == pytest.approx(expected, rel=1e-5)
