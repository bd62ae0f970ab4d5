"""Halting of the reasoner: equations by hand, rows that do not count, targets without gradient."""

import math
from dataclasses import FrozenInstanceError, asdict

import pytest
import torch

from quietreasoning.losses.recursion import (
    NearEnough,
    exactly_right,
    halt_above,
    halt_by_nearness,
    halt_when,
    nearness,
)

HALT = torch.tensor([-5.0, 0.0, 1.5, 3.0], dtype=torch.float64)
COSINE = torch.tensor([0.2, 0.9, 0.7, -0.4], dtype=torch.float64)
ROWS = torch.tensor([True, True, True, False])


def probability(logit):
    return 1 / (1 + math.exp(-logit))


def test_nearness_is_the_cosine_of_each_row_and_has_no_gradient():
    output = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 2.0]], requires_grad=True)
    target = torch.tensor([[4.0, 3.0], [0.0, 2.0], [-1.0, -1.0]])
    cosine = nearness(output, target)
    torch.testing.assert_close(cosine, torch.tensor([24 / 25, 0, -1]), rtol=1e-5, atol=1e-6)
    assert not cosine.requires_grad and nearness(output.bfloat16(), target).dtype == torch.float32
    torch.testing.assert_close(nearness(100 * output, target), cosine, rtol=1e-5, atol=1e-6)
    assert nearness(torch.zeros(1, 2), target[:1]).item() == 0


def test_distance_to_the_cosine_by_hand():
    total, count = halt_by_nearness(HALT, COSINE, ROWS)
    pairs = zip(HALT.tolist()[:3], COSINE.tolist(), strict=False)
    wanted = sum((probability(logit) - cosine) ** 2 for logit, cosine in pairs)
    assert count == 3 and total.item() == pytest.approx(wanted)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.95])
def test_cross_entropy_above_a_threshold_by_hand(threshold):
    """The threshold itself is not above it."""
    total, above, count = halt_above(HALT, COSINE, threshold, ROWS)
    done = [cosine > threshold for cosine in COSINE.tolist()[:3]]
    chances = [probability(logit) for logit in HALT.tolist()]
    wanted = -sum(math.log(p if right else 1 - p) for p, right in zip(chances, done, strict=False))
    assert (above, count) == (sum(done), 3) and total.item() == pytest.approx(wanted)


LOSSES = {
    "nearness": lambda halt, cosine, rows: halt_by_nearness(halt, cosine, rows),
    "above": lambda halt, cosine, rows: halt_above(halt, cosine, 0.7, rows),
    "when": lambda halt, cosine, rows: halt_when(halt, cosine > 0, rows),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_add_up_over_rows_and_pull_at_the_logits_alone(loss):
    halt, cosine = HALT.clone().requires_grad_(), COSINE.clone().requires_grad_()
    whole = loss(halt, cosine, ROWS)
    halves = [loss(halt[at], cosine[at], ROWS[at]) for at in (slice(0, 1), slice(1, 4))]
    for i, part in enumerate(whole):
        torch.testing.assert_close(part, halves[0][i] + halves[1][i])
    whole[0].backward()
    assert cosine.grad is None, "a worse output must not make halting cheaper"
    assert halt.grad[:3].all() and not halt.grad[3]
    assert torch.autograd.gradcheck(lambda h: loss(h, COSINE, ROWS)[0], halt)
    nothing = loss(HALT, COSINE, torch.zeros(4, dtype=torch.bool))
    assert [part.item() for part in nothing] == [0] * len(nothing)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_certain_logits_of_few_bits_stay_finite(loss):
    halt = torch.tensor([-300.0, 300.0, 300.0, -300.0], dtype=torch.bfloat16, requires_grad=True)
    total = loss(halt, COSINE.float(), ROWS)[0]
    total.backward()
    assert total.dtype == torch.float32 and total.isfinite() and halt.grad.isfinite().all()


def test_the_best_answer_to_each_loss():
    """The logit that a long training would reach."""
    cosine = torch.tensor([0.3, 0.8])
    rows = torch.ones(2, dtype=torch.bool)
    halt = cosine.logit().requires_grad_()
    total, _ = halt_by_nearness(halt, cosine, rows)
    assert total.item() == pytest.approx(0, abs=1e-12)
    halt = torch.tensor([-30.0, 30.0])
    assert halt_above(halt, cosine, 0.7, rows)[0].item() == pytest.approx(0, abs=1e-9)
    assert halt_above(-halt, cosine, 0.7, rows)[0].item() == pytest.approx(60)


def test_only_a_whole_answer_is_right():
    labels = torch.tensor([[1, 2, -100], [1, 2, 0], [-100, -100, -100], [2, -100, -100], [0, 1, 2]])
    guesses = torch.tensor([[1, 2, 0], [1, 0, 0], [0, 0, 0], [2, 1, 1], [0, 1, 2]])
    logits = torch.nn.functional.one_hot(guesses, 3).float()
    right, asked = exactly_right(logits, labels)
    assert right.tolist() == [True, False, False, True, True]
    assert asked.tolist() == [True, True, False, True, True], "a row without an answer does not count"
    _, done, count = halt_when(torch.zeros(5), right, asked)
    assert (done, count) == (3, 4)


def test_the_threshold_follows_the_mean_of_the_last_epoch():
    """0.7 at first; 0.949 after an epoch of mean cosine 0.9991."""
    start = NearEnough()
    epoch = start.saw(torch.tensor(1.5, dtype=torch.float64), torch.tensor(2)).saw(0.3, 1)
    assert (start.threshold, start.count, epoch.threshold) == (0.7, 0, 0.7)
    after = epoch.next_epoch()
    assert after.threshold == pytest.approx(0.95 * 1.8 / 3) and after.count == 0
    assert after.next_epoch() == after, "an epoch that saw nothing leaves it as it is"
    assert start.saw(0.9991 * 278, 278).next_epoch().threshold == pytest.approx(0.949, abs=5e-4)
    assert NearEnough(**asdict(epoch)) == epoch
    with pytest.raises(FrozenInstanceError):
        start.threshold = 0.5
