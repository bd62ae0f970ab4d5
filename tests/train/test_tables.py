"""A memory whose table has sparse gradients trains, clips, saves and resumes like everything else."""

import math
from dataclasses import replace

import pytest
import torch
from train_toys import Remembering, logged, run_toy, toy_batches, toy_plan, weights_hash

from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.loop import clip, train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.signals import StopFlag, Stopped
from quietreasoning.train.snapshot import estimated_bytes
from quietreasoning.train.state import TrainState
from quietreasoning.train.term_gradients import held

OPTIM = {"name": "adamw", "lr": 0.02, "weight_decay": 0.3, "clip": 0.1}


def trained(method=None, optim=None, **config):
    config = TrainConfig(**{"steps": 6, "batch_size": 8} | config)
    optim = OptimConfig(**OPTIM | (optim or {}))
    state = TrainState.create(method or Remembering(), config, optim)
    return list(train(state, toy_batches(config.batch_size), config, optim)), state


def assert_same(one, two, **tolerance):
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name, **tolerance)


def test_sparse_and_dense_gradients_train_alike():
    (sparse, a), (dense, b) = trained(Remembering()), trained(Remembering(sparse=False))
    assert [r.grad_norm for r in sparse] == pytest.approx([r.grad_norm for r in dense], rel=1e-6)
    assert [r.loss for r in sparse] == pytest.approx([r.loss for r in dense], rel=1e-6)
    assert_same(a.method, b.method, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optim", [{}, {"name": "sgd"}])
def test_eight_lanes_of_one_row_equal_one_lane_of_eight(optim):
    (one, a), (eight, b) = trained(optim=optim, accumulate=1), trained(optim=optim, accumulate=8)
    assert [r.loss for r in one] == pytest.approx([r.loss for r in eight], rel=1e-4)
    assert [r.grad_norm for r in one] == pytest.approx([r.grad_norm for r in eight], rel=1e-3)
    assert_same(a.method, b.method, rtol=1e-3, atol=1e-5)
    assert torch.equal(a.method.backbone.table.hits, b.method.backbone.table.hits)


def test_rows_that_no_step_read_keep_every_bit():
    before = Remembering().backbone.table.values
    records, state = trained(Remembering(), steps=2, batch_size=2)
    counts_S = state.optimizer.state()["backbone.table.values"]["count"][:, 0]
    same_S = (state.method.backbone.table.values == before).all(1)
    assert torch.equal(same_S, counts_S == 0) and 0 < same_S.sum() < 64
    assert all(r.updated for r in records)


def test_clipping_counts_a_row_once_however_often_it_was_read():
    values, other = torch.nn.Parameter(torch.zeros(5, 2)), torch.nn.Parameter(torch.zeros(3))
    indices = torch.tensor([[1, 1, 4]])
    grad = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    for largest, scale in ((0, 1.0), (100.0, 1.0), (0.5, 0.1)):
        values.grad = torch.sparse_coo_tensor(indices, grad.clone(), (5, 2), check_invariants=True)
        other.grad = torch.zeros(3)
        assert clip([values, other], largest) == pytest.approx(5.0)
        expected = torch.zeros(5, 2)
        expected[1, 0], expected[4, 1] = 3 * scale, 4 * scale
        torch.testing.assert_close(values.grad.to_dense(), expected)
    assert held(values.grad).shape == (2, 2) and held(other.grad) is other.grad


def test_a_non_finite_gradient_in_a_row_reaches_nothing():
    class Poisoned(Remembering):
        def forward(self, batch, carry=None):
            self.backbone.table.values.register_hook(lambda grad: grad * math.nan)
            return super().forward(batch, carry)

    records, state = trained(Poisoned(), steps=1)
    assert not any(r.updated for r in records)
    assert_same(state.method, Remembering(), rtol=0, atol=0)


def test_bf16_autocast_trains_it():
    low, state = trained(precision="bf16", steps=20)
    full, _ = trained(precision="fp32", steps=20)
    assert [r.loss for r in low] == pytest.approx([r.loss for r in full], rel=0.1)
    assert state.method.backbone.table.values.dtype == torch.float32


@pytest.mark.parametrize("ema", [0.0, 0.8])
@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_stopped_run_ends_where_an_unbroken_one_does(tmp_path, ema, stop_at):
    def plan(batch_at=None):
        made = toy_plan(steps=8, optim=OPTIM | {"ema": ema}, accumulate=2, batch_at=batch_at)
        return replace(made, make_method=lambda previous: Remembering(dropout=0.2))

    stop, batches = StopFlag(), toy_batches(8)

    def batch_at(step, *where):
        if step == stop_at:
            stop.request()
        return batches(step, *where)

    through = run_toy(tmp_path / "through", plan())
    with pytest.raises(Stopped):
        run_toy(tmp_path / "broken", plan(batch_at), stop=stop)
    broken = run_toy(tmp_path / "broken", plan())
    assert logged(tmp_path / "through") == logged(tmp_path / "broken")
    last = "step-000008"
    assert weights_hash(tmp_path / "through" / last) == weights_hash(tmp_path / "broken" / last)
    assert through.files["optimizer.safetensors"] == broken.files["optimizer.safetensors"]
    assert broken.method.reseedings == 2
    assert broken.method.paces == [step / 8 for step in range(stop_at, 8)]


def test_pace_is_the_share_of_the_budget():
    _, state = trained(steps=5)
    assert state.method.paces == [0.0, 0.2, 0.4, 0.6, 0.8]
    records, state = trained(steps=None, tokens=40)
    spent = [0.0] + [r.total_tokens / 40 for r in records[:-1]]
    assert state.method.paces == spent and len(spent) > 2


def test_a_checkpoint_is_not_thought_to_hold_two_moments_of_a_table():
    config, optim = TrainConfig(steps=1), OptimConfig(**OPTIM)
    state = TrainState.create(Remembering(), config, optim)
    weights = sum(t.nbytes for t in state.method.state_dict().values())
    others = sum(p.nbytes for name, p in state.params.items() if name != "backbone.table.values")
    assert estimated_bytes(state) == weights + 2 * others + 8 * 64
