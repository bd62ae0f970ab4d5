"""States of wanted layers of a causal language model, read by hooks in one forward; no other is kept.

`i` is the state after i blocks: 0 what the first block reads, L (or `pre_norm`) what the final norm reads.
`last` is what the head reads, after that norm. In transformers' own `hidden_states` the entry L is `last`,
and the state before the norm is nowhere. Shapes: B rows, T positions, D width, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from quietreasoning.backbone.model import Backbone
from quietreasoning.config import UserError
from quietreasoning.workspace import WorkspaceForCausalLM

LAST, PRE_NORM = "last", "pre_norm"
Layer = int | str


class _Enough(Exception):
    """Every wanted state is there: the blocks after the deepest need not run."""


@torch.no_grad()
def read_states(
    backbone: Backbone, ids_BT: Tensor, role_BT: Tensor, layers: Sequence[Layer]
) -> dict[Layer, Tensor]:
    """States [B, T, D] of each wanted layer in one teacher-forced forward, in the model's precision.

    Mask and position ids come from `role_BT` (see `Backbone.forward`), so a row reads the same wherever its
    padding stands; what stands at padding itself has no meaning. Generation is no source of states: it never
    forwards the last token it wrote. Blocks above the deepest wanted layer are not run, nor is the head. The
    model should be in eval mode. Raises UserError where there is no such layer.
    """
    with watch(backbone.model, layers, stop=True) as seen, suppress(_Enough):
        backbone(ids_BT, role_BT)
    return {layer: seen[layer] for layer in layers}


@contextmanager
def watch(model: nn.Module, layers: Sequence[Layer], stop: bool = False) -> Iterator[dict[Layer, Tensor]]:
    """Inside the block every forward of `model` leaves the states of these layers here, gradients and all.

    The dictionary holds those of the latest forward alone. stop: end each forward by an exception once all
    are there; `read_states` catches it.
    """
    blocks = blocks_of(model)
    depths = {layer: _depth(layer, len(blocks)) for layer in layers}
    seen: dict[Layer, Tensor] = {}
    deepest = max(depths.values(), default=0)

    def keep(depth: int, state: Tensor) -> None:
        seen.update({layer: state for layer, wanted in depths.items() if wanted == depth})
        if stop and depth == deepest:
            raise _Enough

    handles = []
    for depth in set(depths.values()):
        if depth == 0:
            handles.append(blocks[0].register_forward_pre_hook(_on_entry(keep), with_kwargs=True))
        elif depth <= len(blocks):
            handles.append(blocks[depth - 1].register_forward_hook(_on_exit(keep, depth)))
        else:
            handles.append(model.get_decoder().register_forward_hook(_on_end(keep, depth)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def rewriting(model: nn.Module, layer: Layer, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block every forward of `model` goes on with `change(state)` in place of this layer's state.

    change: [B, T, D] -> the same shape and precision.
    """
    blocks = blocks_of(model)
    depth = _depth(layer, len(blocks))

    def on_entry(block, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    def on_exit(block, args, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    def on_end(base, args, output):
        output.last_hidden_state = change(output.last_hidden_state)
        return output

    if depth == 0:
        handle = blocks[0].register_forward_pre_hook(on_entry, with_kwargs=True)
    elif depth <= len(blocks):
        handle = blocks[depth - 1].register_forward_hook(on_exit)
    else:
        handle = model.get_decoder().register_forward_hook(on_end)
    try:
        yield
    finally:
        handle.remove()


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The model's decoder blocks in order; UserError where the family keeps them in no list of its own."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists or isinstance(model, WorkspaceForCausalLM):  # which runs its blocks chunk by chunk
        raise UserError(
            f"{type(model).__name__} runs no list of {depth} blocks once a forward, to read states between. "
            "Choose a decoder such as Llama, Qwen, Mistral or SmolLM."
        )
    return lists[0]


def _depth(layer: Layer, blocks: int) -> int:
    """How many blocks stand before the state; the final norm counts as one more."""
    named = {PRE_NORM: blocks, LAST: blocks + 1}
    if layer in named:
        return named[layer]
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= blocks:
        raise UserError(
            f"layer={layer!r}: this model has {blocks} blocks. Choices: 0 to {blocks} (the state after so "
            f"many blocks), {PRE_NORM}, {LAST}."
        )
    return layer


def _on_entry(keep):
    def hook(block, args, kwargs):
        keep(0, args[0] if args else kwargs["hidden_states"])

    return hook


def _on_exit(keep, depth):
    def hook(block, args, output):
        keep(depth, output[0] if isinstance(output, tuple) else output)  # older families give tuples

    return hook


def _on_end(keep, depth):
    def hook(base, args, output):
        keep(depth, output[0])

    return hook
