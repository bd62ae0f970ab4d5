"""Halting: distributions sum to one, the prior has the asked mean, cutting equals stopping."""

import pytest
import torch

from quietreasoning.losses.halting import geometric_prior, halting_kl, rate_for_mean


def distribution(rows=5, steps=3, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, steps, generator=draw, dtype=dtype).softmax(1)


def test_the_rate_of_the_default_mean():
    assert rate_for_mean(1.2, 3) == pytest.approx(0.829, abs=5e-4)
    assert rate_for_mean(1.5, 2) == pytest.approx(0.5)


@pytest.mark.parametrize(("mean", "steps"), [(1.2, 3), (1.01, 2), (2.9, 3), (4.0, 7)])
def test_the_prior_sums_to_one_and_has_the_mean(mean, steps):
    prior_T = geometric_prior(rate_for_mean(mean, steps), steps)
    assert prior_T.sum().item() == pytest.approx(1)
    assert (prior_T @ torch.arange(1.0, steps + 1)).item() == pytest.approx(mean, rel=1e-5)


def test_the_prior_by_hand():
    torch.testing.assert_close(geometric_prior(0.75, 3), torch.tensor([0.75, 0.1875, 0.0625]))
    assert geometric_prior(0.75, 1).tolist() == [1.0]


@pytest.mark.parametrize(("mean", "steps"), [(1.0, 3), (3.0, 3), (0.5, 3), (2.0, 1)])
def test_a_mean_no_rate_has_is_refused(mean, steps):
    with pytest.raises(ValueError, match=f"between 1 and steps={steps}"):
        rate_for_mean(mean, steps)


def test_one_step_is_the_last_whatever_the_rate():
    assert 0 < rate_for_mean(1, 1) < 1


@pytest.mark.parametrize(("rate", "steps"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_a_rate_without_a_prior_is_refused(rate, steps):
    with pytest.raises(ValueError, match="0 < rate < 1"):
        geometric_prior(rate, steps)


def test_kl_is_zero_at_the_prior_and_positive_elsewhere():
    rows_R = torch.ones(5, dtype=torch.bool)
    prior_RT = geometric_prior(0.829, 3).expand(5, 3)
    assert halting_kl(prior_RT, 0.829, rows_R)[0].item() == pytest.approx(0, abs=1e-6)
    total, count = halting_kl(distribution(), 0.829, rows_R)
    wanted = sum(
        (p.log() - q.log()) * p
        for row in distribution()
        for p, q in zip(row, geometric_prior(0.829, 3), strict=True)
    )
    torch.testing.assert_close(total, wanted)
    assert count == 5 and total > 0.1


def test_kl_adds_up_over_rows_and_has_a_finite_slope_at_zero():
    p_RT = distribution().requires_grad_()
    rows_R = torch.tensor([True, False, True, True, True])
    whole = halting_kl(p_RT, 0.7, rows_R)
    halves = [halting_kl(p_RT[s], 0.7, rows_R[s]) for s in (slice(0, 2), slice(2, 5))]
    for i in range(2):
        torch.testing.assert_close(whole[i], halves[0][i] + halves[1][i])
    whole[0].backward()
    assert not p_RT.grad[1].any() and p_RT.grad[0].any()
    certain = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    halting_kl(certain, 0.7, torch.ones(1, dtype=torch.bool))[0].backward()
    assert certain.grad.isfinite().all()
    double = distribution(dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: halting_kl(p, 0.7, rows_R)[0], double)
