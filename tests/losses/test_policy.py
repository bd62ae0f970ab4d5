"""Policy losses: advantages by hand, the clip as the paper draws it, the gradient by enumeration."""

import itertools

import pytest
import torch

from quietreasoning.losses.policy import (
    clipped_objective,
    group_advantages,
    reference_kl,
    rewards,
    token_log_probs,
)

ALL = torch.ones(1, 1, dtype=torch.bool)


def test_advantages_by_hand():
    reward_BG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    scaled_BG, told_B = group_advantages(reward_BG, eps=0.0)
    assert told_B.tolist() == [True, False, False]
    std = (0.25 * 0.75) ** 0.5
    torch.testing.assert_close(scaled_BG[0], torch.tensor([0.75, -0.25, -0.25, -0.25]) / std)
    plain_BG, _ = group_advantages(reward_BG, standardise=False)
    torch.testing.assert_close(plain_BG[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))
    for advantage_BG in (scaled_BG, plain_BG):
        assert not advantage_BG[1:].any(), "a group of one reward tells nothing, without rounding"


def test_a_third_in_rounding_is_no_news():
    """0.1 added up is not 0.3: rewards that differ in the last bit are the same reward."""
    reward_BG = torch.tensor([[0.1 + 0.2, 0.3, 0.3]])
    advantage_BG, told_B = group_advantages(reward_BG)
    assert not told_B.any() and not advantage_BG.any()


def test_groups_do_not_meet():
    reward_BG = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    together, _ = group_advantages(reward_BG)
    alone = torch.cat([group_advantages(row_1G)[0] for row_1G in reward_BG.split(1)])
    torch.testing.assert_close(together, alone)


def test_length_is_paid_where_somebody_is_right():
    right_BG = torch.tensor([[True, False], [False, False]])
    reward_BG = rewards(right_BG, torch.tensor([[2, 4], [1, 4]]), limit=8, length=0.1)
    torch.testing.assert_close(reward_BG, torch.tensor([[1 - 0.025, -0.05], [0.0, 0.0]]))
    assert torch.equal(rewards(right_BG, torch.tensor([[2, 4], [1, 4]]), 8), right_BG.float())


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope", "clipped"),
    [
        (1.0, 2.0, -2.0, 0),  # on the policy: -A
        (1.1, 2.0, -2.2, 0),  # within the clip: -ratio * A
        (1.5, 2.0, 0.0, 1),  # more likely by far, and good: no more of it
        (1.5, -2.0, 3.0, 0),  # more likely by far, and bad: all the way back
        (0.5, 2.0, -1.0, 0),
        (0.5, -2.0, 0.0, 1),
    ],
)
def test_the_clip(ratio, advantage, slope, clipped):
    logp_NT = torch.tensor([[ratio]]).log().requires_grad_()
    out = clipped_objective(logp_NT, torch.zeros(1, 1), torch.tensor([advantage]), ALL, 0.2)
    out.total.backward()
    assert float(logp_NT.grad) == pytest.approx(slope, abs=1e-6)
    assert (int(out.clipped), int(out.count)) == (clipped, 1)


def test_padding_counts_for_nothing_whatever_it_holds():
    counted_NT = torch.tensor([[True, False], [True, True]])
    logp_NT, advantage_N = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]]), torch.tensor([1.0, -1.0])
    for rubbish in (0.0, -1e4, float("-inf")):
        filled_NT = logp_NT.masked_fill(~counted_NT, rubbish).requires_grad_()
        out = clipped_objective(filled_NT, logp_NT, advantage_N, counted_NT)
        kl = reference_kl(filled_NT, logp_NT - 0.3, counted_NT)
        (out.total + kl).backward()
        assert float(out.total.detach()) == pytest.approx(1.0)  # - (1 - 2) tokens
        assert filled_NT.grad.isfinite().all() and not filled_NT.grad[0, 1]


def test_an_answer_is_a_sum_or_a_mean_over_its_tokens():
    counted_NT = torch.tensor([[True, False], [True, True]])
    logp_NT, advantage_N = torch.zeros(2, 2), torch.tensor([1.0, 1.0])
    assert float(clipped_objective(logp_NT, logp_NT, advantage_N, counted_NT).total) == -3
    assert float(clipped_objective(logp_NT, logp_NT, advantage_N, counted_NT, per_token=True).total) == -2
    kl_of_one = float(torch.tensor(0.5).exp() - 0.5 - 1)
    away = logp_NT + 0.5
    assert float(reference_kl(logp_NT, away, counted_NT)) == pytest.approx(3 * kl_of_one)
    assert float(reference_kl(logp_NT, away, counted_NT, per_token=True)) == pytest.approx(2 * kl_of_one)


def test_the_distance_is_the_divergence_in_the_mean():
    """Sum over all tokens of p * k = KL(p || reference); k is never negative, 0 with slope 0 where equal."""
    logits_V = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other_V = torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logp_V, reference_V = logits_V.log_softmax(0), other_V.log_softmax(0)
    k_V = torch.stack(
        [reference_kl(logp_V[None, v : v + 1], reference_V[None, v : v + 1], ALL) for v in range(6)]
    )
    assert (k_V >= 0).all()
    torch.testing.assert_close((logp_V.exp() * k_V).sum(), (logp_V.exp() * (logp_V - reference_V)).sum())
    same = logp_V[None].clone().requires_grad_()
    zero = reference_kl(same, logp_V[None], torch.ones(1, 6, dtype=torch.bool))
    zero.backward()
    assert float(zero.detach()) == 0 and not same.grad.any()


def test_log_probabilities_are_those_of_the_law_that_draws():
    logits_NV = torch.randn(3, 7, generator=torch.Generator().manual_seed(3))
    ids_N = torch.tensor([0, 6, 2])
    for temperature in (0.5, 1.0, 3.0):
        expected = (logits_NV / temperature).log_softmax(-1)[range(3), ids_N]
        torch.testing.assert_close(token_log_probs(logits_NV, ids_N, temperature), expected)
    assert token_log_probs(logits_NV.bfloat16(), ids_N).dtype == torch.float32


@pytest.mark.parametrize("group", [2, 3])
def test_the_expected_gradient_is_that_of_the_expected_reward(group):
    """Every group of answers, weighted by its probability: (G - 1) / G * G times the gradient of E[r].

    An answer is a token of five; the baseline is the group's own mean, which costs the factor (G - 1) / G.
    """
    logits_V = torch.randn(
        5, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    ).requires_grad_()
    reward_V = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    (wanted_V,) = torch.autograd.grad((logits_V.softmax(0) * reward_V).sum(), logits_V)
    groups_NG = torch.tensor(list(itertools.product(range(5), repeat=group)))
    logp_NG = logits_V.log_softmax(0)[groups_NG]
    weight_N = logp_NG.detach().sum(1).exp()
    advantage_NG, told_N = group_advantages(reward_V[groups_NG], standardise=False)
    assert not torch.equal(told_N, torch.ones_like(told_N))
    # a group's share of the expectation enters through its advantages: the objective is linear in them
    share_NG = advantage_NG * weight_N[:, None]
    counted_NT = torch.ones(groups_NG.numel(), 1, dtype=torch.bool)
    flat_NT = logp_NG.reshape(-1, 1)
    out = clipped_objective(flat_NT, flat_NT, share_NG.flatten(), counted_NT)
    (found_V,) = torch.autograd.grad(out.total, logits_V)
    torch.testing.assert_close(found_V, -(group - 1) * wanted_V)
