"""Learning-rate shapes at their corners, and the running average against its equation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quietreasoning.optim.ema import Ema
from quietreasoning.optim.schedules import SCHEDULES, lr_factor
from quietreasoning.optim.settings import OptimConfig


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0, 1),
    st.integers(0, 20),
    st.integers(0, 1000),
    st.floats(-0.5, 1.5),
)
def test_factors_stay_in_range_and_never_rise_after_warm_up(name, low, warmup, step, progress):
    config = OptimConfig(schedule=name, min_lr_ratio=low, warmup_steps=warmup)
    factor = lr_factor(config, step, progress)
    assert 0.0 <= factor <= 1.0 + 1e-12
    if step >= warmup:
        assert factor >= min(low, 1.0) - 1e-12
        assert lr_factor(config, step + 1, progress + 0.1) <= factor + 1e-12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [1.0, 0.1 + 0.45 * (1 + 0.5**0.5), 0.55, 0.1 + 0.45 * (1 - 0.5**0.5), 0.1]),
        ("wsd", [1.0, 1.0, 1.0, 0.55, 0.1]),
    ],
)
def test_shapes_at_quarters(name, expected):
    config = OptimConfig(schedule=name, min_lr_ratio=0.1, decay_fraction=0.5)
    assert [lr_factor(config, 0, q / 4) for q in range(5)] == pytest.approx(expected)


def test_warm_up_is_linear_and_reaches_the_peak_at_its_last_step():
    config = OptimConfig(warmup_steps=4)
    assert [lr_factor(config, step, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_average_follows_its_equation_and_swaps_in_and_out():
    layer = nn.Linear(3, 2)
    params = dict(layer.named_parameters())
    ema = Ema(params, 0.9)
    expected = {name: p.detach().clone() for name, p in params.items()}
    for _ in range(5):
        with torch.no_grad():
            for name, p in params.items():
                p.add_(torch.randn_like(p))
                expected[name] = 0.9 * expected[name] + 0.1 * p
        ema.update()
    now = {name: p.detach().clone() for name, p in params.items()}
    with ema.swapped_in():
        for name, p in params.items():
            torch.testing.assert_close(p.detach(), expected[name])
    assert all(torch.equal(p, now[name]) for name, p in params.items())
    with pytest.raises(RuntimeError), ema.swapped_in():
        raise RuntimeError
    assert all(torch.equal(p, now[name]) for name, p in params.items())
