"""A removed thought leaves no bit, the gate starts where it is told, shares start at the prior."""

import math

import pytest
import torch

from quietreasoning.nn.mixing import Mixer, gather_thoughts, mix

WIDTH, GROUP = 8, 3


def states(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def moved_mixer(**options):
    torch.manual_seed(0)
    mixer = Mixer(WIDTH, **options)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return mixer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_thought_forced_out_leaves_the_base_bit_by_bit(dtype):
    base, thought = states(2, 5, dtype=dtype), states(2, 5, seed=1, dtype=dtype).mul(1e3).requires_grad_()
    base[0, 0, 0] = -0.0
    share = moved_mixer().share(base, thought)
    share = torch.where(torch.tensor([[True] * 5, [False] * 5]), 0.0, share)
    with torch.no_grad():
        thought[0, 1] = torch.nan
    mixed = mix(base, thought, share)
    assert torch.equal(mixed[0].signbit(), base[0].signbit()), "a zero keeps its sign"
    assert mixed.dtype == dtype and torch.equal(mixed[0], base[0]) and not torch.equal(mixed[1], base[1])
    mixed.float().sum().backward()
    assert not thought.grad[0].any() and thought.grad[1].all()


def test_the_start_is_the_bias_and_the_prior():
    mixer = Mixer(WIDTH, bias=-4.0)
    base, thoughts, prior = states(4), states(4, GROUP, seed=1), torch.tensor([0.5, -1.0, 0.0])
    torch.testing.assert_close(mixer.share(base, thoughts[:, 0]), torch.full((4,), 1 / (1 + math.exp(4))))
    torch.testing.assert_close(mixer.weights(base, thoughts, prior), prior.softmax(-1).expand(4, -1))
    assert all(p.ndim for p in mixer.parameters()), "sharding refuses scalars"


def test_the_mixture_by_hand_and_every_weight_learns():
    mixer = moved_mixer()
    base, thoughts, prior = states(4), states(4, GROUP, seed=1), torch.tensor([0.5, -1.0, 0.0])
    weights = mixer.weights(base, thoughts, prior)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    thought = gather_thoughts(weights, thoughts)
    torch.testing.assert_close(thought, sum(weights[:, g : g + 1] * thoughts[:, g] for g in range(GROUP)))
    share = mixer.share(base, thought)
    mixed = mix(base, thought, share)
    torch.testing.assert_close(mixed, (1 - share[:, None]) * base + share[:, None] * thought)
    mixed.square().sum().backward()
    for name, p in mixer.named_parameters():
        assert p.grad.abs().amax() > 1e-6, name


def test_one_thought_needs_no_weights():
    base, thoughts = states(4), states(4, 1, seed=1)
    weights = moved_mixer().weights(base, thoughts, torch.zeros(1))
    assert torch.equal(weights, torch.ones(4, 1)) and torch.equal(
        gather_thoughts(weights, thoughts), thoughts[:, 0]
    )


def test_rows_do_not_meet():
    mixer, base, thoughts = moved_mixer(), states(4), states(4, GROUP, seed=1)
    weights = mixer.weights(base, thoughts, torch.zeros(GROUP))
    for row in range(4):
        alone = mixer.weights(base[row : row + 1], thoughts[row : row + 1], torch.zeros(GROUP))
        torch.testing.assert_close(alone[0], weights[row])
