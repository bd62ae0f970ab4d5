"""`python benchmarks/kv_cache.py [context]`: decoding with each kind of compressed cache.

A random Llama (4 layers, 8 heads over 4 key/value heads of 64), one row, fp32, one thread, CPU seconds.
Every arm reads the same prompt and writes the same number of tokens, in turns; `plain` is transformers'
DynamicCache. Bytes are those of the cache's tensors when decoding ends; the peak is what resident memory
reached while decoding, above what it was before the arm began (Linux alone). Fails if the arm that drops and
rounds nothing writes other tokens than `plain`.

With `--whole` the peak is that of the whole call, reading included, and each arm has a process of its own.
`--layers`, `--width`, `--mlp`, `--heads`, `--kv-heads`, `--head-dim`, `--rows`, `--dtype` shape the model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
from random_llama import llama, prompt_of
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from quietreasoning.evaluate.meter import Peak
from quietreasoning.memory.kv_cache.attach import attach
from quietreasoning.memory.kv_cache.cache import held_bytes
from quietreasoning.memory.kv_cache.settings import KVCacheSettings, PQSettings

FREE = {"fallback_error": None}  # random weights attend everywhere, where low bits hurt most
ARMS: dict[str, KVCacheSettings | None] = {
    "plain": None,
    "full": KVCacheSettings(keep_frac=1, bits="full"),
    "int8": KVCacheSettings(keep_frac=1, bits=8),
    "int4": KVCacheSettings(keep_frac=1, bits=4, **FREE),
    "mixed": KVCacheSettings(keep_frac=1, bits="mixed", **FREE),
    "int8 + pq": KVCacheSettings(keep_frac=1, bits=8, pq=PQSettings()),
    "snapkv": KVCacheSettings(bits="full"),
    "snapkv + int8": KVCacheSettings(bits=8),
    "snapkv + int4": KVCacheSettings(bits=4, **FREE),
}
SHAPE = {  # options, and what LlamaConfig calls them
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "mlp": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    shape = {name: getattr(options, key) for key, name in SHAPE.items() if getattr(options, key)}
    if options.whole and options.arm is None:
        whole(options)
        return
    model = llama(options.context, initializer_range=0.05, **shape).to(getattr(torch, options.dtype))
    prompt = prompt_of(options.context, 1, options.rows)
    written(model, prompt[:, :200], 2, options.arm or "int8 + pq")  # what libraries load at their first use
    if options.arm is not None:
        said, figures = written(model, prompt, options.tokens, options.arm)
        print(json.dumps(figures | {"said": said.tolist()}))
        return
    say_setting(options)
    in_turns(model, prompt, options.tokens, options.rounds)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("context", type=int, nargs="?", default=4096)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    for key in SHAPE:
        parser.add_argument(f"--{key.replace('_', '-')}", type=int)
    return parser.parse_args()


def say_setting(options: argparse.Namespace) -> None:
    shape = ", ".join(f"{key} {getattr(options, key)}" for key in SHAPE if getattr(options, key))
    print(f"cpu, 1 thread, torch {torch.__version__}, {options.dtype}; {shape or 'the usual shape'}")
    print(f"  {options.rows} x {options.context} tokens, {options.tokens} written, {options.rounds} rounds")


def in_turns(model: LlamaForCausalLM, prompt: Tensor, tokens: int, rounds: int) -> None:
    """Speed, bytes and the peak of decoding."""
    runs = [{name: written(model, prompt, tokens, name) for name in ARMS} for _ in range(rounds)]
    middle = {
        name: {key: statistics.median(run[name][1][key] for run in runs) for key in runs[0][name][1]}
        for name in ARMS
    }
    plain = middle["plain"]
    for name, own in middle.items():
        decode = own["decode_s"] / tokens
        speed = f"prompt {own['prompt_s']:5.2f} s, {1e3 * decode:6.2f} ms a token"
        speed += f" ({own['decode_s'] / plain['decode_s']:4.2f} x plain)"
        size = f"{own['bytes'] / 1e6:6.2f} MB (plain / {plain['bytes'] / own['bytes']:5.2f})"
        print(f"  {name:<14} {speed}, {size}, peak +{own['decoding'] / 1e6:.1f} MB")
    said = runs[-1]
    assert torch.equal(said["full"][0], said["plain"][0]), "the full arm says otherwise"


def whole(options: argparse.Namespace) -> None:
    """Peaks of the whole call, an arm a process; shares are of the first arm."""
    say_setting(options)
    found: dict[str, dict] = {}
    for name in options.arms:
        command = [sys.executable, __file__, *sys.argv[1:], "--arm", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        own = found[name] = json.loads(done.stdout)
        first = found[options.arms[0]]
        size = f"{own['bytes'] / 1e6:7.2f} MB ({first['bytes'] / own['bytes']:5.2f} times fewer)"
        peaks = f"reading {own['reading'] / 1e6:6.1f}, decoding {own['decoding'] / 1e6:6.1f}"
        more = max(own["reading"], own["decoding"]) / max(first["reading"], first["decoding"]) - 1
        print(f"  {name:<14} {size}, peak MB: {peaks}, whole call {100 * more:+.0f} %", flush=True)
    if {"plain", "full"} <= set(found):
        assert found["full"]["said"] == found["plain"]["said"], "the full arm says otherwise"


@torch.no_grad()
def written(
    model: LlamaForCausalLM, prompt: Tensor, tokens: int, name: str
) -> tuple[Tensor, dict[str, float]]:
    """Greedy tokens; CPU seconds of the prompt and of the tokens, bytes of the cache, and how far memory rose
    while reading and while decoding above what was held before the prompt."""
    settings = ARMS[name]
    with (
        nullcontext(DynamicCache(config=model.config))
        if settings is None
        else attach(model, settings) as cache
    ):
        peak = Peak(model.device)
        before = peak.before
        began = time.process_time()
        token = model(prompt, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        read = time.process_time()
        reading = peak.above()
        peak.begin()
        said = [token]
        for _ in range(tokens):
            said.append(model(said[-1], past_key_values=cache).logits[:, -1:].argmax(-1))
        ended = time.process_time()
        return torch.cat(said, 1), {
            "prompt_s": read - began,
            "decode_s": ended - read,
            "bytes": held_bytes(cache),
            "reading": reading,
            "decoding": peak.above() + peak.before - before,
        }


if __name__ == "__main__":
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # large blocks go back to the system when they are freed, so that the peak is of what lives
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        )
    main()
