"""Halting as a hazard: equal to a loop over steps, exact slopes, silent where nothing is known."""

import math

import pytest
import torch

from quietreasoning.losses.halting import geometric_prior
from quietreasoning.losses.hazard import (
    curriculum_step,
    expected_loss,
    first_above,
    halting_log_probs,
    soft_survival_loss,
    survival_loss,
    utility_target,
)

ALL = torch.ones(4, dtype=torch.bool)


def logits(rows=4, steps=5, scale=2.0):
    draw = torch.Generator().manual_seed(0)
    return scale * torch.randn(rows, steps, generator=draw, dtype=torch.float64)


def naive(z):
    """P(halt = k) of one row, step by step."""
    left, found = 1.0, []
    for k, logit in enumerate(z):
        h = 1.0 if k == len(z) - 1 else 1 / (1 + math.exp(-logit))
        found.append(left * h)
        left *= 1 - h
    return found


def test_the_law_is_that_of_a_loop_over_steps():
    z_RT = logits()
    wanted_RT = torch.tensor([naive(row) for row in z_RT.tolist()], dtype=torch.float64)
    torch.testing.assert_close(halting_log_probs(z_RT).exp(), wanted_RT)
    torch.testing.assert_close(wanted_RT.sum(1), torch.ones(4, dtype=torch.float64))
    assert halting_log_probs(z_RT[:, :1]).tolist() == [[0.0]] * 4
    step_R = torch.tensor([1, 3, 5, 4])
    total, count = survival_loss(z_RT, step_R, ALL)
    each = [-math.log(naive(row)[k - 1]) for row, k in zip(z_RT.tolist(), step_R.tolist(), strict=True)]
    assert total.item() == pytest.approx(sum(each)) and count == 4
    target_RT = torch.nn.functional.one_hot(step_R - 1, 5).double()
    torch.testing.assert_close(soft_survival_loss(z_RT, target_RT, ALL)[0], total)
    soft_RT = logits(scale=1).softmax(1)
    torch.testing.assert_close(soft_survival_loss(z_RT, soft_RT, ALL)[0], -(soft_RT * wanted_RT.log()).sum())


def test_a_step_that_was_only_survived_tells_nothing_of_the_next():
    z_RT = logits()
    halts_R, step_R = torch.tensor([False, False, True, False]), torch.tensor([2, 0, 2, 5])
    total, _ = survival_loss(z_RT, step_R, ALL, halts_R)
    h_RT = z_RT.sigmoid()
    wanted = -(1 - h_RT[0, :2]).log().sum() - (1 - h_RT[2, 0]).log() - h_RT[2, 1].log()
    torch.testing.assert_close(total, wanted - (1 - h_RT[3, :4]).log().sum())
    with pytest.raises(ValueError, match="give 1 to 5"):
        survival_loss(z_RT, step_R, ALL)


def test_slopes_by_finite_differences():
    z_RT, rows_R = logits().requires_grad_(), torch.tensor([True, False, True, True])
    step_R, halts_R = torch.tensor([2, 9, 5, 3]), torch.tensor([True, True, True, False])
    assert torch.autograd.gradcheck(lambda z: survival_loss(z, step_R, rows_R, halts_R)[0], z_RT)
    soft_RT, loss_RT = logits(scale=1).softmax(1), logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: soft_survival_loss(z, soft_RT, rows_R)[0], z_RT)
    assert torch.autograd.gradcheck(
        lambda z, lost: expected_loss(z, lost, rows_R, rate=0.4, kl=0.3)[0], (z_RT, loss_RT)
    )


def test_nothing_after_the_target_has_a_slope():
    z_RT = logits().requires_grad_()
    survival_loss(z_RT, torch.tensor([1, 2, 3, 5]), ALL)[0].backward()
    assert [int((row != 0).sum()) for row in z_RT.grad] == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [1e2, 1e6, 3e38])
