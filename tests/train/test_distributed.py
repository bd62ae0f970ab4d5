"""Two gloo ranks equal one, replicated and sharded, whatever the lanes, and checkpoints move between them."""

import os
import socket

import pytest
import torch
from safetensors.torch import load_file
from train_toys import Remembering, Toy, logged, run_toy, toy_batches, toy_plan, weights_hash

from quietreasoning.contract import Term
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.distributed import Machine, NamedSum
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.snapshot import load_weights
from quietreasoning.train.state import TrainState
from quietreasoning.train.term_gradients import term_norms

DEADLINE_SECONDS = 300
# whatever a checkpoint of a sharded optimizer holds: momentum, moments, slow gradients, averages
OPTIM = {"name": "muon", "muon": {"precision": "fp32"}, "grokfast": {"strength": 0.5}, "ema": 0.5}


class TwoRanks:
    """Two processes as torchrun would launch them; calling it runs `work(machine, *args)` on both."""

    def __init__(self, processes):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pipes, self.children = [], []
        for rank in range(2):
            ours, theirs = processes.Pipe()
            self.children.append(processes.Process(target=_rank, args=(theirs, port, rank), daemon=True))
            self.children[-1].start()
            theirs.close()
            self.pipes.append(ours)

    def __call__(self, work, *args):
        for pipe in self.pipes:
            pipe.send((work, args))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(DEADLINE_SECONDS), "a rank hangs"
            answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def kill(self):
        for child in self.children:
            child.kill()
            child.join()


