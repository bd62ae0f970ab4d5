"""Query and key projections of a language model's attention: found, watched in training, and shrunk.

Serves `optim/qk_clip.py`. Logits are read where transformers attends, after rotary, norms and cache, by
putting a watcher before its attention functions while a training forward runs; the function is unchanged.
Trained weights shrink in place, rows of the head. Of adapters base and update together shrink: a number a
head, in a buffer, multiplies what the adapted projection gives; the base without adapters stays as it is.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quietreasoning.backbone.model import Backbone
from quietreasoning.config import UserError
from quietreasoning.optim.qk_clip import Heads, QkClip, shrink_rows
from quietreasoning.workspace import WorkspaceForCausalLM

SCALE = "lora_head_scale_H"  # "lora": saved with the adapters, not borrowed with the base
START = "lora_head_start_H"  # the scale when a reference to the weights was last taken
QK_NORM = re.compile(r"^(q|k|qk|query|key)_?(layer)?norm")
Attend = Callable[..., tuple[Tensor, Tensor | None]]


def qk_clip(method: nn.Module, tau: float) -> QkClip | None:
    """A clip of the attention layers in `method`'s backbones whose queries or keys train.

    None, said as a warning, where queries and keys are normalised: their weights do not set the logits.
    Raises UserError where there is nothing to clip.
    """
    where = f"optim.qk_clip.tau={tau:g}"
    models = [m.model for m in method.modules() if isinstance(m, Backbone)]
    attentions = {id(m): m for model in models for m in _attentions(model, where)}
    trained = [m for m in attentions.values() if _trains(m.q_proj) or _trains(m.k_proj)]
    if not trained:
        raise UserError(
            f"{where}: no query or key projection of the backbone trains. Widen train.enable, choose "
            "backbone.tune=full or lora with them among its targets, or set optim.qk_clip=null."
        )
    clipped = [m for m in trained if not any(QK_NORM.match(name) for name, _ in m.named_children())]
    if not clipped:
        warnings.warn(
            f"{where} does nothing: this model normalises queries and keys, which bounds its logits, and "
            "their weights cannot change them",
            stacklevel=2,
        )
        return None
    layers = {id(m): _heads(m, where) for m in clipped}
    return QkClip(list(layers.values()), tau, partial(_watching, layers))


def adopt_scales(method: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make room for the head scales among the tensors of a checkpoint, which a fresh method does not have.

    Whoever loads weights fills them. Those of modules that are not there are left alone.
    """
    modules = dict(method.named_modules())
    for name, tensor in tensors.items():
        owner, _, what = name.rpartition(".")
        if what in (SCALE, START):
            module = modules.get(owner)
            if module is not None and _is_adapted(module):
                _scale_of(module, len(tensor))


@torch.no_grad()
def hold_scales(model: nn.Module) -> None:
    """Remember the present head scales as those of a reference."""
    for module in model.modules():
        if hasattr(module, SCALE):
            getattr(module, START).copy_(getattr(module, SCALE))


def held_scales(model: nn.Module) -> dict[str, Tensor]:
    """Buffers of head scales by name, and what they were when a reference was taken."""
    return {
        f"{name}.{SCALE}": getattr(module, START)
        for name, module in model.named_modules()
        if hasattr(module, SCALE)
    }


@torch.no_grad()
def fold_scales(model: nn.Module) -> None:
    """Multiply head scales into the base weights that adapters were just merged into; scales become 1."""
    for module in model.modules():
        scale_H = getattr(module, SCALE, None)
        if scale_H is not None:
            if not module.merged:
                raise ValueError("merge the adapters first: a scale applies to base and update together")
            shrink_rows(module.get_base_layer(), scale_H)
            scale_H.fill_(1.0)


def _attentions(model: nn.Module, where: str) -> list[nn.Module]:
    """Modules with a query and a key projection of their own."""
    found = [m for m in model.modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")]
    if isinstance(model, WorkspaceForCausalLM) or not found:
        raise UserError(
            f"{where}: {type(model).__name__} has no attention with separate q_proj and k_proj, whose heads "
            "could be clipped. Set optim.qk_clip=null, or choose a family such as Llama, Qwen2 or Mistral."
        )
    return found


def _heads(attention: nn.Module, where: str) -> Heads:
    query, key = attention.q_proj, attention.k_proj
    width = attention.head_dim
    heads, key_heads = query.out_features // width, key.out_features // width
    if heads * width != query.out_features or heads != attention.config.num_attention_heads:
        raise UserError(
            f"{where}: q_proj of {type(attention).__name__} gives more than queries. Set optim.qk_clip=null."
        )
    for projection in (query, key):
        if _trains(projection) and _is_adapted(projection):
            _scale_of(projection, projection.out_features // width)
    first = next(p for m in (query, key) for p in m.parameters() if p.requires_grad and p.ndim == 2)
    return Heads(first, heads, key_heads, _trains(query), _trains(key), partial(_shrink, attention))


def _shrink(attention: nn.Module, query_H: Tensor | None, key_G: Tensor | None) -> None:
    for projection, factors in ((attention.q_proj, query_H), (attention.k_proj, key_G)):
        if factors is not None and _is_adapted(projection):
            getattr(projection, SCALE).mul_(factors)
        elif factors is not None:
            shrink_rows(projection, factors)


def _trains(projection: nn.Module) -> bool:
    return any(p.requires_grad and p.ndim == 2 for p in projection.parameters())


def _is_adapted(projection: nn.Module) -> bool:
    return hasattr(projection, "lora_A")


def _scale_of(projection: nn.Module, heads: int) -> None:
    """Give an adapted projection its scales, once."""
    if not hasattr(projection, SCALE):
        device = projection.get_base_layer().weight.device
        for name in (SCALE, START):
            projection.register_buffer(name, torch.ones(heads, device=device))
        projection.register_forward_hook(_scaled)


def _scaled(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook: the scales act with the adapters and are off with them."""
    if projection.disable_adapters:
        return output
    scale_H = getattr(projection, SCALE)
    rows_R = scale_H.repeat_interleave(output.shape[-1] // len(scale_H))
    return (output * rows_R).to(output.dtype)


@contextmanager
def _watching(layers: dict[int, Heads], clip: QkClip) -> Iterator[None]:
    """Inside, forwards that learn tell `clip` their queries and keys."""
    names = ("sdpa", "eager")
    held = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = {name: held.get(name) for name in names}
    for name in names:
        ALL_ATTENTION_FUNCTIONS[name] = partial(_watched, layers, clip, ALL_ATTENTION_FUNCTIONS.get(name))
    try:
        yield
    finally:
        for name, function in before.items():
            if function is None:
                del ALL_ATTENTION_FUNCTIONS[name]
            else:
                ALL_ATTENTION_FUNCTIONS[name] = function


def _watched(
    layers: dict[int, Heads],
    clip: QkClip,
    attend: Attend | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    layer = layers.get(id(module))
    # neither sampling nor a pass with adapters off is what the weights are trained by
    if layer is not None and torch.is_grad_enabled() and not _is_off(module.q_proj):
        scaling = kwargs.get("scaling")
        given = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if given is None else given
        causal = attend is not None and causal and query.shape[2] > 1  # the eager one relies on its mask
        clip.observe(layer, query, key, query.shape[-1] ** -0.5 if scaling is None else scaling, mask, causal)
    attend = attend or sys.modules[type(module).__module__].eager_attention_forward
    return attend(module, query, key, value, mask, **kwargs)


def _is_off(projection: nn.Module) -> bool:
    return _is_adapted(projection) and projection.disable_adapters
