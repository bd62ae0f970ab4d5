"""Moments in a state dict are the moments, whatever the module is cast to; so is the metric of the head."""

import torch
from torch import nn

from quietreasoning.nn.compressor import fisher_metric
from quietreasoning.nn.moment_buffers import FisherBuffers, MomentBuffers
from quietreasoning.nn.moments import Moments

WIDTH = 6


def states(seed=0, count=40):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, count // 4, WIDTH, generator=draw) * torch.arange(1.0, WIDTH + 1) + 5


def test_they_are_the_moments_of_what_was_counted():
    own, wanted = MomentBuffers(WIDTH), Moments(WIDTH)
    for seed in range(3):
        counted = torch.rand(4, 10, generator=torch.Generator().manual_seed(seed)) < 0.7
        own.observe(states(seed), counted)
        wanted.update(states(seed), counted)
    assert own.seen == int(wanted.count)
    torch.testing.assert_close(own.moments().covariance_DD(), wanted.covariance_DD())
    torch.testing.assert_close(own.moments().mean_D(), wanted.mean_D())


def test_an_empty_batch_adds_nothing_and_places_nothing():
    own, nothing = MomentBuffers(WIDTH), torch.zeros(4, 10, dtype=torch.bool)
    own.observe(states(), nothing)
    assert own.seen == 0 and not own.placed
    own.observe(states(), ~nothing)
    torch.testing.assert_close(own.moments().mean_D(), states().double().mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_a_state_dict_brings_them_back_to_the_bit():
    own, again, all_of = MomentBuffers(WIDTH), MomentBuffers(WIDTH), torch.ones(4, 10, dtype=torch.bool)
    own.observe(states(0), all_of)
    again.load_state_dict(own.state_dict())
    for one in (own, again):
        one.observe(states(1), all_of)
    assert all(torch.equal(buffer, again.state_dict()[name]) for name, buffer in own.state_dict().items())


def test_a_cast_of_the_module_around_does_not_reach_them():
    outer = nn.ModuleDict({"linear": nn.Linear(2, 2), "own": MomentBuffers(WIDTH)})
    outer["own"].observe(states(), torch.ones(4, 10, dtype=torch.bool))
    before = {name: buffer.clone() for name, buffer in outer["own"].named_buffers()}
    outer.to(torch.bfloat16).half().float()
    assert outer["linear"].weight.dtype == torch.float32
    for name, buffer in outer["own"].named_buffers():
        assert buffer.dtype == before[name].dtype and torch.equal(buffer, before[name])
    assert outer.to("meta")["own"].gram_DD.device.type == "meta", "the device follows"


def test_the_streamed_metric_is_that_of_all_positions_at_once():
    torch.manual_seed(0)
    head, own = nn.Linear(WIDTH, 11, bias=False), FisherBuffers(11, WIDTH)
    parts = [torch.randn(count, WIDTH) for count in (5, 0, 1030)]
    for part in parts:
        own.observe(head, head.weight, part)
    wanted = fisher_metric(head.weight, head(torch.cat(parts)).softmax(-1))
    torch.testing.assert_close(own.metric_DD(head.weight), wanted, rtol=1e-5, atol=1e-7)
