"""The filter's gains at both ends, its precision, and what it leaves alone."""

import pytest
import torch
from torch import nn

from quietreasoning.nn.product_key_memory import ProductKeyTable
from quietreasoning.optim.grokfast import Grokfast, decay_for
from quietreasoning.optim.optimizers import build_optimizer
from quietreasoning.optim.settings import GrokfastConfig, MuonConfig, OptimConfig


def filtered(grads, decay=0.98, strength=2.0):
    p = nn.Parameter(torch.zeros_like(grads[0]))
    slow, found = Grokfast([p], decay, strength), []
    for grad in grads:
        p.grad = grad.clone()
        slow.step()
        found.append(p.grad)
    return found, slow, p


@pytest.mark.parametrize("strength", [0.1, 2.0])
def test_a_constant_gradient_grows_by_one_plus_strength_from_the_first_step(strength):
    grad = torch.tensor([3.0, -0.5])
    for found in filtered([grad] * 200, strength=strength)[0]:
        torch.testing.assert_close(found, (1 + strength) * grad)


@pytest.mark.parametrize("strength", [0.1, 2.0])
def test_an_alternating_gradient_hardly_grows(strength):
    grads = [torch.tensor([(-1.0) ** t]) for t in range(1000)]
    found = torch.cat(filtered(grads, strength=strength)[0][-100:]).abs()
    torch.testing.assert_close(found, torch.full_like(found, 1 + strength * 0.02 / 1.98), rtol=1e-4, atol=0)


def test_the_mean_is_kept_in_fp32_and_a_missing_gradient_changes_nothing():
    found, slow, p = filtered([torch.full((4,), 1e-3, dtype=torch.bfloat16)] * 50)
    assert found[-1].dtype == torch.bfloat16 and slow.means[p].dtype == torch.float32
    assert slow.means[p][0] == pytest.approx(1e-3 * (1 - 0.98**50), rel=5e-3)
    before, p.grad = slow.means[p].clone(), None
    slow.step()
    assert torch.equal(slow.means[p], before) and slow.counts[p] == 50


@pytest.mark.parametrize(("steps", "decay"), [(None, 0.98), (20, 0.8), (100, 0.9), (10**6, 0.99)])
def test_the_average_follows_the_length_of_the_stage(steps, decay):
    assert decay_for(steps) == pytest.approx(decay)


def test_tables_of_rows_are_left_alone():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.other = ProductKeyTable(16, 4, 2, 6, 3), nn.Linear(3, 3)

    model = Remembers()
    params = dict(model.named_parameters())
    optimizer = build_optimizer(model, params, OptimConfig(grokfast={}), steps=100)
    held = {name for name, p in params.items() if any(p is q for q in optimizer.grokfast.params)}
    assert held >= {"other.weight"} and not any(name.startswith("table.values") for name in held)
    assert (optimizer.grokfast.decay, optimizer.grokfast.strength) == (0.9, 2.0)


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match=r"muon has no effect with name=adamw; set optim.name=muon"):
        OptimConfig(muon={"scale": "original"})
    for values in ({"decay": 1.0}, {"strength": 0.0}):
        with pytest.raises(ValueError, match="than"):
            GrokfastConfig(**values)
    with pytest.raises(ValueError, match="match_rms_adamw"):
        MuonConfig(scale="rms")


def test_it_acts_on_what_was_clipped_and_before_the_optimizer():
    """One step of plain descent moves by lr * (1 + strength) * gradient."""
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    config = OptimConfig(name="sgd", lr=0.1, betas=(0.0, 0.9), grokfast={"strength": 0.5})
    optimizer = build_optimizer(model, dict(model.named_parameters()), config)
    model.weight.grad = torch.tensor([[1.0, 2.0]])
    assert optimizer.step() == {}
    torch.testing.assert_close(model.weight, before - 0.1 * 1.5 * torch.tensor([[1.0, 2.0]]))
