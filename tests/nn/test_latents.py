"""Feedback starts as a plain norm; the decoder reads no token before it has to say it."""

import pytest
import torch

from quietreasoning.nn.latents import Feedback, StepDecoder

WIDTH = 12


def states(*shape, seed=0):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_feedback_starts_as_a_norm_of_the_asked_size(scale):
    torch.manual_seed(0)
    hidden = states(3, 4) * 50
    latent = Feedback(WIDTH, scale)(hidden)
    rms = hidden.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(latent, scale * hidden / rms)
    torch.testing.assert_close(latent.square().mean(-1).sqrt(), torch.full((3, 4), scale))


def test_feedback_equals_its_equation_once_trained():
    torch.manual_seed(0)
    feedback = Feedback(WIDTH, 0.5)
    with torch.no_grad():
        for p in feedback.parameters():
            p.add_(0.3 * torch.randn_like(p))
    h = states(5)
    up = h @ feedback.up.weight.T + feedback.up.bias
    gelu = up * 0.5 * (1 + torch.erf(up / 2**0.5))
    x = h + gelu @ feedback.down.weight.T + feedback.down.bias
    expected = feedback.norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(feedback(h), expected)


def test_feedback_takes_states_of_any_precision():
    feedback, h = Feedback(WIDTH, 1.0), states(2)
    low = feedback(h.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, feedback(h.bfloat16().float()))


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return StepDecoder(WIDTH)


def test_decoder_sees_only_earlier_tokens(decoder):
    thought_ND, embeds_NSD = states(3), states(3, 5, seed=1)
    before = decoder(thought_ND, embeds_NSD)
    for s in range(5):
        changed = embeds_NSD.clone()
        changed[:, s] += 1
        after = decoder(thought_ND, changed)
        assert torch.equal(after[:, : s + 1], before[:, : s + 1])
        if s < 4:
            assert not torch.isclose(after[:, s + 1], before[:, s + 1]).all()


def test_decoder_says_everything_from_the_thought(decoder):
    thought_ND, embeds_NSD = states(3), states(3, 5, seed=1)
    before, other = decoder(thought_ND, embeds_NSD), decoder(thought_ND + 1, embeds_NSD)
    assert before.shape == embeds_NSD.shape
    assert all(not torch.isclose(before[:, s], other[:, s]).all() for s in range(5))
    apart = torch.cat([decoder(thought_ND[i : i + 1], embeds_NSD[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(apart, before)


def test_decoder_equals_a_loop_over_tokens(decoder):
    thought_ND, embeds_NSD = states(2), states(2, 4, seed=1)
    cell = decoder.cell
    weight_in, weight_hidden = cell.weight_ih_l0.chunk(3), cell.weight_hh_l0.chunk(3)
    bias_in, bias_hidden = cell.bias_ih_l0.chunk(3), cell.bias_hh_l0.chunk(3)
    hidden = torch.tanh(decoder.start(thought_ND))
    for s in range(4):
        x = embeds_NSD[:, s - 1] if s else torch.zeros_like(hidden)
        a = [x @ w.T + b for w, b in zip(weight_in, bias_in, strict=True)]
        c = [hidden @ w.T + b for w, b in zip(weight_hidden, bias_hidden, strict=True)]
        reset, update = torch.sigmoid(a[0] + c[0]), torch.sigmoid(a[1] + c[1])
        hidden = (1 - update) * torch.tanh(a[2] + reset * c[2]) + update * hidden
        torch.testing.assert_close(decoder(thought_ND, embeds_NSD)[:, s], decoder.out(hidden))
