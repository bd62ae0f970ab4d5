"""`python benchmarks/kv_cache.py [context] [tokens] [rounds]`: decoding with each kind of compressed cache.

A random Llama (4 layers, 8 heads over 4 key/value heads of 64), one row, fp32, one thread, CPU seconds.
Every arm reads the same prompt and writes the same number of tokens, in turns; `plain` is transformers'
DynamicCache. Bytes are those of the cache's tensors when decoding ends; the peak is what resident memory
reached while decoding, above what it was before the arm began (Linux alone). Fails if the arm that drops and
rounds nothing writes other tokens than `plain`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from quietreasoning.evaluate.meter import CLEAR, STATUS, resident
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


def main(context: int = 4096, tokens: int = 32, rounds: int = 2) -> None:
    torch.set_num_threads(1)
    print(f"cpu, 1 thread, torch {torch.__version__}; prompt {context}, {tokens} tokens, {rounds} rounds")
    model, prompt = llama(context), prompt_of(context)
    written(model, prompt[:, :64], 2, "int8 + pq")  # what libraries load at their first use
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    said: dict[str, Tensor] = {}
    held: dict[str, int] = {}
    peak: dict[str, float] = {}
    for _ in range(rounds):
        for name in ARMS:
            before = megabytes("VmRSS")
            said[name], prefill, decode, held[name] = written(model, prompt, tokens, name)
            peak[name] = megabytes("VmHWM") - before
            spent[name].append((prefill, decode))
    plain = statistics.median(decode for _, decode in spent["plain"])
    for name in ARMS:
        prefill, decode = (statistics.median(column) for column in zip(*spent[name], strict=True))
        speed = f"prompt {prefill:5.2f} s, {1e3 * decode:6.2f} ms a token ({decode / plain:4.2f} x plain)"
        size = f"{held[name] / 1e6:6.2f} MB (plain / {held['plain'] / held[name]:5.2f})"
        print(f"  {name:<14} {speed}, {size}, peak +{peak[name]:.1f} MB", flush=True)
    assert torch.equal(said["full"], said["plain"]), "the full arm says otherwise"


@torch.no_grad()
def written(
    model: LlamaForCausalLM, prompt: Tensor, tokens: int, name: str
) -> tuple[Tensor, float, float, int]:
    """Greedy tokens; CPU seconds of the prompt and of a token; bytes of the cache."""
    settings = ARMS[name]
    with (
        nullcontext(DynamicCache(config=model.config))
        if settings is None
        else attach(model, settings) as cache
    ):
        began = time.process_time()
        token = model(prompt, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        read = time.process_time()
        forget_peak()
        said = [token]
        for _ in range(tokens):
            said.append(model(said[-1], past_key_values=cache).logits[:, -1:].argmax(-1))
        ended = time.process_time()
        return torch.cat(said, 1), read - began, (ended - read) / tokens, held_bytes(cache)


def llama(context: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2 * context,
        initializer_range=0.05,
        eos_token_id=None,
    )
    return LlamaForCausalLM(shape).eval()


def prompt_of(context: int) -> Tensor:
    return torch.randint(3, 512, (1, context), generator=torch.Generator().manual_seed(1))


def forget_peak() -> None:
    if CLEAR.exists():
        CLEAR.write_text("5")


def megabytes(key: str) -> float:
    return resident(key) / 1e6 if STATUS.exists() else 0.0


if __name__ == "__main__":
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # large blocks go back to the system when they are freed, so that the peak is of what lives
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        )
    main(*map(int, sys.argv[1:]))
