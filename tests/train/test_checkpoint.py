"""Checkpoints are whole or not there; damage is named; loading is strict; nothing random is lost."""

import errno
import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from train_toys import Toy, ToyBackbone, run_toy, toy_plan

from quietreasoning.config import UserError
from quietreasoning.train import checkpoint
from quietreasoning.train.checkpoint import Tensors, checkpoints, load_latest_valid, retain, save, verify
from quietreasoning.train.rng import get_rng, kept_rng, seed_all, set_rng
from quietreasoning.train.snapshot import flatten, load_weights, method_file, unflatten


def write(run_dir, step, score=None, done=False):
    state = {"score": score, "stage_done": done}
    files = {"method.safetensors": Tensors({"w": torch.full((50,), float(step))}), "state.json": state}
    return save(run_dir, step, files)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flip": (flip, "has changed|is damaged|format"),
    "truncate": (lambda path: os.truncate(path, path.stat().st_size - 3), "bytes|is damaged"),
    "empty": (lambda path: os.truncate(path, 0), "bytes|is damaged"),
    "delete": (lambda path: path.unlink(), "is missing"),
    "add": (lambda path: (path.parent / "stranger.bin").write_bytes(b"x"), "stranger.bin does not belong"),
}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished")
    run_toy(run_dir, toy_plan(steps=4, keep=3, toy={"carries": True}, optim={"ema": 0.5, "name": "adamw"}))
    return run_dir


FILES = [
    "method.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "rank-0.safetensors",
    "run.json",
    "state.json",
    "manifest.json",
]


def test_a_checkpoint_holds_these_files_and_no_more(finished_run):
    assert sorted(p.name for p in (finished_run / "step-000004").iterdir()) == sorted(FILES)
    assert verify(finished_run / "step-000004") == []


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_checkpoint_before_is_used(finished_run, tmp_path, name, damage):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    spoil, words = DAMAGE[damage]
    spoil(run_dir / "step-000004" / name)
    path, notes = load_latest_valid(run_dir)
    assert path == run_dir / "step-000003"
    assert len(notes) == 1 and "step-000004" in notes[0]
    assert damage == "add" or name in notes[0]
    assert any(word in notes[0] for word in words.split("|"))


@pytest.mark.parametrize("place", range(0, 200, 7))
def test_no_flipped_byte_of_a_manifest_goes_unseen(tmp_path, place):
    path = write(tmp_path, 1)
    data = bytearray((path / "manifest.json").read_bytes())
    data[place % len(data)] ^= 1 << (place % 7)
    (path / "manifest.json").write_bytes(data)
    assert verify(path)


