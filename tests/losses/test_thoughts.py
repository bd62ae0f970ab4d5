"""Gradients against exact enumeration, rewards and baselines by hand, scores that fail empty thoughts."""

import itertools

import pytest
import torch

from quietreasoning.losses.policy import token_log_probs
from quietreasoning.losses.thoughts import (
    ThoughtLaw,
    composite,
    context_mean,
    entropy,
    in_chunks,
    multi_sample_bound,
    policy_loss,
    semantic_score,
    syntactic_score,
    thought_advantages,
    thought_kl,
    thought_rewards,
)

VOCAB = 5
LAW = ThoughtLaw(start=0, end=4, blocked=(1,), floor=1)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_thoughts():
    """Every thought of at most two tokens under LAW: choices [N, 2] with the end marker, -1 for none."""
    rows = [[first, second] for first in (2, 3) for second in (2, 3, LAW.end)]
    return torch.tensor(rows)


def log_p(logits_CV, choices_N2):
    """Policy: one row of logits at step 0, then one row for each first token."""
    first_N, second_N = choices_N2[:, 0], choices_N2[:, 1]
    step_N = torch.zeros(len(choices_N2), dtype=torch.long)
    logp = [
        token_log_probs(LAW.logits(logits_CV[:1].expand(len(choices_N2), -1), step_N), first_N),
        token_log_probs(LAW.logits(logits_CV[first_N], step_N + 1), second_N),
    ]
    return torch.stack(logp, 1)


@pytest.mark.parametrize("baseline", ["floored", "plain", "none"])
@pytest.mark.parametrize("group", [2, 3])
def test_the_policy_gradient_is_that_of_enumeration(baseline, group):
    """Every group of thoughts weighted by its probability, on five tokens: G / limit times grad E[r]."""
    logits_CV, choices_N2 = numbers(VOCAB, VOCAB, seed=1).requires_grad_(), all_thoughts()
    reward_N = numbers(len(choices_N2), seed=2)  # of both signs
    logp_N2 = log_p(logits_CV, choices_N2)
    logp_N = logp_N2.sum(1)
    torch.testing.assert_close(logp_N.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    (wanted,) = torch.autograd.grad((logp_N.exp() * reward_N).sum(), logits_CV, retain_graph=True)
    groups_PG = torch.tensor(list(itertools.product(range(len(choices_N2)), repeat=group)))
    chance_P1 = logp_N[groups_PG].sum(1, keepdim=True).exp()
    advantage_PG = thought_advantages(reward_N[groups_PG], baseline) * chance_P1
    counted_PG2 = torch.ones(*groups_PG.shape, 2, dtype=torch.bool)
    total, count = policy_loss(
        logp_N2[groups_PG].flatten(0, 1), advantage_PG.flatten(), counted_PG2.flatten(0, 1), limit=20
    )
    assert int(count) == groups_PG.numel()
    (got,) = torch.autograd.grad(total, logits_CV)
    torch.testing.assert_close(got, -wanted * group / 20, rtol=0, atol=1e-12)
    assert wanted.abs().max() > 1e-3


def test_the_law_closes_and_renormalises():
    logits_NV = numbers(2, VOCAB, seed=3)
    law_NV = LAW.logits(logits_NV, torch.tensor([0, 1])).softmax(-1)
    assert law_NV[0, [0, 1, 4]].tolist() == [0, 0, 0] and law_NV[1, [0, 1]].tolist() == [0, 0]
    torch.testing.assert_close(law_NV[1, 2:], logits_NV[1, 2:].softmax(-1))
    logp_N = token_log_probs(LAW.logits(logits_NV, torch.tensor([0, 1])), torch.tensor([2, 4]))
    torch.testing.assert_close(logp_N.exp(), law_NV[[0, 1], [2, 4]])
    assert LAW.logits(logits_NV.bfloat16(), 0).dtype == torch.float32
    for bad in ({"end": 0}, {"blocked": (4,)}, {"floor": -1}):
        with pytest.raises(ValueError, match="markers must differ"):
            ThoughtLaw(**{"start": 0, "end": 4, "blocked": (), "floor": 0, **bad})


def test_baselines_by_hand():
    reward = torch.tensor([[-1.0, -3.0], [2.0, 1.0]])
    assert thought_advantages(reward, "plain").tolist() == [[0.5, -2.5], [1.5, 0.0]]
    assert thought_advantages(reward).tolist() == [[-1.0, -3.0], [1.5, 0.0]]
    with pytest.raises(ValueError, match="draw 2 or more"):
        thought_advantages(reward[:, :1])
    with pytest.raises(ValueError, match="choices are floored"):
        thought_advantages(reward, "mean")


def test_a_harmful_thought_is_never_rewarded():
    reward = numbers(500, 4, seed=4)
    floored = thought_advantages(reward)
    assert (floored[reward < 0] < 0).all() and (thought_advantages(reward, "plain")[reward < 0] > 0).any()


def test_rewards_count_true_tokens_only():
    mixed, base = numbers(1, 2, 3, 4).requires_grad_(), numbers(1, 2, 4, seed=1)
    counted = torch.tensor([[[True, True, False, False], [False] * 4]])
    reward = thought_rewards(mixed.masked_fill(~counted[:, :, None], torch.nan), base, counted)
    torch.testing.assert_close(reward[0, 0], (mixed - base[:, :, None])[0, 0, :, :2].sum(-1).detach())
    assert not reward[0, 1].any() and not reward.requires_grad


def test_the_policy_loss_by_hand_and_blind_to_padding():
    counted = torch.tensor([[True, True], [True, False], [False, False]])
    logp = torch.tensor([[-1.0, -2.0], [-0.5, torch.nan], [torch.inf, 0.0]]).requires_grad_()
    loss, count = policy_loss(logp, torch.tensor([2.0, -1.0, 9.0]), counted, limit=4, scale=0.5)
    assert float(loss.detach()) == pytest.approx(-(2 * -3 - 1 * -0.5) / 4 / 0.5) and int(count) == 2
    loss.backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[-1.0, -1.0], [0.5, 0.0], [0.0, 0.0]]))


