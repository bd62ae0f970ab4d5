"""Which parameter goes where, at what rate, with what decay; and states that survive a round trip."""

import pytest
import torch
from torch import nn

from quietreasoning.config import UserError
from quietreasoning.optim.muon import Muon
from quietreasoning.optim.optimizers import OPTIMIZERS, build_optimizer, has_prefix, hidden_matrices
from quietreasoning.optim.settings import OptimConfig


class Tiny(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.norm = nn.LayerNorm(6)
        self.slots = nn.Parameter(torch.randn(3, 6))
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        hidden = self.embed(ids) + self.slots.sum(0)
        return self.head(self.norm(self.down(torch.relu(self.up(hidden)))))


def params(model):
    return dict(model.named_parameters())


def fit(model, optimizer, steps, factor=1.0):
    for step in range(steps):
        ids = torch.arange(4) + step
        nn.functional.cross_entropy(model(ids % 11), ids % 5).backward()
        optimizer.set_lr(factor)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(tied):
    model = Tiny(tied)
    assert hidden_matrices(model) == {"up.weight", "down.weight"}
    muon, adamw = build_optimizer(model, params(model), OptimConfig(name="muon")).parts
    assert type(muon) is Muon and type(adamw) is torch.optim.AdamW
    held = [{id(p) for group in part.param_groups for p in group["params"]} for part in (muon, adamw)]
    assert held[0] == {id(model.up.weight), id(model.down.weight)}
    assert held[0] | held[1] == {id(p) for p in model.parameters()} and not held[0] & held[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_and_moves_every_parameter(name):
    model, fresh = Tiny(), Tiny()
    optimizer = build_optimizer(model, params(model), OptimConfig(name=name, lr=0.02))
    ids = torch.arange(4)
    before = nn.functional.cross_entropy(model(ids), ids).item()
    for _ in range(30):
        nn.functional.cross_entropy(model(ids), ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert nn.functional.cross_entropy(model(ids), ids).item() < before / 2
    assert all((p != q).any() for p, q in zip(model.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("grokfast", [None, {"strength": 0.5}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_reloaded_state_goes_on_bit_for_bit(name, grokfast):
    config = OptimConfig(name=name, lr=0.02, weight_decay=0.1, grokfast=grokfast)
    model, other = Tiny(), Tiny()
    optimizer = build_optimizer(model, params(model), config)
    assert optimizer.state() == {}
    fit(model, optimizer, 3)
    other.load_state_dict(model.state_dict())
    again = build_optimizer(other, params(other), config)
    state = {
        parameter: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in held.items()}
        for parameter, held in optimizer.state().items()
    }
    again.load_state(state)
    fit(model, optimizer, 3)
    fit(other, again, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_rates_scale_by_the_longest_prefix_and_decay_spares_vectors():
    model = Tiny()
    config = OptimConfig(lr=0.1, weight_decay=0.5, lr_scale={"up": 0.1, "up.weight": 0.0})
    optimizer = build_optimizer(model, params(model), config)
    assert optimizer.set_lr(0.5) == pytest.approx(0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.parts[0].param_groups
        for p in group["params"]
    }
    assert found["up.weight"] == (0.0, 0.5)
    assert found["up.bias"] == (pytest.approx(0.005), 0.0)
    assert found["down.weight"] == (pytest.approx(0.05), 0.5)
    assert found["norm.weight"] == (pytest.approx(0.05), 0.0)
    fresh = Tiny()
    fit(model, optimizer, 2)
    assert torch.equal(model.up.weight, fresh.up.weight) and not torch.equal(
        model.down.weight, fresh.down.weight
    )


def test_an_unknown_prefix_or_optimizer_is_refused():
    with pytest.raises(UserError, match=r"'upp'.*up.weight"):
        build_optimizer(Tiny(), params(Tiny()), OptimConfig(lr_scale={"upp": 2.0}))
    with pytest.raises(ValueError, match="adamw"):
        OptimConfig(name="adam")


def test_prefixes_end_at_dots():
    assert has_prefix("layers.1.weight", "layers.1") and has_prefix("layers.1.weight", "layers.1.")
    assert not has_prefix("layers.10.weight", "layers.1") and has_prefix("slots", "slots")


def test_a_module_can_spare_a_matrix_from_decay():
    class Scales(nn.Module):
        no_decay = ("scale",)

        def __init__(self):
            super().__init__()
            self.scale, self.other = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Scales()

    for name in ("adamw", "muon", "sgd"):
        model = Whole()
        optimizer = build_optimizer(model, params(model), OptimConfig(name=name, lr=0.1, weight_decay=0.5))
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.set_lr(1.0)
        optimizer.step()
        assert torch.equal(model.inner.scale, torch.ones(2, 3))
        assert not torch.equal(model.inner.other, torch.ones(2, 3))
