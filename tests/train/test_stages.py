"""Runs that stop or change hands go on as if nothing had happened."""

import random
from dataclasses import replace

import pytest
import torch
from train_toys import FULL, Toy, logged, rows, run_toy, toy_batches, toy_plan, weights_hash

from quietreasoning.config import UserError
from quietreasoning.track import read_log
from quietreasoning.train.checkpoint import checkpoints, read_json, verify
from quietreasoning.train.signals import EXIT_RESUMABLE, StopFlag, Stopped
from quietreasoning.train.stages import flat_rows


def losses(run_dir):
    return [
        (row["stage"], row["step"], row["train/loss"])
        for row in read_log(run_dir / "log.jsonl")
        if "train/loss" in row
    ]


def stopping_at(step_to_stop, stop, batch_size=8):
    """Batches during whose making a stop is requested."""
    batches = toy_batches(batch_size)

    def batch_at(step, *where):
        if step == step_to_stop:
            stop.request()
        return batches(step, *where)

    return batch_at


def two_stages(first_batches=None, second_batches=None, **settings):
    second = toy_plan(
        "second", steps=5, **(FULL | {"toy": {"dropout": 0.1}}), **settings, batch_at=second_batches
    )
    first = toy_plan("first", steps=6, accumulate=2, **FULL, **settings, batch_at=first_batches)
    return [first, second]


@pytest.mark.parametrize("save_every", [4, 0])
@pytest.mark.parametrize(("stage", "step"), [(0, 0), (0, 1), (0, 5), (1, 0), (1, 3)])
def test_a_stopped_run_ends_where_an_unbroken_one_does(tmp_path, stage, step, save_every):
    run_toy(tmp_path / "through", *two_stages(save_every=save_every))
    stop = StopFlag()
    batches = [None, None]
    batches[stage] = stopping_at(step, stop)
    with pytest.raises(Stopped) as stopped:
        run_toy(tmp_path / "broken", *two_stages(*batches, save_every=save_every), stop=stop)
    assert stopped.value.code == EXIT_RESUMABLE == 75
    if stage or step:
        last = checkpoints(tmp_path / "broken")[-1]
        assert last.name == f"step-{6 * stage + step:06d}" and not verify(last)
    summary = run_toy(tmp_path / "broken", *two_stages(save_every=save_every))
    assert summary.steps == 11
    assert losses(tmp_path / "broken") == losses(tmp_path / "through")
    for name in ("step-000006", "step-000011"):
        assert weights_hash(tmp_path / "broken" / name) == weights_hash(tmp_path / "through" / name)


def test_the_next_stage_starts_from_the_averaged_method_with_fresh_optimizer(tmp_path):
    started = []

    def watch(previous):
        started.append((previous is not None, previous.halt.weight.detach().clone()))
        return previous

    first, second = two_stages()
    summary = run_toy(tmp_path, first, replace(second, make_method=watch))
    from safetensors.torch import load_file

    assert torch.equal(started[0][1], load_file(tmp_path / "step-000006" / "ema.safetensors")["halt.weight"])
    assert summary.method.config.carries  # the method of the first stage went on
    lr = dict(logged(tmp_path, "train/lr"))
    assert lr[7] == lr[1]
    assert read_json(tmp_path / "step-000011" / "state.json")["step"] == 5


def test_a_finished_run_started_again_trains_nothing_and_sums_up(tmp_path):
    first = run_toy(tmp_path, *two_stages())
    again = run_toy(tmp_path, *two_stages())
    assert again.files == first.files and again.steps == first.steps == 11 and again.tokens == first.tokens
    for p, q in zip(first.method.parameters(), again.method.parameters(), strict=True):
        assert torch.equal(p, q)
    assert len(losses(tmp_path)) == 11
    assert "step-000011" in again.lines()[0] and any("method.safetensors" in line for line in again.lines())


