"""`python benchmarks/loop_overhead.py [steps]`: our training loop against a bare PyTorch loop.

Two copies of the demo's model take turns, a few steps each, so that whatever else the machine does hits
both. Bare is what one would write by hand: batch, forward, divide, backward, clip, fused AdamW, zero_grad.
Ours adds units, lanes, guards, schedule, records and `log.jsonl`. Fails if ours is more than 5 % slower.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.contract import Method
from quietreasoning.data.batches import Batches
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tokenizers import build_tokenizer
from quietreasoning.methods.cot import ChainOfThought
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.track import JsonLines
from quietreasoning.train.loop import train
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.state import TrainState

BATCH, BLOCK, BOUND = 64, 5, 0.05


def main(steps: int = 400) -> None:
    torch.manual_seed(0)
    method, batches = demo()
    bare, ours = bare_steps(deepcopy(method), batches), our_steps(deepcopy(method), batches, steps + BLOCK)
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    losses: dict[str, list[float]] = {"bare": [], "ours": []}
    for block in range(steps // BLOCK + 1):  # the first block warms up and is not counted
        for name, loop in (("bare", bare), ("ours", ours)):
            began = time.perf_counter()
            losses[name] += [next(loop) for _ in range(BLOCK)]
            if block:
                seconds[name].append((time.perf_counter() - began) / BLOCK)
    gap = max(abs(a - b) for a, b in zip(losses["bare"], losses["ours"], strict=True))
    assert gap < 1e-2, f"the loops do not do the same: losses differ by {gap}"
    for name, all_seconds in seconds.items():
        print(f"{name}: {steps} steps, median {1e3 * statistics.median(all_seconds):.2f} ms a step")
    ratios = [o / b for b, o in zip(seconds["bare"], seconds["ours"], strict=True)]
    overhead = statistics.median(ratios) - 1
    print(f"overhead {overhead:+.1%} (bound {BOUND:.0%}), last loss {losses['ours'][-1]:.4f}, gap {gap:.0e}")
    assert overhead <= BOUND, "our loop is too slow"


def demo() -> tuple[Method, Batches]:
    """The demo's model and task: a 2-layer, 128-wide model on pointer chains."""
    options = {"nodes": 6, "symbols": 12, "hops": [1, 2, 3, 4]}
    data = DataConfig.model_validate({"task": "pointer", "options": options, "tokenizer": {"train": "words"}})
    task = build_task(data)
    tokenizer = build_tokenizer(data, task)
    encoder = Encoder(tokenizer, data.format)
    config = BackboneConfig(scratch=ScratchConfig(layers=2, width=128, heads=4, context=128))
    backbone = load_backbone(config, len(tokenizer))
    batches = Batches(task.split("train", 4000), encoder, BATCH)
    batches.prepare()
    return ChainOfThought(backbone, ChainOfThought.Config(), encoder.markers()), batches


def bare_steps(method: Method, batches: Batches) -> Iterator[float]:
    params = list(method.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    method.train()
    step = 0
    while True:
        batch = batches.batch_at(step)
        term = method(batch).terms["answer"]
        loss = term.total / method.units(batch)["token"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        yield loss.item()


def our_steps(method: Method, batches: Batches, steps: int) -> Iterator[float]:
    config = TrainConfig(steps=steps, batch_size=BATCH, precision="fp32")
    optim = OptimConfig(lr=1e-3, clip=1.0)
    state = TrainState.create(method, config, optim)
    with tempfile.TemporaryDirectory() as folder:
        log = JsonLines(Path(folder) / "log.jsonl")
        for record in train(state, batches.batch_at, config, optim):
            log.write(record.row())
            yield record.loss


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
