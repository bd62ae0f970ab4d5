"""`python benchmarks/ssd.py [runs] [threads]`: the state-space expert at L = 2048, one row, fp32.

`ssd` beside two loops over tokens: the recurrence as it is written (loop), and our own decoding step, which
takes fewer passes over the state (steps, no bound). The whole expert beside transformers' Mamba2 mixer on its
torch path with the same weights (mixer). Both sides take turns; a ratio is the median of the runs' ratios.
Fails below the bounds; the large size has none against the loop, whose products keep the machine busy there.
Other load on the machine slows many small operations on two threads most of all.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

from quietreasoning.nn.ssd import ssd, step
from quietreasoning.nn.ssm import SSMExpert

LENGTH, LOOP_BOUND, MIXER_BOUND = 2048, 20.0, 1.0
SIZES = {  # width, state size; the inner width is twice the width, a head has 64 channels (16 in the first)
    "small": (64, 32),
    "base": (384, 64),
    "large": (1152, 128),
}


def main(runs: int = 5, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    print(
        f"cpu {platform.processor() or platform.machine()}, {threads} threads, torch {torch.__version__}, "
        f"L {LENGTH}, 1 row, fp32, median of {runs} runs in turns"
    )
    failed = []
    for name, (width, state) in SIZES.items():
        expert = SSMExpert(width, 2 * width, state, head_dim=16 if name == "small" else 64)
        print(
            f"{name}: width {width}, inner {2 * width}, {expert.heads} heads of {expert.head_dim}, "
            f"state {state}, chunk {expert.chunk}"
        )
        chunked, loop, steps, inputs = scans(expert)
        pairs = (
            ("loop", LOOP_BOUND, chunked, loop, inputs),
            ("steps", 0.0, chunked, steps, inputs),
            ("mixer", MIXER_BOUND, *layers(expert)),
        )
        for title, bound, ours, theirs, inputs in pairs:
            for backward in (False, True):
                ratio = compare(title, backward, ours, theirs, inputs, runs)
                free = name == "large" and title == "loop"
                failed += [f"{name} {title}: {ratio:.1f}x"] * (ratio < bound and not free)
    assert not failed, (
        f"below {LOOP_BOUND:.0f}x the loop or {MIXER_BOUND:.0f}x the mixer: {', '.join(failed)}"
    )


Function = Callable[..., Tensor]


def scans(expert: SSMExpert) -> tuple[Function, Function, Function, list[Tensor]]:
    """The chunked scan and the two loops, and their inputs."""
    heads, channels, state = expert.heads, expert.head_dim, expert.state
    made = torch.Generator().manual_seed(0)
    x, b, c = (torch.randn(1, LENGTH, *s, generator=made) for s in ((heads, channels), (state,), (state,)))
    dt = torch.nn.functional.softplus(
        expert.dt_bias_H.detach() + torch.randn(1, LENGTH, heads, generator=made)
    )
    a = -expert.a_log_H.detach().exp()

    def chunked(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return ssd(x, dt, a, b, c, chunk=expert.chunk)[0]

    def written(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.exp(dt * a)[..., None, None] * h + torch.einsum("rh,rhp,rn->rhpn", dt, x, b)
        return torch.einsum("rhpn,rn->rhp", h, c), h

    def over_tokens(one: Callable[..., tuple[Tensor, Tensor]]) -> Function:
        def run(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            h, outputs = torch.zeros(1, heads, channels, state), []
            for now in zip(*(part.unbind(1) for part in (x, dt, b, c)), strict=True):
                y, h = one(now[0], now[1], a, now[2], now[3], h)
                outputs.append(y)
            return torch.stack(outputs, 1)

        return run

    return chunked, over_tokens(written), over_tokens(step), [x, dt, a, b, c]


def layers(expert: SSMExpert) -> tuple[Function, Function, list[Tensor]]:
    """The expert and transformers' mixer behind the expert's norm, with the same weights."""
    width, inner = expert.norm.weight.numel(), expert.out.in_features
    config = Mamba2Config(
        hidden_size=width,
        expand=inner // width,
        num_heads=expert.heads,
        head_dim=expert.head_dim,
        state_size=expert.state,
        n_groups=1,
        chunk_size=expert.chunk,
        conv_kernel=expert.conv_weight_CK.shape[1],
        num_hidden_layers=1,
        layer_norm_epsilon=expert.gated_norm.eps,
    )
    mixer = Mamba2Mixer(config, 0)
    mixer.load_state_dict(
        {
            "in_proj.weight": expert.project.weight,
            "conv1d.weight": expert.conv_weight_CK[:, None],
            "conv1d.bias": expert.conv_bias_C,
            "dt_bias": expert.dt_bias_H,
            "A_log": expert.a_log_H,
            "D": expert.skip_H,
            "norm.weight": expert.gated_norm.weight,
            "out_proj.weight": expert.out.weight,
        }
    )
    x = torch.randn(1, LENGTH, width, generator=torch.Generator().manual_seed(0))
    ours = [*expert.parameters()]
    theirs = [*mixer.parameters(), expert.norm.weight]

    def our_layer(x: Tensor) -> Tensor:
        return expert(x)[0]

    def their_layer(x: Tensor) -> Tensor:
        return mixer(expert.norm(x))

    our_layer.parameters, their_layer.parameters = ours, theirs
    return our_layer, their_layer, [x]


def compare(
    title: str, backward: bool, ours: Function, theirs: Function, inputs: list[Tensor], runs: int
) -> float:
    """Median of theirs / ours; prints both medians and the range of the ratio."""
    seconds: list[list[float]] = [[], []]
    for run in range(runs + 1):  # the first round warms up and is not counted
        results = []
        for side, function in enumerate((ours, theirs)):
            began = time.perf_counter()
            results.append(passes(function, inputs, backward))
            if run:
                seconds[side].append(time.perf_counter() - began)
        gap = (results[0] - results[1]).abs().max() / results[1].abs().max()
        assert gap < 1e-3, f"the two sides do not compute the same: {gap:.0e}"
    ratios = sorted(t / o for o, t in zip(*seconds, strict=True))
    our_ms, their_ms = (1e3 * statistics.median(side) for side in seconds)
    ratio = statistics.median(ratios)
    way = "forward + backward" if backward else "forward"
    print(
        f"  {way:18} ours {our_ms:8.1f} ms  {title:5} {their_ms:8.1f} ms  "
        f"{ratio:5.1f}x ({ratios[0]:.1f} to {ratios[-1]:.1f})",
        flush=True,
    )
    return ratio


def passes(function: Function, inputs: list[Tensor], backward: bool) -> Tensor:
    """The output; or the gradient of the first input, with those of all others computed as well."""
    if not backward:
        with torch.no_grad():
            return function(*inputs)
    leaves = [part.clone().requires_grad_() for part in inputs]
    output = function(*leaves)
    return torch.autograd.grad(output.square().sum(), [*leaves, *getattr(function, "parameters", [])])[0]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