def test_extreme_logits_stay_finite(size):
    z_RT = torch.tensor([[size, -size, size], [-size, size, -size], [-size, -size, 0.0]]).requires_grad_()
    step_R, rows_R = torch.tensor([3, 1, 3]), torch.ones(3, dtype=torch.bool)
    if size > 1e6:  # sums of two such losses leave fp32
        step_R, rows_R = torch.tensor([3, 1, 3]), torch.tensor([True, False, False])
    total, _ = survival_loss(z_RT, step_R, rows_R)
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(z_RT.grad).all()
    assert total.item() == pytest.approx(size * (1 if size > 1e6 else 2), rel=1e-4)
    expected = expected_loss(z_RT.detach(), torch.ones(3, 3), torch.ones(3, dtype=torch.bool), 0.5, 1.0)[0]
    assert torch.isfinite(expected)


def test_rows_without_a_target_add_exactly_zero_and_keep_the_graph():
    z_RT = logits()
    z_RT[1] = float("nan")
    z_RT.requires_grad_()
    some_R, none_R = torch.tensor([True, False, True, True]), torch.zeros(4, dtype=torch.bool)
    step_R, soft_RT = torch.tensor([2, -7, 1, 5]), torch.full((4, 5), 0.2)
    soft_RT[1] = float("nan")
    losses = (
        lambda rows: survival_loss(z_RT, step_R, rows),
        lambda rows: soft_survival_loss(z_RT, soft_RT, rows),
        lambda rows: expected_loss(z_RT, soft_RT, rows, 0.5, 0.1),
    )
    for loss in losses:
        total, count = loss(some_R)
        (slope_RT,) = torch.autograd.grad(total, z_RT)
        assert count == 3 and torch.isfinite(total) and torch.isfinite(slope_RT).all()
        assert not slope_RT[1].any() and slope_RT[0].any()
        total, count = loss(none_R)
        assert total.item() == 0 and count == 0 and total.requires_grad


def test_the_expected_loss_by_hand():
    z_RT, loss_RT = logits(), logits(scale=1)
    p_RT = halting_log_probs(z_RT).exp()
    torch.testing.assert_close(expected_loss(z_RT, loss_RT, ALL)[0], (p_RT * loss_RT).sum())
    prior_T = geometric_prior(0.3, 5).double()
    kl = (p_RT * (p_RT / prior_T).log()).sum()
    found = expected_loss(z_RT, loss_RT, ALL, rate=0.3, kl=2.0)[0]
    torch.testing.assert_close(found, (p_RT * loss_RT).sum() + 2 * kl)
    with pytest.raises(ValueError, match="rate of the prior"):
        expected_loss(z_RT, loss_RT, ALL, kl=1.0)


def test_where_utility_says_to_stop():
    score_RT = torch.tensor([[0.1, 0.8, 0.85], [0.5, 0.5, 0.5], [0.0, 0.0, 1.0]])
    assert utility_target(score_RT, 0.0).argmax(1).tolist() == [2, 0, 2]
    assert utility_target(score_RT, 0.1).argmax(1).tolist() == [1, 0, 2]
    own = torch.tensor([0.0, 0.0, 2.0])
    assert utility_target(score_RT, own).argmax(1).tolist() == [1, 0, 0]
    soft_RT = utility_target(score_RT, 0.1, temperature=0.2)
    u = [0.1 - 0.1, 0.8 - 0.2, 0.85 - 0.3]
    mass = [math.exp(-(max(u) - each) / 0.2) for each in u]
    torch.testing.assert_close(soft_RT[0], torch.tensor([each / sum(mass) for each in mass]))
    torch.testing.assert_close(utility_target(score_RT, 0.1, 1e-4), utility_target(score_RT, 0.1))


def test_the_curriculum_and_the_threshold():
    assert [[curriculum_step(stage, steps) for stage in range(4)] for steps in (1, 2, 4, 6)] == [
        *([1, 1, 1, 1], [2, 1, 1, 1], [4, 3, 2, 2], [6, 4, 3, 3])
    ]
    with pytest.raises(ValueError, match="stage=-1"):
        curriculum_step(-1, 4)
    z_RT = torch.tensor([[-1.0, 2.0, 9.0], [-1.0, -1.0, -1.0], [0.0, 5.0, 0.0]])
    assert first_above(z_RT, 0.5).tolist() == [2, 3, 2]