def test_a_changed_recipe_is_shown_and_refused_and_a_harmless_change_is_not(tmp_path):
    run_toy(tmp_path, toy_plan(steps=4))
    with pytest.raises(UserError, match=r"main.optim.lr: 0.05 -> 0.1.*another `out`"):
        run_toy(tmp_path, toy_plan(steps=4, optim={"lr": 0.1}))
    with pytest.raises(UserError, match=r"main.train.steps: 4 -> 5"):
        run_toy(tmp_path, toy_plan(steps=5))
    run_toy(tmp_path, toy_plan(steps=4, log_every=3, keep=1, save_every=2))


def test_evaluation_is_logged_keeps_the_best_and_leaves_training_alone(tmp_path):
    accuracies = {2: 0.3, 4: 0.9, 6: 0.1, 7: 0.2}

    def evaluate(method, step):
        assert not method.training
        torch.rand(100), random.random()
        return rows(accuracies[step])

    with_eval = toy_plan(steps=7, keep=1, eval_every=2, evaluate=evaluate, **FULL)
    summary = run_toy(tmp_path / "eval", with_eval)
    run_toy(tmp_path / "plain", toy_plan(steps=7, keep=1, **FULL))
    assert logged(tmp_path / "eval") == logged(tmp_path / "plain")
    assert logged(tmp_path / "eval", "eval/t/toy/accuracy") == list(accuracies.items())
    assert [p.name for p in checkpoints(tmp_path / "eval")] == ["step-000004", "step-000007"]
    assert summary.rows == rows(0.2)
    assert flat_rows(rows(0.5)) == {
        "eval/t/toy/accuracy": 0.5,
        "eval/t/toy/passes": 3.0,
        "eval/t/toy/zero/effort-2/accuracy": 0.0,
    }


@pytest.mark.parametrize("when", [4, 7])
def test_a_stop_while_evaluating_saves_and_the_evaluation_is_made_up_for(tmp_path, when):
    stop, seen = StopFlag(), []

    def evaluate(method, step):
        seen.append(step)
        if step == when and seen.count(when) == 1:
            stop.request()
        stop.check()
        return rows(0.5)

    plan = toy_plan(steps=7, eval_every=4, evaluate=evaluate, save_every=0, **FULL)
    with pytest.raises(Stopped, match=f"evaluating step {when}"):
        run_toy(tmp_path / "a", plan, stop=stop)
    stop.requested = False
    run_toy(tmp_path / "a", plan, stop=stop)
    assert seen == ([4, 4, 7] if when == 4 else [4, 7, 7])
    run_toy(tmp_path / "b", toy_plan(steps=7, **FULL))
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    assert [step for step, _ in logged(tmp_path / "a", "eval/t/toy/accuracy")] == [4, 7]


def test_touching_save_saves_at_the_next_step_and_goes_on(tmp_path):
    batches = toy_batches(8)

    def batch_at(step, *where):
        if step == 2:
            (tmp_path / "SAVE").touch()
        return batches(step, *where)

    stop = StopFlag()
    from quietreasoning.train.signals import SaveFile

    stop.save_file = SaveFile(tmp_path, interval_seconds=0.0)
    run_toy(tmp_path, toy_plan(steps=6, save_every=0, batch_at=batch_at), stop=stop)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000003", "step-000006"]
    assert not (tmp_path / "SAVE").exists()


def test_damage_to_an_earlier_stage_stops_only_those_who_borrow_from_it(tmp_path):
    stop = StopFlag()
    with pytest.raises(Stopped):
        run_toy(tmp_path, *two_stages(None, stopping_at(3, stop)), stop=stop)
    (tmp_path / "step-000006" / "method.safetensors").unlink()

    class Borrowing(Toy):
        borrowed = ("backbone.mix.weight",)

    first, second = two_stages()
    with pytest.raises(UserError, match="borrows"):
        run_toy(tmp_path, first, replace(second, make_method=lambda previous: Borrowing(dropout=0.1)))
    assert run_toy(tmp_path, *two_stages()).steps == 11
