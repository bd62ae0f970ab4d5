"""A stage of no steps changes the method by building it; it is evaluated, saved once, and resumed around."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from train_toys import Remembering, logged, rows, run_toy, toy_batches, toy_plan, weights_hash

from quietreasoning.config import UserError
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train import checkpoint, stages
from quietreasoning.train.checkpoint import checkpoints, read_json, verify
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.signals import StopFlag, Stopped
from quietreasoning.train.state import TrainState

TRAINED = {"optim": {"name": "adamw", "ema": 0.8}, "save_every": 0}
NAMES = ["step-000004", "step-000004.1", "step-000007"]


def quantised(previous):
    """What was trained, with its values in int8."""
    previous.backbone.table.quantize_()
    return previous


def three_stages(middle=None, last_batches=None, **settings):
    """Train, quantise, train on."""
    first = toy_plan("first", steps=4, **TRAINED)
    first = replace(first, make_method=lambda previous: Remembering())
    made = toy_plan("int8", steps=0, **settings)
    made = replace(made, **{"make_method": quantised, "make_batches": no_batches} | (middle or {}))
    last = toy_plan("last", steps=3, **TRAINED, batch_at=last_batches)
    return [first, made, last]


def no_batches():
    raise AssertionError("a stage of no steps needs no rows")


def test_the_method_is_changed_saved_beside_the_trained_one_and_handed_on(tmp_path):
    summary = run_toy(tmp_path, *three_stages())
    assert [p.name for p in checkpoints(tmp_path)] == NAMES
    assert all(not verify(path) for path in checkpoints(tmp_path))
    assert summary.steps == 7 and summary.method.backbone.table.is_int8
    assert summary.checkpoint == tmp_path / "step-000007"
    state = read_json(tmp_path / "step-000004.1/state.json")
    assert (state["stage"], state["stage_index"], state["stage_done"]) == ("int8", 1, True)
    assert (state["offset"], state["step"], state["tokens"]) == (4, 0, 0)
    assert state["tokens_before"] == read_json(tmp_path / "step-000004/state.json")["tokens"]
    assert [step for step, _ in logged(tmp_path)] == list(range(1, 8))
    again = run_toy(tmp_path, *three_stages())
    assert again.files == summary.files and again.checkpoint == summary.checkpoint


def test_it_may_be_the_first_the_last_and_several_in_a_row(tmp_path):
    first, middle, _ = three_stages()
    start = replace(middle, name="start", make_method=lambda previous: Remembering())
    plans = [start, first, middle, replace(middle, name="again")]
    plans[1] = replace(first, make_method=lambda previous: previous)
    summary = run_toy(tmp_path, *plans)
    names = ["step-000000.1", "step-000004", "step-000004.1", "step-000004.2"]
    assert [p.name for p in checkpoints(tmp_path)] == names
    assert summary.checkpoint.name == names[-1] and summary.steps == 4
    again = run_toy(tmp_path, *plans)
    assert again.files == summary.files and again.method.backbone.table.is_int8
    assert any("nothing is left to train" in note for note in again.notes)


def test_nothing_has_to_be_trainable(tmp_path):
    def frozen(previous):
        return quantised(previous).requires_grad_(False)

    plans = three_stages({"make_method": frozen}, optim={"ema": 0.5, "lr_scale": {"nothing": 2.0}})[:2]
    assert run_toy(tmp_path, *plans).steps == 4
    assert not (tmp_path / "step-000004.1/ema.safetensors").exists()
    with pytest.raises(UserError, match="nothing to train"):
        TrainState.create(Remembering().requires_grad_(False), TrainConfig(steps=1), OptimConfig())


def test_it_evaluates_only_if_asked_and_logs_it_once(tmp_path):
    asked = []

    def evaluate(method, step):
        asked.append((step, method.training, method.backbone.table.is_int8))
        return rows(0.5)

    run_toy(tmp_path / "silent", *three_stages({"evaluate": evaluate}))
    assert not asked
    run_toy(tmp_path / "asked", *three_stages({"evaluate": evaluate}, eval_every=1))
    assert asked == [(4, False, True)]
    run_toy(tmp_path / "asked", *three_stages({"evaluate": evaluate}, eval_every=1))
    assert logged(tmp_path / "asked", "eval/t/toy/accuracy") == [(4, 0.5)] and len(asked) == 1
    assert read_json(tmp_path / "asked/step-000004.1/state.json")["score"] == 0.5
    assert weights_hash(tmp_path / "asked" / NAMES[2]) == weights_hash(tmp_path / "silent" / NAMES[2])


def test_a_stop_while_it_evaluates_does_it_again(tmp_path):
    stop, seen = StopFlag(), []

    def evaluate(method, step):
        seen.append(step)
        if len(seen) == 1:
            stop.request()
        stop.check()
        return rows(0.5)

    plans = three_stages({"evaluate": evaluate}, eval_every=1)
    with pytest.raises(Stopped):
        run_toy(tmp_path / "a", *plans, stop=stop)
    assert [p.name for p in checkpoints(tmp_path / "a")] == NAMES[:1]
    stop.requested = False
    run_toy(tmp_path / "a", *plans)
    assert seen == [4, 4]
    assert_like_unbroken(tmp_path / "a", tmp_path / "b")


def assert_like_unbroken(broken, through):
    run_toy(through, *three_stages())
    assert logged(broken) == logged(through)
    for name in NAMES:
        assert weights_hash(broken / name) == weights_hash(through / name)


@pytest.mark.parametrize("step", [0, 2])
def test_a_stop_in_the_stage_after_it_goes_on_from_there(tmp_path, step):
    stop, batches = StopFlag(), toy_batches(8)

    def batch_at(at, *where):
        if at == step:
            stop.request()
        return batches(at, *where)

    with pytest.raises(Stopped):
        run_toy(tmp_path / "a", *three_stages(last_batches=batch_at), stop=stop)
    assert checkpoints(tmp_path / "a")[-1].name == (NAMES[1] if step == 0 else "step-000006")
    run_toy(tmp_path / "a", *three_stages())
    assert_like_unbroken(tmp_path / "a", tmp_path / "b")


MOMENTS = ["building", "evaluating", "writing", "renaming", "saved", "logged"]


def killed_run(run_dir, moment):
    """Ends itself with signal 9 at one moment of the stage of no steps."""
    torch.set_num_threads(1)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def make(previous):
        return die() if moment == "building" else quantised(previous)

    def evaluate(method, step):
        return die() if moment == "evaluating" else rows(0.5)

    inside = lambda path: ".1" in str(path)  # noqa: E731
    write, rename, save = checkpoint._write, os.rename, stages.save_state
    if moment == "writing":
        checkpoint._write = lambda path, content: (
            die() if inside(path) and path.name == "state.json" else write(path, content)
        )
    elif moment == "renaming":
        os.rename = lambda a, b, **_: die() if inside(b) else rename(a, b)
    elif moment == "saved":
        stages.save_state = lambda *a, after, **b: (save(*a, after=after, **b), after and die())[0]
    plans = three_stages({"make_method": make, "evaluate": evaluate}, eval_every=1)
    plans[2] = replace(plans[2], make_method=lambda previous: die() if moment == "logged" else previous)
    run_toy(run_dir, *plans)


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_at_any_moment_loses_nothing(processes, tmp_path, moment):
    child = processes.Process(target=killed_run, args=(tmp_path / "a", moment))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    done = moment in ("saved", "logged")
    assert [p.name for p in checkpoints(tmp_path / "a")] == NAMES[: 1 + done]
    plans = three_stages({"evaluate": lambda method, step: rows(0.5)}, eval_every=1)
    run_toy(tmp_path / "a", *plans)
    assert not list((tmp_path / "a").glob(".*step*"))
    assert_like_unbroken(tmp_path / "a", tmp_path / "b")
    once = (
        [] if moment == "saved" else [(4, 0.5)]
    )  # the one moment that loses a line of the log, and only that
    assert logged(tmp_path / "a", "eval/t/toy/accuracy") == once


def test_a_damaged_one_is_built_again_from_the_stage_before(tmp_path):
    run_toy(tmp_path / "a", *three_stages()[:2])
    (tmp_path / "a/step-000004.1/method.safetensors").write_bytes(b"x")
    summary = run_toy(tmp_path / "a", *three_stages()[:2])
    assert any("step-000004.1 passed over" in note for note in summary.notes)
    assert (tmp_path / "a/damaged-step-000004.1").is_dir()
    run_toy(tmp_path / "b", *three_stages()[:2])
    assert weights_hash(tmp_path / "a" / NAMES[1]) == weights_hash(tmp_path / "b" / NAMES[1])


def test_checkpoints_stand_in_the_order_of_the_run(tmp_path):
    names = ["step-000010.2", "step-000009", "step-000010", "step-1000000", "step-000010.10", "step-000010.1"]
    for name in [*names, "step-x", "step-000010.", "step-000010.1.2", "damaged-step-000010.1"]:
        (tmp_path / name).mkdir()
    order = ["step-000009", "step-000010", "step-000010.1", "step-000010.2", "step-000010.10", "step-1000000"]
    assert [p.name for p in checkpoints(tmp_path)] == order
    assert checkpoint.step_name(10, 2) == "step-000010.2" and checkpoint.step_name(10) == "step-000010"