def _rank(pipe, port, rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    machine = Machine.start("cpu")
    while True:
        work, args = pipe.recv()
        try:
            pipe.send(work(machine, *args))
        except Exception as error:
            pipe.send(error)


@pytest.fixture(scope="module")
def on_two_ranks(processes):
    ranks = TwoRanks(processes)
    yield ranks
    ranks.kill()


class Uneven(Toy):
    """Parts of it see no gradient in some lanes, on some ranks, in some steps."""

    def forward(self, batch, carry=None):
        out = super().forward(batch, carry)
        if int(batch.keys_B[0]) % 12:  # the first lane of the first rank alone sees it
            out.terms["halt"] = Term(torch.zeros(()), "sequence", 0.1)
        if int(batch.keys_B[0]) % 2 == 0:
            out.metrics["sometimes"] = (batch.keys_B.float().sum(), torch.tensor(len(batch)))
        return out


def steps(machine, sharding, accumulate, kind):
    config = TrainConfig(steps=5, batch_size=12, accumulate=accumulate, sharding=sharding)
    optim = OptimConfig(name="sgd", lr=0.05, clip=0.5, ema=0.8)
    state = TrainState.create(kind(), config, optim, machine)
    rows = [record.row() for record in train(state, toy_batches(12), config, optim)]
    with state.evaluating() as method:
        averaged = method.backbone.embed.weight.detach().clone()
        answers = method(toy_batches(4)(0, 0, 1, 0, 1)).terms["answer"].total.item()
    method = state.finish()
    assert torch.equal(method.backbone.head.weight, averaged)
    assert method.backbone.head.weight is method.backbone.embed.weight
    weights = {name: p.detach().tolist() for name, p in method.named_parameters()}
    return rows, answers, weights


def same(row):
    return {k: v for k, v in row.items() if not k.startswith("cost/")}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", [Toy, Uneven])
def test_two_ranks_equal_one(on_two_ranks, sharding, accumulate, kind):
    alone = steps(Machine(), "ddp", 2 * accumulate, kind)
    for rank, (rows, answers, weights) in enumerate(on_two_ranks(steps, sharding, accumulate, kind)):
        assert answers == pytest.approx(alone[1], rel=1e-4)
        for mine, theirs in zip(rows, alone[0], strict=True):
            if rank == 0 or kind is Toy:
                assert {**same(mine), "stage": 0} == pytest.approx({**same(theirs), "stage": 0}, rel=1e-4)
        for name, values in weights.items():
            torch.testing.assert_close(
                torch.tensor(values), torch.tensor(alone[2][name]), rtol=1e-4, atol=1e-6, msg=name
            )


def measured(machine, sharding, every):
    config = TrainConfig(steps=2, batch_size=12, sharding=sharding, log_every=1, term_gradients=every)
    optim = OptimConfig(name="sgd", lr=0.05, clip=0.5)
    state = TrainState.create(Toy(), config, optim, machine)
    records = list(train(state, toy_batches(12), config, optim))
    weights = {name: p.detach().tolist() for name, p in state.finish().named_parameters()}
    return [record.gradients for record in records], weights


def test_gradients_of_terms_are_a_mean_over_ranks_and_change_nothing(on_two_ranks):
    units = Toy().units(toy_batches(12)(0, 0, 1, 0, 1))
    norms = []
    for rank in range(2):
        method = Toy()
        terms = method(toy_batches(12)(0, 0, 1, rank, 2)).terms
        norms.append(term_norms(terms, units, list(method.parameters())))
    expected = {name: float(norms[0][name] + norms[1][name]) / 2 for name in norms[0]}
    for sharding in ("ddp", "fsdp"):
        (rows, weights), (others, _) = on_two_ranks(measured, sharding, 2)
        assert rows == others and rows[0] == {} and set(rows[1]) == set(expected)
        assert weights == on_two_ranks(measured, sharding, 0)[0][1]
        assert on_two_ranks(measured, sharding, 1)[0][0][0] == pytest.approx(expected, rel=1e-5)


class Seldom(Remembering):
    """Its memory is read by the first lane of the first rank alone, and by no rank in odd steps."""

    def forward(self, batch, carry=None):
        reader = self.backbone.reader
        silent = int(batch.keys_B[0]) % 24
        hook = reader.register_forward_hook(lambda *_: _[-1]._replace(out_RTD=_[-1].out_RTD.detach() * 0))
        if not silent:
            hook.remove()
        out = super().forward(batch, carry)
        hook.remove()
        return out


def memory_steps(machine, sharding, accumulate, kind):
    config = TrainConfig(steps=6, batch_size=12, accumulate=accumulate, sharding=sharding)
    # without momentum and decay: sharded, a parameter that no rank reaches has gradient zero, not none
    optim = OptimConfig(name="sgd", lr=0.05, betas=(0.0, 0.95), clip=0.5, ema=0.8)
    state = TrainState.create(kind(), config, optim, machine)
    rows = [record.row() for record in train(state, toy_batches(12), config, optim)]
    table = state.method.backbone.table
    hits = table.hits.tolist()
    counts = state.optimizer.state()["backbone.table.values"]["count"]
    counts = (counts.full_tensor() if sharding == "fsdp" and machine.world > 1 else counts).flatten().tolist()
    method = state.finish()
    return rows, hits, counts, {name: p.detach().tolist() for name, p in method.named_parameters()}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", [Remembering, Seldom])
def test_a_memory_on_two_ranks_equals_one(on_two_ranks, sharding, accumulate, kind):
    alone = memory_steps(Machine(), "ddp", 2 * accumulate, kind)
    both = on_two_ranks(memory_steps, sharding, accumulate, kind)
    assert 0 < sum(count > 0 for count in alone[2]) < 64 or kind is Remembering
    for rows, hits, counts, weights in both:
        assert hits == alone[1] and counts == alone[2]
        for mine, theirs in zip(rows, alone[0], strict=True):
            assert {**same(mine), "stage": 0} == pytest.approx({**same(theirs), "stage": 0}, rel=1e-3)
        for name, values in weights.items():
            torch.testing.assert_close(
                torch.tensor(values), torch.tensor(alone[3][name]), rtol=1e-3, atol=1e-5, msg=name
            )
    assert both[0][3] == both[1][3]  # replicas do not drift apart by one bit


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_memory_on_two_ranks_resumes_exactly(on_two_ranks, sharding, tmp_path):
    on_two_ranks(memory_run, tmp_path / "through", sharding, None)
    on_two_ranks(memory_run, tmp_path / "broken", sharding, 3)
    on_two_ranks(memory_run, tmp_path / "broken", sharding, None)
    assert logged(tmp_path / "through") == logged(tmp_path / "broken")
    for name in ("method", "optimizer"):
        one, two = (
            load_file(tmp_path / run / f"step-000006/{name}.safetensors") for run in ("through", "broken")
        )
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert one["backbone.table.values/count"].shape == (64, 1)


def memory_run(machine, run_dir, sharding, stop_at):
    from dataclasses import replace

    from quietreasoning.train.signals import StopFlag, Stopped

    stop, batches = StopFlag(), toy_batches(8)

    def batch_at(step, *where):
        if step == stop_at:
            stop.request()
        return batches(step, *where)

    optim = {"name": "adamw", "ema": 0.5}
    plan = toy_plan(steps=6, sharding=sharding, optim=optim, batch_at=batch_at)
    try:
        run_toy(
            run_dir, replace(plan, make_method=lambda previous: Remembering()), machine=machine, stop=stop
        )
    except Stopped:
        assert stop_at


def names_meet(machine):
    add = NamedSum(machine)
    first = add({"both": 1.0, f"rank{machine.rank}": 10.0})
    second = add({"both": 2.0} | ({"late": 5.0} if machine.rank else {}))
    return first, second, machine.any(machine.rank == 1), machine.any(False)


def test_sums_agree_even_where_ranks_meet_names_at_different_steps(on_two_ranks):
    for first, second, some, none in on_two_ranks(names_meet):
        assert first == {"both": 2.0, "rank0": 10.0, "rank1": 10.0}
        assert second == {"both": 4.0, "late": 5.0, "rank0": 0.0, "rank1": 0.0}
        assert some and not none


def whole_run(machine, run_dir, sharding, accumulate, steps, toy):
    plan = toy_plan(steps=steps, sharding=sharding, accumulate=accumulate, toy=toy, optim=OPTIM)
    summary = run_toy(run_dir, plan, machine=machine)
    return summary.steps


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_run_on_two_ranks_resumes_exactly(on_two_ranks, sharding, tmp_path):
    toy = {"dropout": 0.2, "carries": True}
    on_two_ranks(whole_run, tmp_path / "through", sharding, 2, 6, toy)
    on_two_ranks(stopped_run, tmp_path / "broken", sharding, 2, 6, toy)
    assert (tmp_path / "broken" / "step-000003").is_dir()
    on_two_ranks(whole_run, tmp_path / "broken", sharding, 2, 6, toy)
    draws = [load_file(tmp_path / f"through/step-000006/rank-{rank}.safetensors") for rank in range(2)]
    assert not torch.equal(draws[0]["rng/torch"], draws[1]["rng/torch"])
    assert logged(tmp_path / "through") == logged(tmp_path / "broken")
    last = "step-000006"
    assert weights_hash(tmp_path / "through" / last) == weights_hash(tmp_path / "broken" / last)


def stopped_run(machine, run_dir, sharding, accumulate, steps, toy):
    """As `whole_run`, but rank 1 alone is asked to stop at the third step."""
    from quietreasoning.train.signals import StopFlag, Stopped

    stop = StopFlag()
    batches = toy_batches(8)

    def batch_at(step, lane, lanes, rank, world):
        if step == 3 and rank == 1:
            stop.request()
        return batches(step, lane, lanes, rank, world)

    plan = toy_plan(
        steps=steps,
        sharding=sharding,
        accumulate=accumulate,
        toy=toy,
        optim=OPTIM,
        batch_at=batch_at,
    )
    try:
        run_toy(run_dir, plan, machine=machine, stop=stop)
    except Stopped as stopped:
        return str(stopped)
    raise AssertionError("rank went on")


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_ranks_is_one_of_one_rank(on_two_ranks, sharding, tmp_path):
    """Saved by two, continued by one, equal to one all along."""
    on_two_ranks(stopped_run, tmp_path / "two", sharding, 1, 6, {})
    # the same recipe: lanes and sharding stay, the number of ranks is not part of it
    summary = run_toy(tmp_path / "two", recipe_plan(sharding))
    run_toy(tmp_path / "one", recipe_plan(sharding))
    assert any("2 rank" in note for note in summary.notes)
    two, one = dict(logged(tmp_path / "two")), dict(logged(tmp_path / "one"))
    assert two == pytest.approx(one, rel=1e-4)
    left, right = Toy(), Toy()
    load_weights(tmp_path / "two/step-000006", left, averaged=True)
    load_weights(tmp_path / "one/step-000006", right, averaged=True)
    for p, q in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def recipe_plan(sharding):
    return toy_plan(steps=6, sharding=sharding, accumulate=1, toy={}, optim=OPTIM)


def test_a_failed_save_on_the_first_rank_reaches_all(on_two_ranks, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for answer in on_two_ranks(refused_save, tmp_path / "file" / "run"):
        assert "could not be written" in answer


def refused_save(machine, run_dir):
    from quietreasoning.config import UserError
    from quietreasoning.train.snapshot import save_state

    config, optim = TrainConfig(steps=1, batch_size=8), OptimConfig()
    state = TrainState.create(Toy(), config, optim, machine)
    try:
        save_state(state, run_dir, run={}, position={})
    except UserError as error:
        return str(error)
    return "written"


def clipped_heads(machine):
    """Two heads over rows that FSDP2 shards; each rank has seen another of them grow."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from quietreasoning.optim.qk_clip import Heads, QkClip, shrink_rows

    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 6)
    fully_shard(linear, mesh=init_device_mesh("cpu", (2,)))
    layer = Heads(linear.weight, 2, 2, True, False, lambda query_H, key_G: shrink_rows(linear, query_H))
    clip, figures = QkClip([layer], 1.0, None), []
    for seen in ([1.0, 1.0], [2.0, 1.0] if machine.rank else [0.5, 4.0]):
        layer.seen_H = torch.tensor(seen)
        figures.append(clip.step())
    return figures, *(p.full_tensor().tolist() for p in (linear.weight, linear.bias))


def test_heads_shrink_alike_on_all_ranks_and_on_their_shards(on_two_ranks):
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 6)
    factors = torch.tensor([0.5] * 3 + [0.25] * 3)
    for figures, weight, bias in on_two_ranks(clipped_heads):
        assert figures[1] == {"qk_tau": 1.0, "qk_max": 4.0, "qk_limit": 1.0, "qk_clipped": 2.0}
        torch.testing.assert_close(torch.tensor(weight), linear.weight * factors[:, None])
        torch.testing.assert_close(torch.tensor(bias), linear.bias * factors)
