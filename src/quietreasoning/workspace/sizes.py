"""`python -m quietreasoning.workspace.sizes [PRESET] [TOKENS]`: what every part weighs and computes.

Nothing is allocated: models are built on the meta device, and FLOPs are what torch.utils.flop_counter sees of
the model's own `read`, called chunk by chunk over one sequence. The counter knows matrix products alone, of
the trunk and of all else alike; the rows a memory reads are added by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from quietreasoning.workspace.causal_lm import WorkspaceForCausalLM
from quietreasoning.workspace.config import WorkspaceConfig
from quietreasoning.workspace.layout import Column, lay_out
from quietreasoning.workspace.model import Trace, WorkspaceModel

EVERYTHING = ("workspace", "pkm", "adapters", "ssm")
PARTS: dict[str, Callable[[str], bool]] = {  # part -> is a parameter of this name in it? the first wins
    "adapters": lambda name: ".adapters." in name,
    "embeddings and head": lambda name: name.startswith(("model.embed_tokens", "lm_head")),
    "trunk blocks": lambda name: name.startswith(("model.blocks", "model.norm")),
    "slots": lambda name: name.startswith("model.workspace"),
    "readers of slots": lambda name: name.startswith("model.readers"),
    "router": lambda name: name.startswith("model.router"),
    "state-space experts": lambda name: name.startswith("model.experts"),
    "product-key values": lambda name: name.startswith("model.table.values"),
    "product-key keys": lambda name: name.startswith("model.table"),
    "product-key readers": lambda name: name.startswith("model.memory"),
}
DENSE = ("embeddings and head", "trunk blocks")


def on_meta(config: WorkspaceConfig) -> WorkspaceForCausalLM:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return WorkspaceForCausalLM(config).eval()


def parameters(model: WorkspaceForCausalLM) -> dict[str, int]:
    """Part -> its parameters; values held as bytes count as what they stand for."""
    found = dict.fromkeys((*DENSE, *(part for part in PARTS if part not in DENSE)), 0)
    for name, p in model.named_parameters():
        found[next(part for part, holds in PARTS.items() if holds(name))] += p.numel()
    if model.model.table.is_int8:
        found["product-key values"] += model.model.table.values_int8.numel()
    return found


def working(model: WorkspaceForCausalLM) -> int:
    """Parameters that a token is multiplied with, given what is on; of the adapters, those of one choice."""
    c, own = model.config, parameters(model)
    found = own["trunk blocks"] + c.vocab_size * c.hidden_size
    if c.has("workspace"):
        found += own["slots"] + own["readers of slots"] + own["router"]
    if c.has("ssm"):
        found += own["state-space experts"]
    if c.has("pkm"):
        found += own["product-key keys"] + own["product-key readers"]
    if c.has("adapters"):
        found += own["adapters"] * c.adapters_active // c.adapters
    return found


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs a token of one sequence; a multiplication and its addition are two."""

    dense: float  # trunk and head, read in the same chunks
    everything: float  # all modules on, every inner step computed: the forward pass of training
    step: float  # what one inner step adds
    steps: int  # inner steps of `everything`
    causal: float  # trunk and head where attention counts every pair of tokens, masked or not

    def at(self, mean_steps: float) -> float:
        """All modules on, and so many inner steps executed, as in inference."""
        return self.everything - (self.steps - mean_steps) * self.step

    def times_dense(self, mean_steps: float | None = None, *, all_pairs: bool = False) -> float:
        """Over the dense trunk. all_pairs: with the attention of `causal` on both sides."""
        own = self.everything if mean_steps is None else self.at(mean_steps)
        return (own - self.dense + self.causal) / self.causal if all_pairs else own / self.dense


def flops(model: WorkspaceForCausalLM, tokens: int = 8192) -> Flops:
    """Of a model on the meta device; `tokens` must fill its chunks."""
    chunk, steps = model.config.chunk_size, model.config.inner_steps
    if tokens % chunk or tokens < 3 * chunk:
        raise ValueError(f"tokens={tokens}: give a multiple of chunk_size={chunk}, three chunks or more")
    dense = sampled_flops(model, (), tokens)
    everything = sampled_flops(model, EVERYTHING, tokens)
    updates = tokens // chunk - 1
    whole = column_flops(model, (), tokens, None)[0]
    return Flops(dense, everything, step_flops(model) * updates / tokens, steps, whole / tokens)


