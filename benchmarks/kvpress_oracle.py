"""`python benchmarks/kvpress_oracle.py PYTHON [context] [tokens] [rounds]`: beside kvpress's SnapKVPress.

PYTHON is the interpreter of an environment of kvpress's own, which pins an older transformers
(`pip install kvpress==0.5.5`). It runs this file as a second process that answers over a pipe. Both sides
load the same random Llama (4 layers, 8 heads over 4 key/value heads of 64, fp32, one thread) and read the
same prompts, with a window of 64, kernel 5, no sinks, and as many tokens kept. Fails if a head keeps other
positions than near ties explain, or if the greedy tokens differ although the positions are equal. Then both
read and decode in turns, and CPU seconds are compared.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from random_llama import llama, prompt_of
from torch import Tensor
from transformers import LlamaForCausalLM

WINDOW, KERNEL, KEEP = 64, 5, 0.3


def main(python: str, context: int = 2048, tokens: int = 16, rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        llama(context, initializer_range=0.1).save_pretrained(folder)
        mine = Ours(folder)
        with Child(python, folder) as peer:
            print(f"cpu, 1 thread; ours: {mine.versions}; theirs: {peer.ask(what='versions')}")
            equal = total = 0
            for seed in range(3):
                prompt = prompt_of(context // 2, seed)[0].tolist()
                own, other = mine.read(prompt, tokens), peer.ask(what="read", prompt=prompt, tokens=tokens)
                same = [set(a) == set(b) for a, b in zip(own["kept"], other["kept"], strict=True)]
                equal, total = equal + sum(same), total + len(same)
                apart = [len(set(a) ^ set(b)) for a, b in zip(own["kept"], other["kept"], strict=True)]
                assert max(apart) <= 2, f"prompt {seed}: a head keeps {max(apart) // 2} other positions"
                assert not all(same) or own["said"] == other["said"], f"prompt {seed}: other tokens"
            print(f"{equal} of {total} heads keep the same positions; the greedy tokens are the same")
            prompt = prompt_of(context, 9)[0].tolist()
            runs = [
                (mine.read(prompt, tokens), peer.ask(what="read", prompt=prompt, tokens=tokens))
                for _ in range(rounds + 1)
            ][1:]  # the first warms up
            for part in ("prompt", "decode"):
                pairs = [(own[part], other[part]) for own, other in runs]
                ratios = [own / other for own, other in pairs]
                middle = [statistics.median(column) for column in zip(*pairs, strict=True)]
                print(
                    f"  {part} ({context if part == 'prompt' else tokens} tokens): ours {middle[0]:.3f} s, "
                    f"kvpress {middle[1]:.3f} s, ours / theirs {statistics.median(ratios):.2f} "
                    f"({min(ratios):.2f} to {max(ratios):.2f})"
                )


@torch.no_grad()
def timed(model: Any, cache: Any, prompt: list[int], tokens: int, compressing: Any) -> dict[str, Any]:
    """Reads the prompt inside the context `compressing`, then decodes greedily; CPU seconds of both."""
    ids = torch.tensor([prompt])
    began = time.process_time()
    with compressing:
        token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
    read = time.process_time()
    said = [token]
    for step in range(tokens):
        place = torch.tensor([[len(prompt) + step]])  # the true one; kvpress leaves it to the caller
        said.append(model(said[-1], past_key_values=cache, position_ids=place).logits[:, -1:].argmax(-1))
    ended = time.process_time()
    return {"said": torch.cat(said, 1)[0].tolist(), "prompt": read - began, "decode": ended - read}


class Ours:
    def __init__(self, folder: str):
        import transformers

        torch.set_num_threads(1)
        self.model = LlamaForCausalLM.from_pretrained(folder).eval()
        self.versions = f"torch {torch.__version__}, transformers {transformers.__version__}"

    def read(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        from contextlib import nullcontext

        from quietreasoning.memory.kv_cache import snapkv
        from quietreasoning.memory.kv_cache.attach import attach
        from quietreasoning.memory.kv_cache.settings import KVCacheSettings

        settings = KVCacheSettings(
            keep_frac=KEEP, window=WINDOW, kernel=KERNEL, sinks=0, bits="full", streaming_window=None
        )
        kept: list[list[int]] = []
        choose = snapkv.choose

        def noting(*args: Any) -> Any:
            selection = choose(*args)
            kept.extend(selection.index_BGN[0].tolist())
            return selection

        snapkv.choose = noting
        try:
            with attach(self.model, settings) as cache:
                return {**timed(self.model, cache, prompt, tokens, nullcontext()), "kept": kept}
        finally:
            snapkv.choose = choose


class Child:
    """kvpress in its own interpreter."""

    def __init__(self, python: str, folder: str):
        self.process = subprocess.Popen(
            [python, __file__, "--child", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **question: Any) -> Any:
        print(json.dumps(question), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("kvpress's side ended; its messages stand above")
        return json.loads(line)


def child(folder: str) -> None:
    """In kvpress's environment: one answer a line."""
    from importlib.metadata import version

    import kvpress
    from transformers import DynamicCache

    class Noting(kvpress.SnapKVPress):
        """Also compresses the positions themselves, and so tells which of them are kept."""

        def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Any:
            place = torch.arange(keys.shape[2], dtype=values.dtype)[:, None].expand_as(values)
            kept.extend(super().compress(module, hidden, keys, place, *rest)[1][0, ..., 0].long().tolist())
            return super().compress(module, hidden, keys, values, *rest)

    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    for line in sys.stdin:
        question = json.loads(line)
        if question["what"] == "versions":
            answer: Any = ", ".join(
                f"{name} {version(name)}" for name in ("kvpress", "torch", "transformers")
            )
        else:
            prompt, tokens = question["prompt"], question["tokens"]
            count = int(len(prompt) * KEEP + 1e-6) + WINDOW
            kept: list[list[int]] = []
            options = {
                "compression_ratio": 1 - (count + 0.5) / len(prompt),
                "window_size": WINDOW,
                "kernel_size": KERNEL,
            }
            with Noting(**options)(model), torch.no_grad():
                model(torch.tensor([prompt]), past_key_values=DynamicCache())
            press = kvpress.SnapKVPress(**options)
            answer = timed(model, DynamicCache(), prompt, tokens, press(model)) | {"kept": kept}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    elif len(sys.argv) < 2:
        raise SystemExit(__doc__)
    else:
        main(sys.argv[1], *map(int, sys.argv[2:]))