def test_the_bound_and_its_gradient():
    logp = numbers(2, 3, 4, 2, seed=5).requires_grad_()
    counted = torch.ones(2, 3, 2, dtype=torch.bool)
    counted[0, 0] = False
    bound = multi_sample_bound(logp, counted)
    joint = logp.sum(-1)[counted.any(-1)]
    torch.testing.assert_close(-bound.total, joint.exp().mean(-1).log().sum())
    assert int(bound.count) == 5 and -bound.total > joint.mean(-1).sum()
    (slope,) = torch.autograd.grad(bound.total, logp)
    wanted = -bound.weight_BKG[..., None] * counted[:, :, None]
    torch.testing.assert_close(slope, wanted.expand_as(slope))
    same = multi_sample_bound(logp[:, :, :1].expand(-1, -1, 4, -1), counted)
    torch.testing.assert_close(same.total, -logp[:, :, 0].sum(-1)[counted.any(-1)].sum())


def test_the_divergence_over_the_open_vocabulary():
    logits, reference = numbers(3, VOCAB, seed=6).requires_grad_(), numbers(3, VOCAB, seed=7)
    steps = torch.tensor([0, 1, 1])
    kl = thought_kl(LAW.logits(logits, steps), LAW.logits(reference, steps))[:2].sum()
    expected = 0.0
    for row, open_ in ((0, [2, 3]), (1, [2, 3, 4])):
        p, q = logits[row, open_].log_softmax(0), reference[row, open_].log_softmax(0)
        expected = expected + (p.exp() * (p - q)).sum()
    torch.testing.assert_close(kl, expected)
    got, wanted = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (kl, expected))
    torch.testing.assert_close(got, wanted)
    assert got.isfinite().all()
    assert not thought_kl(LAW.logits(logits, steps), LAW.logits(logits, steps)).any()


def test_chunks_change_neither_value_nor_gradient():
    head, hidden = numbers(VOCAB, 6, seed=8).requires_grad_(), numbers(7, 6, seed=9).requires_grad_()
    ids, steps = torch.tensor([2, 3, 4, 2, 3, 2, 4]), torch.tensor([0, 0, 1, 2, 1, 1, 3])

    def score(hidden_C, ids_C, steps_C):
        return token_log_probs(LAW.logits(hidden_C @ head.T, steps_C), ids_C)

    whole, pieces = score(hidden, ids, steps), in_chunks(score, hidden, ids, steps, chunk=3)
    torch.testing.assert_close(whole, pieces)
    for a, b in zip(
        *(torch.autograd.grad(x.square().sum(), (head, hidden)) for x in (whole, pieces)), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert in_chunks(score, hidden[:0], ids[:0], steps[:0]).shape == (0,)
    torch.testing.assert_close(entropy(torch.zeros(2, VOCAB)), torch.full((2,), 5.0).log())


def test_scores_of_meaning_and_form():
    hidden, real = numbers(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
    real[0, :2] = False
    anchors, centre = torch.tensor([[4, 2], [3, -1]]), numbers(4, seed=1)
    context = context_mean(hidden, real, anchors)
    torch.testing.assert_close(context[0, 0], hidden[0, 2:5].mean(0))
    assert not context[1, 1].any()
    counted = torch.tensor([[True, True, False], [False] * 3])
    states = numbers(2, 3, 4, seed=2)
    score = semantic_score(states, counted, context[:, 0], centre)
    a, b = states[0, :2].mean(0) - centre, context[0, 0] - centre
    torch.testing.assert_close(score[0], a @ b / a.norm() / b.norm())
    form = syntactic_score(torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]]), counted)
    assert float(form[0]) == pytest.approx(2.718281828**-1.5) and float(form[1]) == 0 and float(score[1]) == 0
    scores = torch.stack([score.float(), form], -1)
    got = composite(scores, torch.tensor([0.1, 0.2]), torch.tensor([2.0, 0.0]), torch.tensor([0.4, 0.3]))
    torch.testing.assert_close(got, (score.float() - 0.1) / 2 * 0.4)