def test_a_damaged_run_goes_on_from_the_one_before_and_keeps_the_damaged_one(finished_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    flip(run_dir / "step-000004" / "method.safetensors")
    plan = toy_plan(steps=4, keep=3, toy={"carries": True}, optim={"ema": 0.5, "name": "adamw"})
    summary = run_toy(run_dir, plan)
    assert any("step-000004 passed over: method.safetensors has changed" in note for note in summary.notes)
    assert (run_dir / "damaged-step-000004").is_dir()
    for name in FILES:
        if name.endswith(".safetensors"):
            mine, theirs = (load_file(d / "step-000004" / name) for d in (run_dir, finished_run))
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_run_without_one_valid_checkpoint_is_refused(finished_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run, run_dir)
    for path in checkpoints(run_dir):
        flip(path / "state.json")
    with pytest.raises(UserError, match=r"no checkpoint to resume from.*step-000002"):
        run_toy(
            run_dir, toy_plan(steps=4, keep=3, toy={"carries": True}, optim={"ema": 0.5, "name": "adamw"})
        )
    assert len(checkpoints(run_dir)) == 3


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("call", range(14))
def test_a_full_disk_at_any_moment_loses_nothing(tmp_path, monkeypatch, call, replaces):
    """The n-th call that touches the disk fails; what was there before is still there and valid."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    before = {path.name: (path / "manifest.json").read_text() for path in checkpoints(tmp_path)}
    calls = iter(range(100))

    def full(real):
        def limited(*args, **settings):
            if next(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **settings)

        return limited

    monkeypatch.setattr(checkpoint, "save_file", full(checkpoint.save_file))
    monkeypatch.setattr(os, "fsync", full(os.fsync))
    monkeypatch.setattr(os, "open", full(os.open))
    monkeypatch.setattr(os, "rename", full(os.rename))
    try:
        write(tmp_path, 2 if replaces else 3)
        refused = False
    except UserError as error:
        refused = True
        assert "No space left on device" in str(error) and "Last one kept: step-00000" in str(error)
    monkeypatch.undo()
    after = {path.name: (path / "manifest.json").read_text() for path in checkpoints(tmp_path)}
    assert before.items() <= after.items()
    assert refused or len(after) == (2 if replaces else 3)
    assert all(not verify(path) for path in checkpoints(tmp_path))
    checkpoint.clean(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_real_file_size_limit_is_a_user_error_and_the_run_can_go_on(processes, tmp_path):
    child = processes.Process(target=limited_run, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == 3
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002"]
    summary = run_toy(tmp_path, toy_plan(steps=4, save_every=2))
    assert summary.steps == 4 and summary.notes


def limited_run(run_dir):
    """Writes step 2, then no file may grow any more."""
    import resource
    import signal
    import sys

    from train_toys import toy_batches

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def batch_at(step, *where):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return toy_batches(8)(step, *where)

    try:
        run_toy(run_dir, toy_plan(steps=4, save_every=2, batch_at=batch_at))
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sys.exit(3 if "could not be written" in str(error) else 4)


def test_too_little_space_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="GB free"):
        checkpoint.check_space(tmp_path, 10**18)
    checkpoint.check_space(tmp_path, 1000)


def test_what_a_killed_save_leaves_is_cleared_and_what_it_replaced_comes_back(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".tmp-step-000002").mkdir()
    (tmp_path / ".tmp-step-000002" / "method.safetensors").write_bytes(b"half")
    (tmp_path / "step-000001").rename(tmp_path / ".old-step-000001")
    checkpoint.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert verify(tmp_path / "step-000001") == []


def test_retention_keeps_the_last_the_best_and_the_ends_of_stages(tmp_path):
    scores = {1: None, 2: 0.9, 3: 0.1, 4: None, 5: 0.5, 6: None, 7: 0.2}
    for step, score in scores.items():
        write(tmp_path, step, score, done=step == 3)
    retain(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{n:06d}" for n in (2, 3, 6, 7)]
    write(tmp_path, 8, 0.95)
    retain(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000003", "step-000008"]


class Half(Toy):
    """A method that borrows its backbone's mixing layer."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.backbone.borrowed = ("mix.weight", "mix.bias")


def test_borrowed_weights_are_not_saved_and_not_asked_for(tmp_path):
    method = Half()
    save(tmp_path, 1, {"method.safetensors": method_file(method)})
    with safe_open(tmp_path / "step-000001" / "method.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"backbone.embed.weight", "halt.weight", "halt.bias", "scale"}
        assert json.loads(file.metadata()["tied"]) == {"backbone.head.weight": "backbone.embed.weight"}
    other = Half()
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(7.0)
    load_weights(tmp_path / "step-000001", other)
    assert torch.equal(other.backbone.embed.weight, method.backbone.embed.weight)
    assert other.backbone.head.weight is other.backbone.embed.weight
    assert (other.backbone.mix.weight == 7.0).all()


def test_a_mismatch_names_what_each_side_holds(tmp_path):
    save(tmp_path, 1, {"method.safetensors": method_file(Toy())})
    other = Toy()
    other.extra = nn.Linear(2, 2)
    del other.halt
    other.backbone.mix.bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(UserError) as refusal:
        load_weights(tmp_path / "step-000001", other)
    message = str(refusal.value)
    assert "only in the checkpoint: halt.bias, halt.weight" in message
    assert "only in the method: extra.bias, extra.weight" in message
    assert "backbone.mix.bias float32[8] against float32[3]" in message and "\n" not in message


def test_random_state_comes_back_exactly():
    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.standard_normal(),
            torch.rand(3).tolist(),
        )

    seed_all(1, 2, 3)
    draw()  # leaves half a pair of gaussians behind
    state = get_rng()
    first = draw()
    set_rng(state)
    assert draw() == first
    with kept_rng():
        second = draw()
    assert draw() == second != first
    seed_all(1, 2, 4)
    assert draw() != first


def test_a_nest_of_carries_comes_back_as_it_was():
    nest = {
        "a": [torch.arange(3), None, (1, 2.5, "x", True)],
        "b": {"c": torch.zeros(2, 2, dtype=torch.bool)},
    }
    tensors = {}
    back = unflatten(json.loads(json.dumps(flatten(nest, tensors))), tensors, torch.device("cpu"))
    assert torch.equal(back["a"][0], nest["a"][0]) and torch.equal(back["b"]["c"], nest["b"]["c"])
    assert back["a"][1:] == nest["a"][1:] and isinstance(back["a"][2], tuple)
    with pytest.raises(TypeError, match="ToyBackbone"):
        flatten([ToyBackbone()], {})