def sampled_flops(model: WorkspaceForCausalLM, features: tuple[str, ...], tokens: int) -> float:
    """A token's share of all columns, of which three are run: from the second on, each costs as much more
    than the one before as the third costs more than the second, for its attention sees a chunk more."""
    first, second, third = column_flops(model, features, tokens, model.config.chunk_size, most=3)
    rest = tokens // model.config.chunk_size - 1
    return (first + rest * second + (third - second) * rest * (rest - 1) // 2) / tokens


@torch.no_grad()
def column_flops(
    model: WorkspaceForCausalLM,
    features: tuple[str, ...],
    tokens: int,
    chunk: int | None,
    most: int | None = None,
) -> list[int]:
    """FLOPs of each column of one sequence, or of the first `most`; with the head and every inner step."""
    own, before = model.model, model.config.features
    own.set_features(features)
    columns = lay_out(torch.ones(1, tokens, dtype=torch.bool), chunk).columns[:most]
    flat_ND, state, found = torch.empty(tokens, model.config.hidden_size, device="meta"), None, []
    trace = Trace(torch.zeros(1, dtype=torch.long), columns)  # asking for one computes every inner step
    with AllTrue():
        for column in columns:
            with FlopCounterMode(display=False) as counter:
                state = state or own.begin(1, flat_ND)
                states, state = own.read(state, [shapes_of(column)], flat_ND, trace)
                model.lm_head(states[-1])
            found.append(counter.get_total_flops() + read_flops(own, column.index_RN.numel()))
    own.set_features(before)
    return found


def read_flops(model: WorkspaceModel, tokens: int) -> int:
    """Of the weighted sums of value rows, an operation the counter does not know."""
    c = model.config
    reads = len(c.pkm_blocks) * c.pkm_heads * c.pkm_topk if c.has("pkm") else 0
    return 2 * tokens * reads * c.pkm_value_dim


@torch.no_grad()
def step_flops(model: WorkspaceForCausalLM) -> int:
    """Of one inner step of the slots on a full chunk."""
    c, own = model.config, model.model.workspace
    tokens_RNW = torch.empty(1, c.chunk_size, c.hidden_size, device="meta")
    valid_RN = torch.ones(1, c.chunk_size, dtype=torch.bool, device="meta")
    found = []
    for own.steps in (max(1, c.inner_steps - 1), c.inner_steps):  # the last leaves it as it was
        with FlopCounterMode(display=False) as counter:
            own(own.start(1), tokens_RNW, valid_RN, every_step=True)
        found.append(counter.get_total_flops())
    return found[1] - found[0]


class AllTrue(TorchFunctionMode):
    """Tensors on the meta device hold no values: whether something is there or wanted is answered by yes."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


def shapes_of(column: Column) -> Column:
    """The column on the meta device; whether it begins a chunk stays known."""
    moved = {name: getattr(column, name).to("meta") for name in ("index_RN", "valid_RN", "position_RN")}
    return replace(column, **moved)


def describe(config: WorkspaceConfig, tokens: int = 8192) -> str:
    """Two tables as text: parameters by part, FLOPs by module."""
    model = on_meta(config)
    parts, found = parameters(model), flops(model, tokens)
    dense, total = sum(parts[name] for name in DENSE), sum(parts.values())
    lines = [f"{name:<28}{count:>16,}{count / total:>8.1%}" for name, count in parts.items()]
    lines += [f"{'dense: ' + ' + '.join(DENSE):<36}{dense:>16,}", f"{'total':<36}{total:>16,}", ""]
    lines += [f"forward GFLOP a token at {tokens:,} tokens, in chunks of {config.chunk_size}"]
    lines += [f"{'dense':<28}{found.dense / 1e9:>16.3f}"]
    below = found.dense
    for number in range(1, len(EVERYTHING) + 1):
        last = EVERYTHING[number - 1]
        on = sampled_flops(model, EVERYTHING[:number], tokens)
        lines += [f"{'+ ' + last:<28}{(on - below) / 1e9:>16.3f}{on / found.dense:>8.3f} x dense"]
        below = on
    mean = config.mean_steps
    lines += [
        f"training, all {found.steps} inner steps: {found.times_dense():.3f} x dense; "
        f"inference, {mean} steps: {found.times_dense(mean):.3f} x",
        f"if attention counted every pair of tokens, dense {found.causal / 1e9:.3f}, "
        f"training {found.times_dense(all_pairs=True):.3f} x, "
        f"inference {found.times_dense(mean, all_pairs=True):.3f} x",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    preset, length = [*sys.argv[1:], *("3b", "8192")[len(sys.argv) - 1 :]]
    print(describe(WorkspaceConfig.preset(preset), int(length)))
