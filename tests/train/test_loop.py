"""One step is one step: lanes, terms, guards, budgets, frozen modules."""

import math

import pytest
import torch
from train_toys import Toy, logged, run_toy, toy_batches, toy_plan

from quietreasoning.config import UserError
from quietreasoning.contract import StepOutput, Term
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.loop import BadSteps, train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.state import TrainState, autocast_dtype


def trained(method=None, optim=None, batch_at=None, **config):
    """(records, state) of a short run on the toy, SGD with momentum."""
    config = TrainConfig(**{"steps": 6, "batch_size": 8} | config)
    optim = OptimConfig(**{"name": "sgd", "lr": 0.05} | (optim or {}))
    state = TrainState.create(method or Toy(), config, optim)
    return list(train(state, batch_at or toy_batches(config.batch_size), config, optim)), state


def test_eight_lanes_of_one_row_equal_one_lane_of_eight():
    (one, a), (eight, b) = trained(accumulate=1), trained(accumulate=8)
    for left, right in zip(one, eight, strict=True):
        assert left.loss == pytest.approx(right.loss, rel=1e-5)
        assert left.losses == pytest.approx(right.losses, rel=1e-5)
        assert left.metrics == pytest.approx(right.metrics)
        assert left.grad_norm == pytest.approx(right.grad_norm, rel=1e-4)
        assert left.tokens == right.tokens
    for p, q in zip(a.method.parameters(), b.method.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_step_equals_plain_pytorch():
    method, twin = Toy(), Toy()
    trained(method, {"clip": 0.7, "weight_decay": 0.1}, steps=5)
    matrices = [p for p in twin.parameters() if p.ndim >= 2]
    vectors = [p for p in twin.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    for step in range(5):
        batch = toy_batches(8)(step, 0, 1, 0, 1)
        out, units = twin(batch), twin.units(batch)
        loss = sum(t.weight * t.total / units[t.unit] for t in out.terms.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.7)
        optimizer.step()
    for p, q in zip(method.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_the_record_holds_means_and_the_weighted_sum():
    records, _ = trained(steps=1)
    method, batch = Toy(), toy_batches(8)(0, 0, 1, 0, 1)
    out, units = method(batch), method.units(batch)
    record = records[0]
    assert record.losses["answer"] == pytest.approx(out.terms["answer"].total.item() / units["token"])
    assert record.losses["halt"] == pytest.approx(out.terms["halt"].total.item() / 8)
    assert record.loss == pytest.approx(record.losses["answer"] + 0.1 * record.losses["halt"])
    assert record.metrics["right"] == pytest.approx(out.metrics["right"][0].item() / 8)
    assert record.tokens == units["token"]


def test_each_lane_gets_its_own_carry_back():
    seen = []

    class Watching(Toy):
        def forward(self, batch, carry=None):
            first = int(batch.keys_B[0])
            seen.append((first, carry))
            return StepOutput(
                {"halt": Term(self.halt.weight.sum(), "sequence")}, carry=(first, torch.ones(2))
            )

    _, state = trained(Watching(), steps=3, accumulate=2)
    handed = [None if carry is None else carry[0] for _, carry in seen]
    assert handed == [None, None, 0, 4, 8, 12]
    assert [carry[0] for carry in state.carries] == [16, 20]


class Poisoned(Toy):
    """Loss or carry turn into NaN at the given steps."""

    def __init__(self, bad_steps, value=math.nan, **settings):
        super().__init__(**settings)
        self.bad_steps, self.value = bad_steps, value

    def forward(self, batch, carry=None):
        out = super().forward(batch, carry)
        if int(batch.keys_B[0]) // 8 in self.bad_steps:
            out.terms["answer"] = Term(out.terms["answer"].total * self.value, "token")
        return out


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_non_finite_step_touches_nothing(value, optimizer):
    optim = {"name": optimizer, "ema": 0.5, "weight_decay": 0.1}
    records, poisoned = trained(Poisoned({3}, value, carries=True), optim, steps=4)
    _, before = trained(Toy(carries=True), optim, steps=3)
    assert [record.updated for record in records] == [True, True, True, False]
    assert records[-1].skipped == 1 and not math.isfinite(records[-1].loss)
    for name, p in before.params.items():
        assert torch.equal(p, poisoned.params[name])
        assert torch.equal(before.ema.averages[name], poisoned.ema.averages[name])
        for what, value in before.optimizer.state()[name].items():
            assert torch.equal(value, poisoned.optimizer.state()[name][what])
    assert torch.equal(before.carries[0]["mean"], poisoned.carries[0]["mean"])


def test_bad_steps_in_a_row_stop_the_run_and_scattered_ones_do_not():
    records, state = trained(Poisoned({1, 3, 5, 7}), steps=9, max_bad_steps=2)
    assert state.skipped == 4 and records[-1].updated
    with pytest.raises(BadSteps, match="2 steps in a row not finite"):
        trained(Poisoned({2, 3, 4}), steps=9, max_bad_steps=2)


def test_the_batch_that_stopped_the_run_is_on_disk(tmp_path):
    from safetensors.torch import load_file

    plan = toy_plan(steps=9, max_bad_steps=2, accumulate=2, save_every=2)
    spoiled = toy_plan_with(plan, lambda previous: Poisoned({4, 5, 6}))
    with pytest.raises(UserError, match="bad-batch-rank-0"):
        run_toy(tmp_path, spoiled)
    batch = load_file(tmp_path / "bad-batch-rank-0.safetensors")
    assert batch["lane-0/keys_B"].tolist() + batch["lane-1/keys_B"].tolist() == list(range(40, 48))
    assert [step for step, _ in logged(tmp_path)] == [1, 2, 3, 4, 5]
    assert (tmp_path / "step-000004").is_dir()


def toy_plan_with(plan, make_method):
    from dataclasses import replace

    return replace(plan, make_method=make_method)


def test_a_spike_is_skipped_only_when_asked():
    def run(skip_spikes):
        method = Poisoned({90}, 1000.0)
        return trained(method, {"lr": 1e-4}, steps=92, skip_spikes=skip_spikes)

    records, state = run(True)
    assert [r.step for r in records if not r.updated] == [91] and state.skipped == 1
    assert records[-1].updated
    records, state = run(False)
    assert state.skipped == 0


def test_modules_that_are_not_enabled_stay_as_they_were():
    method, fresh = Toy(), Toy()
    _, state = trained(method, {"name": "adamw", "weight_decay": 0.5}, enable=("halt",))
    changed = {
        n for (n, p), q in zip(method.named_parameters(), fresh.parameters(), strict=True) if (p != q).any()
    }
    assert changed == {"halt.weight", "halt.bias"} == set(state.params)
    state.finish()
    assert all(p.requires_grad for p in method.parameters())


def test_a_token_budget_ends_the_stage_and_the_schedule():
    records, state = trained(steps=None, tokens=100, optim={"schedule": "linear"})
    assert state.tokens >= 100 > state.tokens - records[-1].tokens
    assert records[0].lr == pytest.approx(0.05) and records[-1].lr < 0.02
    assert [r.lr for r in records] == sorted((r.lr for r in records), reverse=True)


@pytest.mark.parametrize(
    ("config", "optim", "words"),
    [
        ({"steps": None}, {}, "neither"),
        ({"accumulate": 3}, {}, "train.batch_size=8"),
        ({"enable": ("hat",)}, {}, "'hat'"),
        ({}, {"lr_scale": {"backbone.mixer": 0.1}}, "'backbone.mixer'"),
    ],
)
def test_settings_that_cannot_hold_are_refused_in_one_line(config, optim, words):
    with pytest.raises(UserError, match=words) as refusal:
        trained(optim=optim, **config)
    assert "\n" not in str(refusal.value)


def test_steps_and_tokens_together_are_refused():
    with pytest.raises(ValueError, match="not both"):
        TrainConfig(steps=1, tokens=1)


def test_nothing_to_train_and_uncounted_units_are_refused():
    with pytest.raises(UserError, match="nothing to train"):
        trained(Toy().requires_grad_(False))

    class Uncounted(Toy):
        def units(self, batch, carry=None):
            return {"token": 1}

    with pytest.raises(ValueError, match="sums over 'sequence'"):
        trained(Uncounted())


def test_a_unit_that_nothing_was_counted_of_adds_nothing():
    class Empty(Toy):
        def forward(self, batch, carry=None):
            out = super().forward(batch, carry)
            out.terms["slots"] = Term(out.terms["halt"].total * 0, "slot")
            out.metrics["none"] = (torch.tensor(0), torch.tensor(0))
            return out

        def units(self, batch, carry=None):
            return super().units(batch, carry) | {"slot": 0}

    records, _ = trained(Empty())
    plain, _ = trained()
    assert [r.loss for r in records] == [r.loss for r in plain]
    assert records[0].losses["slots"] == 0.0 and "none" not in records[0].metrics


def test_bf16_autocast_is_on_when_asked_and_off_for_small_methods():
    assert autocast_dtype("bf16", Toy(), torch.device("cpu")) is torch.bfloat16
    assert autocast_dtype("fp32", Toy(), torch.device("cpu")) is None
    assert autocast_dtype("auto", Toy(), torch.device("cpu")) is None
    low, state = trained(precision="bf16")
    full, _ = trained(precision="fp32")
    assert [r.loss for r in low] != [r.loss for r in full]
    assert [r.loss for r in low] == pytest.approx([r.loss for r in full], rel=0.05)
    assert all(p.dtype == torch.float32 for p in state.method.parameters())
