"""A method that learns by counting: no optimizer, the same sums on any lanes and ranks, exact resume."""

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import TwoRanks
from train_toys import WIDTH, Toy, logged, run_toy, toy_batches, toy_plan, weights_hash

from quietreasoning.contract import Term
from quietreasoning.nn.moment_buffers import MomentBuffers
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.distributed import Machine
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.signals import StopFlag, Stopped
from quietreasoning.train.state import TrainState


class Counter(Toy):
    """The toy, frozen, whose states are counted: those of every eighth row, so that a rank may see none."""

    counts = True

    def __init__(self, **settings):
        super().__init__(**settings)
        self.requires_grad_(False)
        self.seen = MomentBuffers(WIDTH)

    def forward(self, batch, carry=None):
        out = super().forward(batch, carry)
        if self.training:
            self.seen.observe(self.backbone(batch.prompt_BP), batch.keys_B % 8 == 0)
        known = self.seen.count.float()  # what the log shows differs with what was counted before
        return type(out)({"answer": Term(out.terms["answer"].total + known, "token")}, out.metrics)


def go(machine, accumulate):
    config = TrainConfig(steps=5, batch_size=12, accumulate=accumulate)
    optim = OptimConfig(name="adamw", lr=0.05, ema=0.8)
    state = TrainState.create(Counter(), config, optim, machine)
    assert not state.params and state.ema is None
    rows = [record.row() for record in train(state, toy_batches(12), config, optim)]
    moments = state.finish().seen.moments()
    weights = {name: p.tolist() for name, p in state.method.named_parameters()}
    return len(rows), moments.count.item(), moments.mean_D().tolist(), moments.second_DD().tolist(), weights


def close(one, other):
    assert one[:2] == other[:2] and one[4] == other[4]
    for mine, theirs in zip(one[2:4], other[2:4], strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-5, atol=1e-6)


def test_no_weight_moves_and_every_row_is_counted_once():
    steps, count, *_, weights = go(Machine(), 1)
    fresh = Counter()
    assert (steps, count) == (5, sum(row % 8 == 0 for row in range(60)))
    assert weights == {name: p.tolist() for name, p in fresh.named_parameters()}


@pytest.mark.parametrize("lanes", [2, 6])
def test_lanes_change_nothing(lanes):
    close(go(Machine(), lanes), go(Machine(), 1))


@pytest.fixture(scope="module")
def on_two_ranks(processes):
    ranks = TwoRanks(processes)
    yield ranks
    ranks.kill()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_ranks_equal_one(on_two_ranks, accumulate):
    for found in on_two_ranks(go, accumulate):
        close(found, go(Machine(), 1))


class StopAfter:
    """A sink that asks to stop once a step was written."""

    def __init__(self, stop, step):
        self.flag, self.step = stop, step

    def write(self, row):
        if row["step"] == self.step:
            self.flag.requested = True

    def stage(self, *_): ...

    def note(self, *_): ...

    def close(self): ...


def plan():
    made = toy_plan(steps=6, optim={"name": "adamw"})
    return type(made)(**{**vars(made), "make_method": lambda previous: previous or Counter()})


def test_a_resumed_count_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    whole = run_toy(tmp_path / "whole", plan())
    stop = StopFlag()
    with pytest.raises(Stopped):
        run_toy(tmp_path / "cut", plan(), stop=stop, sinks=[StopAfter(stop, 3)])
    again = run_toy(tmp_path / "cut", plan())
    assert weights_hash(again.checkpoint) == weights_hash(whole.checkpoint)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    held = load_file(again.checkpoint / "method.safetensors")
    assert held["seen.gram_DD"].dtype == torch.float64 and held["seen.count"] > 0
