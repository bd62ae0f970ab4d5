"""A model without adapter compute whose logits are those of the adapters at fixed weights.

What the router chooses chunk by chunk cannot be merged; one choice for every chunk can. LoRA adds to a
weight (arXiv 2106.09685, section 4.1); IA3 scales its rows, keys and values, or the columns that read what it
scales, the feed-forward width (arXiv 2205.05638, section 3.3).

Shapes: E adapters, O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.nn.trunk import Block
from quietreasoning.workspace.causal_lm import WorkspaceForCausalLM
from quietreasoning.workspace.config import WorkspaceConfig


@torch.no_grad()
def merge_adapters(
    model: WorkspaceForCausalLM, weights: Sequence[float] | None = None
) -> WorkspaceForCausalLM:
    """The same model with every adapter at its weight, uniform if none are given, and no bank left.

    Weights that do not change are shared with `model`. UserError where nothing can be merged.
    """
    config, number = model.config, model.config.adapters
    if not config.has("adapters"):
        raise UserError("this model uses no adapters: there is nothing to merge; export it as it is")
    if config.adapter_fusion:
        raise UserError("adapter_fusion weighs adapters token by token, which no fixed weight can stand for")
    weights = [1 / number] * number if weights is None else list(weights)
    if len(weights) != number or not all(map(math.isfinite, weights)):
        raise UserError(f"weights={weights}: give one finite number for each of the {number} adapters")
    off = tuple(name for name in config.features if name != "adapters")
    shape = WorkspaceConfig.from_dict(config.to_dict() | {"adapters": 0, "features": off})
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if ".adapters." not in name  # the banks, and the router's say on them
    }
    for number, block in enumerate(model.model.blocks):
        for name, tensor in merged(block, torch.tensor(weights)).items():
            state[f"model.blocks.{number}.{name}"] = tensor
    with torch.device("meta"):
        new = WorkspaceForCausalLM(shape)
    new.load_state_dict(state, assign=True)
    new.tie_weights()
    new.model.set_features(off)
    return new.train(model.training)


def merged(block: Block, weights_E: Tensor) -> dict[str, Tensor]:
    """Weights and biases of a block that its adapters change, at fixed weights."""
    own, found = block.adapters, {}
    weights_E = weights_E.to(block.qkv.weight.device)
    for name in ("qkv", "out", "gate_up", "down"):
        weight_OI = getattr(block, name).weight
        found[f"{name}.weight"] = weight_OI.float() + getattr(own, name).merged(weights_E)
    if own.keys is not None:
        scale_O = torch.cat([own.keys.merged(weights_E), own.values.merged(weights_E)])
        scale_O = torch.cat([scale_O.new_ones(block.heads * block.head_dim), scale_O])
        found["qkv.weight"] = found["qkv.weight"] * scale_O[:, None]
        if block.qkv.bias is not None:
            found["qkv.bias"] = block.qkv.bias.float() * scale_O
        found["down.weight"] = found["down.weight"] * own.hidden.merged(weights_E)
    return {name: tensor.to(block.qkv.weight.dtype) for name, tensor in found.items()}
