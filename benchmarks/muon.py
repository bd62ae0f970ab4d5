"""`python benchmarks/muon.py [runs] [threads]`: a step of our Muon beside torch.optim.Muon.

The matrices of 12 layers of width 256: attention, SwiGLU, and rank-8 adapters of the same layers. Sides take
turns; a ratio is the median of the runs' ratios. `loop` is our own iteration, one matrix at a time: what
batching alone gives. In bf16 ours must be torch's to rounding; on a CPU without bf16 products, to the bit.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time

import torch
from torch import nn
from torch.optim import Optimizer

from quietreasoning.optim import muon
from quietreasoning.optim.muon import Muon

LAYERS, WIDTH, MLP, RANK = 12, 256, 704, 8
SLOW = 2  # layers of full matrices on a CPU
FULL = [(WIDTH, WIDTH)] * 4 + [(MLP, WIDTH)] * 2 + [(WIDTH, MLP)]
ADAPTERS = [shape for rows, columns in FULL for shape in ((RANK, columns), (rows, RANK))]
SIZES = {"adapters": ADAPTERS, "full": FULL}


class Loop(Muon):
    """Ours, a batch a matrix."""

    def step(self, closure=None) -> None:
        most, muon.LARGEST_BATCH = muon.LARGEST_BATCH, 1
        super().step()
        muon.LARGEST_BATCH = most


def main(runs: int = 3, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    print(
        f"{device}, {platform.processor() or platform.machine()}, {threads} threads, torch "
        f"{torch.__version__}, {LAYERS} layers of width {WIDTH}, median of {runs} runs in turns"
    )
    for name, shapes in SIZES.items():
        for dtype in (torch.float32, torch.bfloat16):
            slow = name == "full" and device.type == "cpu"
            compare(name, shapes * (SLOW if slow else LAYERS), dtype, runs, device)


def compare(
    name: str, shapes: list[tuple[int, int]], dtype: torch.dtype, runs: int, device: torch.device
) -> None:
    """One line: milliseconds of a step of each side, and how much longer the others take than ours."""
    shared = {"lr": 0.01, "momentum": 0.95}
    sides: dict[str, Optimizer] = {
        "ours": Muon(weights(shapes, device), dtype=dtype, **shared),
        "loop": Loop(weights(shapes, device), dtype=dtype, **shared),
        "torch": torch.optim.Muon(
            weights(shapes, device), weight_decay=0.0, adjust_lr_fn="match_rms_adamw", **shared
        ),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for run in range(runs + 1):  # the first round warms up and is not counted
        for side, optimizer in sides.items():
            torch.manual_seed(run)
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.randn_like(p)
            began = clock(device)
            optimizer.step()
            if run:
                seconds[side].append(clock(device) - began)
    ours, theirs = (sides[side].param_groups[0]["params"] for side in ("ours", "torch"))
    gap = max(float((p - q).detach().abs().max()) for p, q in zip(ours, theirs, strict=True))
    if dtype == torch.bfloat16:
        assert gap < 1e-3, f"ours and torch's differ by {gap:.0e}"
    ms = {side: 1e3 * statistics.median(taken) for side, taken in seconds.items()}
    ratios = {
        side: statistics.median(t / o for o, t in zip(seconds["ours"], taken, strict=True))
        for side, taken in seconds.items()
    }
    print(
        f"  {name:8} {len(shapes):4} matrices, {str(dtype).removeprefix('torch.'):8}  ours {ms['ours']:8.1f} "
        f"ms  loop {ms['loop']:8.1f} ms = {ratios['loop']:.2f}x  torch (bf16) {ms['torch']:8.1f} ms = "
        f"{ratios['torch']:.2f}x  largest difference {gap:.0e}",
        flush=True,
    )


def weights(shapes: list[tuple[int, int]], device: torch.device) -> list[nn.Parameter]:
    made = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=made).to(device)) for shape in shapes]


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
