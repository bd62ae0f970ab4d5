"""The loss is divided once: lanes and ranks cut the same rows, so they train the same model."""

import fcntl
import json
import multiprocessing
import os
import socket

import pytest
import torch
from contract_cases import (
    CASES,
    SHARDED,
    backbone_for,
    batch_of,
    go,
    make,
    row_of,
    rows_a_step,
    rows_of,
    run,
    run_all,
    start,
    weights,
)
from safetensors.torch import load_file

from quietreasoning.contract import IGNORE
from quietreasoning.train.snapshot import load_state, load_weights, save_state

DEADLINE_SECONDS = 900  # against a rank that hangs; a busy machine is slow
OF_A_MICROBATCH = {"pkm_hit_rate", "pkm_entropy"}  # how many slots these rows read together: no sum over rows
PRELOAD = [
    "quietreasoning.train.stages",
    "quietreasoning.backbone",
    "torch._dynamo",  # building an optimizer imports it
    "accelerate",
    "torch.distributed.fsdp",
    "torch.distributed.device_mesh",
]


def assert_same_run(one, two):
    (records, final), (other_records, other_final) = one, two
    assert len(records) == len(other_records) == 2
    for mine, theirs in zip(records, other_records, strict=True):
        mine, theirs = ({k: v for k, v in of.items() if k not in OF_A_MICROBATCH} for of in (mine, theirs))
        assert mine == pytest.approx(theirs, rel=2e-4, abs=1e-6)
    assert final.keys() == other_final.keys()
    for name, tensor in final.items():
        torch.testing.assert_close(tensor, other_final[name], rtol=1e-4, atol=2e-6, msg=name)


def test_rows_are_ragged_in_every_field():
    rows = [row_of(i) for i in range(24)]
    assert {len(steps) for _, steps, _, _ in rows} == {0, 1, 2, 3}
    assert any(not result for _, _, results, _ in rows for result in results)
    assert len({len(prompt) for prompt, *_ in rows}) > 3 and len({len(answer) for *_, answer in rows}) == 3
    assert any(not row_of(i)[1] for i in range(8))  # a lane of one row may hold no step at all
    assert (batch_of([3]).steps_BKS.numel(), int((batch_of([3]).prompt_BP == IGNORE).sum())) == (0, 0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two ranks found, made by whichever test process comes first; another one waits for it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    out = root / "ranks"
    with (root / "ranks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            out.mkdir()
            (out / "codes.json").write_text(json.dumps(run_on_two_ranks(out)))
    assert json.loads((out / "codes.json").read_text()) == [0, 0]
    return out


def run_on_two_ranks(out):
    """Exit codes of two processes that run all cases together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    children = [
        context.Process(target=run_all, args=(rank, port, str(out)), daemon=True) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(DEADLINE_SECONDS)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    return codes


@pytest.mark.parametrize("case", CASES)
def test_lanes_and_ranks_equal_one(case, request):
    """Lanes of one row each; then two ranks of two lanes, replicated and sharded."""
    whole = run(case)
    assert_same_run(whole, run(case, accumulate=rows_a_step(case)))
    folder = request.getfixturevalue("two_ranks")  # not before: ranks that fail hide no lanes
    for sharding in ("ddp", "fsdp") if case in SHARDED else ("ddp",):
        records = json.loads((folder / f"{case}-{sharding}.json").read_text())
        assert_same_run(whole, (records, load_file(folder / f"{case}-{sharding}.safetensors")))


@pytest.mark.parametrize("case", SHARDED)
def test_resume_is_exact(case, tmp_path):
    through = start(case)
    records = go(through, rows_of(case))
    first = start(case)
    half = go(first, rows_of(case), steps=1)
    folder = save_state(first, tmp_path, run={}, position={})
    torch.manual_seed(99)  # whatever happened in between
    method = make(case, backbone_for(case, layers=1))
    with torch.no_grad():
        for name, p in method.named_parameters():
            p.add_(0.0 if name in method.borrowed else 1.0)
    load_weights(folder, method)
    second = start(case, method=method)
    assert load_state(second, folder) == []
    assert half + go(second, rows_of(case)) == records
    for name, tensor in weights(through.method).items():
        assert torch.equal(tensor, weights(second.method)[name]), name
