"""Fake quantisation: the deployed integers, a true gradient straight through, and nothing while off."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quietreasoning.nn.fake_quant import Bits, FakeQuantLinear, prepare, restore, scales, switch
from quietreasoning.nn.int_linear import IntLinear, int_product, pack, unpack

CHOICES = [Bits(), Bits(8, None), Bits(4, 8, 16), Bits(4, None), Bits(4, None, 8)]


def made(bits=None, *, width=48, outputs=40, bias=True, on=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, outputs, bias=bias))
    prepare(model, ["0"], bits or Bits())
    switch(model, on)
    return model


def inputs(*shape, width=48):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(*shape, width, generator=draw) * torch.rand(*shape, 1, generator=draw).mul(9)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (0,), ()], ids=str)
def test_the_forward_is_int8_by_int8_summed_in_int32(shape):
    model, x = made(), inputs(*shape)
    weight_OI = model[0].weight.detach()
    scale_O1, scale_X1 = scales(weight_OI, 8), scales(x, 8)
    whole_OI, whole_XI = (
        (v * (1 / s)).round().clamp(-128, 127).int() for v, s in ((weight_OI, scale_O1), (x, scale_X1))
    )
    sums_XO = (whole_XI.long().unsqueeze(-2) * whole_OI.long()).sum(-1)
    wanted = sums_XO.float() * scale_X1 * scale_O1[:, 0] + model[0].bias
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("bits", CHOICES, ids=str)
def test_the_stored_integers_say_what_training_said(bits):
    model, x = made(bits), inputs(2, 5)
    stored = IntLinear.of(model[0], bits)
    assert torch.equal(stored(x), model(x))
    assert (F.linear(x, model[0].weight, model[0].bias) - model(x)).norm() > 1e-4  # it does count
    loaded = IntLinear(48, 40, bits, torch.zeros(40))
    loaded.load_state_dict(stored.state_dict())
    assert torch.equal(loaded.to(torch.bfloat16).weight_scale, stored.weight_scale)
    assert {p.dtype for p in stored.state_dict().values()} <= {
        torch.int8, torch.int32, torch.int64, torch.float32,
    }  # fmt: skip


def test_scales_are_of_channels_groups_and_tokens():
    model, x = made(), inputs(3)
    before = model(x)
    with torch.no_grad():
        model[0].weight[1] *= 100  # its own channel's business
    keeps = torch.arange(40) != 1
    assert torch.equal(model(x)[:, keeps], before[:, keeps])
    louder = x.clone()
    louder[2] *= 1000  # its own token's business, and gone when it is
    assert torch.equal(model(louder)[:2], model(x)[:2])
    coarse, fine = (made(Bits(4, None, group)) for group in (None, 8))
    far = []
    for each in (coarse, fine):
        with torch.no_grad():
            each[0].weight[:, 0] *= 9  # an outlier spoils its group alone
        far.append((each(x) - F.linear(x, each[0].weight, each[0].bias)).norm())
    assert far[1] < 0.5 * far[0]


def test_the_gradient_goes_straight_through():
    """It is, exactly, what a plain layer of the rounded values has."""
    model, x = made().double(), inputs(6).double().requires_grad_()
    y = model(x)
    (2 * y).sum().backward()
    weight_OI, scale_O1, scale_X1 = model[0].weight.detach(), scales(model[0].weight, 8), scales(x, 8)
    rounded_OI = (weight_OI * (1 / scale_O1)).round().clamp(-128, 127) * scale_O1
    rounded_XI = (x.detach() * (1 / scale_X1)).round().clamp(-128, 127) * scale_X1
    ones_XO = torch.full((6, 40), 2.0, dtype=torch.float64)
    torch.testing.assert_close(model[0].weight.grad, ones_XO.T @ rounded_XI)
    torch.testing.assert_close(x.grad, ones_XO @ rounded_OI)
    torch.testing.assert_close(model[0].bias.grad, ones_XO.sum(0))


def test_the_gradient_is_the_plain_layers_to_rounding_and_rounding_alone_has_none():
    model, plain, x = made(), made(on=False), inputs(64)
    target = torch.randn(64, 40, generator=torch.Generator().manual_seed(2))
    grads = []
    for each in (model, plain):
        F.mse_loss(each(x), target).backward()
        grads.append(each[0].weight.grad.flatten())
    assert F.cosine_similarity(*grads, dim=0) > 0.999
    assert (grads[0] != 0).float().mean() > 0.99
    bare = model[0].weight.detach().requires_grad_()
    scale = bare.abs().amax(-1, keepdim=True) / 127.5  # as some do it: rounding, and a scale with a gradient
    F.mse_loss(x @ ((bare / scale).round() * scale).T, target).backward()
    assert F.cosine_similarity(bare.grad.flatten(), grads[1], dim=0) < 0.5


def test_beyond_its_range_a_value_has_no_gradient():
    from quietreasoning.nn.fake_quant import integers

    x = torch.tensor([-300.0, -128.4, 3.3, 127.4, 300.0], requires_grad=True)
    whole = integers(x, torch.ones(1), 8)
    assert whole.tolist() == [-128, -128, 3, 127, 127]
    whole.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_backward_again_and_backward_of_backward():
    model, x = made(), inputs(4).requires_grad_()
    grads = []
    for _ in range(2):
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append(model[0].weight.grad.clone())
    assert torch.equal(*grads)
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.isfinite().all() and second.abs().sum() > 0


def test_off_and_restored_it_is_the_plain_layer():
    model, x = made(on=False), inputs(3)
    plain = nn.Linear(48, 40)
    plain.load_state_dict(model[0].state_dict())
    assert torch.equal(model(x), plain(x)) and list(model.state_dict()) == ["0.weight", "0.bias"]
    twin = copy.deepcopy(model)
    switch(twin, True)
    assert not torch.equal(twin(x), model(x)) and isinstance(twin[0], FakeQuantLinear)
    restore(twin)
    assert type(twin[0]) is nn.Linear and vars(twin[0]).keys() == vars(plain).keys()
    assert torch.equal(twin(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_loses_no_integer(dtype):
    model, x = made(), inputs(9)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    assert y.dtype == dtype and y.isfinite().all()
    assert (y.float() - model(x.to(dtype).float())).norm() < 0.02 * y.float().norm()
    model(x).sum().backward()
    assert model[0].weight.grad.dtype == torch.float32


def test_4_bit_words_hold_what_was_put_in():
    whole_OI = torch.randint(-8, 8, (5, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack(pack(whole_OI)).long(), whole_OI)
    left, right = (torch.randint(-128, 128, s, dtype=torch.int8) for s in ((3, 33), (7, 33)))
    assert torch.equal(int_product(left, right).long(), left.long() @ right.long().T)
    with pytest.raises(ValueError, match="do not divide the 48 inputs of 0"):
        made(Bits(4, 8, 32))


def test_at_4_bits_training_on_the_float_copy_beats_rounding():
    torch.manual_seed(0)
    copied = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(3)
    model = copy.deepcopy(copied)
    prepare(model, ["0", "2", "4"], Bits(4, 8))
    switch(model, True)
    held, draw = torch.randn(256, 16), torch.Generator().manual_seed(1)

    def kl(x):
        with torch.no_grad():
            taught = copied(x).log_softmax(-1)
        return F.kl_div(model(x).log_softmax(-1), taught, log_target=True, reduction="batchmean")

    rounded = kl(held).item()
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 120)
        optimizer.zero_grad()
        kl(torch.randn(64, 16, generator=draw)).backward()
        optimizer.step()
    assert kl(held).item() < 0.6 * rounded
