"""Real processes under kill -9, SIGTERM and SIGINT."""

import os
import random
import signal
from dataclasses import replace

import pytest
import torch
from train_toys import FULL, logged, rows, run_toy, toy_batches, toy_plan, weights_hash

from quietreasoning.train.checkpoint import checkpoints
from quietreasoning.train.signals import StopFlag

DEADLINE_SECONDS = 300


class Telling:
    """A sink that tells a pipe of every step and waits to be let go."""

    def __init__(self, pipe):
        self.pipe = pipe

    def stage(self, name, unit, total, done):
        pass

    def write(self, row):
        self.pipe.send(row["step"])
        self.pipe.recv()

    def note(self, text):
        pass

    def close(self):
        pass


def child_run(run_dir, pipe, steps):
    torch.set_num_threads(1)
    run_toy(run_dir, toy_plan(steps=steps, **FULL), sinks=[Telling(pipe)])


def let_run_to(pipe, steps):
    """Let the child go on for so many steps; returns the last. It is then about to save that one."""
    for _ in range(steps):
        assert pipe.poll(DEADLINE_SECONDS), "the run hangs"
        reached = pipe.recv()
        pipe.send("go")
    return reached


def test_kill_9_at_random_moments_loses_nothing(processes, tmp_path):
    """benchmarks/kill_resume.py does the same with more kills."""
    kill_and_resume(processes, tmp_path, kills=8, steps=40, seed=1)


def kill_and_resume(processes, tmp_path, kills, steps, seed):
    draw = random.Random(seed)
    run_toy(tmp_path / "through", toy_plan(steps=steps, **FULL))
    done, killed = 0, 0
    while killed < kills:
        ours, theirs = processes.Pipe()
        child = processes.Process(target=child_run, args=(tmp_path / "killed", theirs, steps))
        child.start()
        theirs.close()
        done = let_run_to(ours, draw.randint(1, max(1, (steps - done) // (kills - killed + 1))))
        ours.poll(draw.random() * 0.06)  # ends early only where the next step has been done
        os.kill(child.pid, signal.SIGKILL)
        child.join(DEADLINE_SECONDS)
        killed += 1
    summary = run_toy(tmp_path / "killed", toy_plan(steps=steps, **FULL))
    assert summary.notes  # it went on, it did not start over
    assert logged(tmp_path / "killed") == logged(tmp_path / "through")
    last = f"step-{steps:06d}"
    assert weights_hash(tmp_path / "killed" / last) == weights_hash(tmp_path / "through" / last)


def signalled_run(run_dir, pipe, phase, times):
    """Waits in `phase` for as many signals as the parent sends, then goes on."""
    torch.set_num_threads(1)
    stop = StopFlag()

    def wait(here):
        if here == phase and not stop.requested:
            pipe.send("ready")
            while not stop.requested:  # the handler runs as soon as the signal is here
                signal.pause()
            if times == 2:
                pipe.send("again")
                signal.pause()

    def batch_at(step, *where):
        if step == 3:
            wait("train")
        return toy_batches(8)(step, *where)

    def evaluate(method, step):
        if step == 4:
            wait("evaluate")
        stop.check()
        return rows(0.5)

    def make_batches():
        wait("data")
        stop.check()
        return batch_at

    with stop.listening():
        plan = replace(toy_plan(steps=6, evaluate=evaluate, eval_every=4, **FULL), make_batches=make_batches)
        run_toy(run_dir, plan, stop=stop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("phase", "saved"), [("data", 0), ("train", 3), ("evaluate", 4)])
def test_a_signal_saves_and_leaves_with_75_in_every_phase(processes, tmp_path, phase, saved, number):
    ours, theirs = processes.Pipe()
    child = processes.Process(target=signalled_run, args=(tmp_path / "run", theirs, phase, 1))
    child.start()
    assert ours.poll(DEADLINE_SECONDS)
    os.kill(child.pid, number)
    child.join(DEADLINE_SECONDS)
    assert child.exitcode == 75
    found = checkpoints(tmp_path / "run") if saved else []
    assert (found[-1].name == f"step-{saved:06d}") if saved else not found
    plan = toy_plan(steps=6, evaluate=lambda method, step: rows(0.5), eval_every=4, **FULL)
    run_toy(tmp_path / "run", plan)
    run_toy(tmp_path / "through", plan)
    assert logged(tmp_path / "run") == logged(tmp_path / "through")


def test_a_second_signal_leaves_at_once(processes, tmp_path):
    ours, theirs = processes.Pipe()
    child = processes.Process(target=signalled_run, args=(tmp_path, theirs, "train", 2))
    child.start()
    for _ in range(2):
        assert ours.poll(DEADLINE_SECONDS)
        ours.recv()
        os.kill(child.pid, signal.SIGTERM)
    child.join(DEADLINE_SECONDS)
    assert child.exitcode == 75
    assert checkpoints(tmp_path)[-1].name == "step-000003"  # the periodic save; nothing more was written
