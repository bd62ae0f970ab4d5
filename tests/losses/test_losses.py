"""Losses against the loops their equations say."""

import math
import warnings

import pytest
import torch

from quietreasoning.contract import IGNORE
from quietreasoning.losses.hidden_match import hidden_match
from quietreasoning.losses.next_token import next_token

VOCAB = 11


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(count, seed=0, ignored=0.3):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (count,), generator=draw)
    return ids.masked_fill(torch.rand(count, generator=draw) < ignored, IGNORE)


def naive_next_token(logits_NV, labels_N):
    total, hits, count = 0.0, 0, 0
    for logits_V, label in zip(logits_NV.double().tolist(), labels_N.tolist(), strict=True):
        if label == IGNORE:
            continue
        highest = max(logits_V)
        total += highest + math.log(sum(math.exp(x - highest) for x in logits_V)) - logits_V[label]
        hits += logits_V.index(highest) == label
        count += 1
    return total, hits, count


@pytest.mark.parametrize("count", [1, 2, 63])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_next_token_equals_a_loop(count, ignored):
    logits_NV, labels_N = random(count, VOCAB, scale=4).requires_grad_(), labels(count, ignored=ignored)
    with torch.no_grad():
        logits_NV[::2].scatter_add_(1, labels_N[::2, None].clamp(min=0), torch.full((count, 1), 20.0))
    total, hits, counted = next_token(logits_NV, labels_N)
    expected = naive_next_token(logits_NV.detach(), labels_N)
    assert (total.item(), int(hits), int(counted)) == (
        pytest.approx(expected[0], rel=1e-5, abs=1e-5),
        *expected[1:],
    )
    total.backward()
    probability = logits_NV.detach().softmax(-1)
    for row, label in enumerate(labels_N.tolist()):
        wanted = torch.zeros(VOCAB)
        if label != IGNORE:
            wanted = probability[row].clone()
            wanted[label] -= 1
        torch.testing.assert_close(logits_NV.grad[row], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_predict_is_a_zero_with_a_graph(count):
    logits_NV = random(count, VOCAB).requires_grad_()
    total, hits, counted = next_token(logits_NV, torch.full((count,), IGNORE))
    assert (total.item(), int(hits), int(counted)) == (0.0, 0, 0)
    total.backward()
    assert not logits_NV.grad.any()


def test_next_token_takes_any_shape_and_sums_in_fp32():
    logits, targets = random(2, 3, VOCAB, scale=4), labels(6).reshape(2, 3)
    flat = next_token(logits.flatten(0, 1), targets.flatten())
    shaped = next_token(logits, targets)
    assert all(torch.equal(a, b) for a, b in zip(flat, shaped, strict=True))
    low = next_token(logits.bfloat16(), targets)[0]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, next_token(logits.bfloat16().float(), targets)[0])


def test_padding_logits_may_be_anything_finite():
    logits, targets = random(4, VOCAB), torch.tensor([1, IGNORE, 2, IGNORE])
    changed = logits.clone()
    changed[1::2] = 1e30
    assert torch.equal(next_token(logits, targets)[0], next_token(changed, targets)[0])


def naive_match(student, teacher, rows):
    total = 0.0
    layers, _, width = student.shape
    for row in [r for r, counts in enumerate(rows) if counts]:
        for layer in range(layers):
            wanted = teacher[layer, row].double()
            spread = float(((wanted - wanted.mean()) ** 2).mean().sqrt())
            for got, want in zip(student[layer, row].tolist(), wanted.tolist(), strict=True):
                distance = abs(got - want)
                smooth = 0.5 * distance**2 if distance < 1 else distance - 0.5
                total += smooth / spread / layers / width
    return total


@pytest.mark.parametrize("rows", [[True, True, True], [True, False, True], [False, False, False]])
def test_hidden_match_equals_a_loop(rows):
    student, teacher = random(4, 3, 7, scale=2).requires_grad_(), random(4, 3, 7, seed=1).requires_grad_()
    rows_B = torch.tensor(rows)
    total = hidden_match(student, teacher, rows_B)
    assert total.item() == pytest.approx(naive_match(student.detach(), teacher.detach(), rows), rel=1e-5)
    total.backward()
    assert teacher.grad is None and student.grad[:, rows_B].any() == rows_B.any()
    assert not student.grad[:, ~rows_B].any()


def test_hidden_match_of_a_row_does_not_depend_on_its_company():
    student, teacher, every = random(2, 5, 6), random(2, 5, 6, seed=1, scale=3), torch.ones(5).bool()
    alone = sum(
        hidden_match(student[:, i : i + 1], teacher[:, i : i + 1], every[:1]).item() for i in range(5)
    )
    assert hidden_match(student, teacher, every).item() == pytest.approx(alone, rel=1e-5)


def test_hidden_match_is_zero_at_the_teacher_and_finite_for_a_flat_one():
    teacher = random(2, 3, 6)
    assert hidden_match(teacher, teacher, torch.ones(3).bool()).item() == 0
    flat = torch.ones(2, 3, 6)
    assert torch.isfinite(hidden_match(teacher, flat, torch.ones(3).bool()))


def test_hidden_match_of_nothing_is_a_silent_zero_with_a_graph():
    student, none = torch.zeros(2, 0, 6, requires_grad=True), torch.zeros(0, dtype=torch.bool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        total = hidden_match(student, torch.zeros(2, 0, 6), none)
    total.backward()
    assert total.item() == 0 and student.grad.shape == student.shape
