"""`python benchmarks/workspace_generate.py [tokens] [rows] [rounds]`: generation beside the trunk's own.

A Llama of the `tiny` preset's shape, and a workspace model warm-started from its weights: with no module on,
with the workspace, and with everything. All write the same number of greedy tokens after the same prompt, in
turns, by `generate`, on one thread; CPU seconds are counted.
Fails if a workspace model, whose fresh modules are silent, says other than the trunk.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM
from quietreasoning.workspace.warm_start import config_for_trunk, take_trunk

ARMS = {"nothing on": (), "workspace": ("workspace",), "all": ("workspace", "pkm", "adapters", "ssm")}
PROMPT = 96


def main(tokens: int = 256, rows: int = 1, rounds: int = 5) -> None:
    torch.set_num_threads(1)
    print(
        f"cpu, {torch.get_num_threads()} thread(s), torch {torch.__version__}; {rows} row(s), {tokens} tokens"
    )
    trunk = llama()
    models: dict[str, nn.Module] = {"trunk": trunk, **{name: around(trunk, on) for name, on in ARMS.items()}}
    prompt = torch.randint(3, 512, (rows, PROMPT), generator=torch.Generator().manual_seed(1))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    said: dict[str, Tensor] = {}
    for turn in range(rounds + 1):  # the first warms up
        for name, model in models.items():
            began = time.process_time()
            said[name] = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False
            )
            if turn:
                seconds[name].append(time.process_time() - began)
    for name in models:
        ratios = [trunk / own for trunk, own in zip(seconds["trunk"], seconds[name], strict=True)]
        print(
            f"{name:<12} median {rows * tokens / statistics.median(seconds[name]):7.1f} tokens/s, "
            f"{statistics.median(ratios):.2f} x the trunk's ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    for name, text in said.items():
        assert text.shape == (rows, PROMPT + tokens) and torch.equal(text, said["trunk"]), (
            f"{name} says otherwise"
        )


def llama() -> LlamaForCausalLM:
    """Of the preset's shape; its weights are drawn wide, so that rounding decides no token."""
    c = WorkspaceConfig.preset("tiny")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        max_position_embeddings=c.max_position_embeddings,
        initializer_range=0.1,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(shape).eval()


def around(trunk: LlamaForCausalLM, features: tuple[str, ...]) -> WorkspaceForCausalLM:
    model = WorkspaceForCausalLM(config_for_trunk(trunk.config, "tiny", {"features": features}))
    take_trunk(model, trunk)
    return model.eval()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
