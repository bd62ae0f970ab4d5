"""Between a model and its compressed cache: hooks that tell the cache what attention is about to ask.

transformers hands a cache keys and values, never queries. A hook before each attention module works out the
queries of the last few positions from the module's own projections (as kvpress does, at the end of the
prompt), and puts a mask of what the cache really holds in the place of the model's. Nothing of the
model is changed, and the hooks leave with the context.

Shapes: B rows, H heads, T new positions, N stored tokens, C head width, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quietreasoning.config import UserError
from quietreasoning.memory.kv_cache.cache import CompressedCache
from quietreasoning.memory.kv_cache.layer import CompressedLayer, Seen
from quietreasoning.memory.kv_cache.settings import KVCacheSettings

ATTENTION = ("sdpa", "eager")


@contextmanager
def attach(model: PreTrainedModel, settings: KVCacheSettings | None = None) -> Iterator[CompressedCache]:
    """`with attach(model, settings) as cache: model.generate(..., past_key_values=cache)`.

    Raises UserError for a model whose attention it cannot follow.
    """
    with caches(model, settings or KVCacheSettings()) as make:
        yield make()


@contextmanager
def caches(model: PreTrainedModel, settings: KVCacheSettings) -> Iterator[Callable[[], CompressedCache]]:
    """The same for many prompts: inside, each call of what this yields makes a cache for the model."""
    config = model.config.get_text_config(decoder=True)
    kind = config._attn_implementation
    if kind not in ATTENTION:
        raise UserError(
            f"attn_implementation={kind!r}: a compressed cache needs one of {', '.join(ATTENTION)}"
        )
    made: WeakSet[CompressedCache] = WeakSet()

    def make() -> CompressedCache:
        cache = CompressedCache(settings, config)
        made.add(cache)
        return cache

    hooks = []
    try:
        for module in attention_modules(model, make()):
            hooks.append(module.register_forward_pre_hook(_before(made, kind), with_kwargs=True))
        yield make
    finally:
        for hook in hooks:
            hook.remove()


def attention_modules(model: PreTrainedModel, cache: CompressedCache) -> list[nn.Module]:
    """The attention of each compressed layer; UserError where there is not exactly one of a known shape."""
    found: dict[int, list[nn.Module]] = {number: [] for number in cache.numbers}
    for module in model.modules():
        if all(hasattr(module, name) for name in ("layer_idx", "head_dim", "q_proj", "k_proj")):
            found.get(module.layer_idx, []).append(module)
    for number, modules in found.items():
        capped = any(getattr(m, "attn_logit_softcapping", None) or hasattr(m, "sinks") for m in modules)
        if len(modules) != 1 or capped:
            raise UserError(
                f"{type(model).__name__}: layer {number} has no attention like Llama's (q_proj and k_proj, a "
                "plain softmax), so its queries cannot be told. Use a model like Llama, Qwen or SmolLM3"
            )
    return [modules[0] for modules in found.values()]


def _before(made: WeakSet[CompressedCache], kind: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, CompressedCache) or cache not in made:
            return None
        layer = cache.layers[module.layer_idx]
        hidden_BTD = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        mask, first = kwargs.get("attention_mask"), layer.store is None
        valid_BT = new_tokens(mask, hidden_BTD)
        if first and not bool(valid_BT[:, -1].all()):
            raise UserError("padding on the right of a prompt: the last token votes; pad on the left")
        with cache.clock.runs("select"):
            told = seen(module, layer, hidden_BTD, valid_BT, kwargs)
        stored, real_BN = layer.expect(told)
        if not first:
            kwargs["attention_mask"] = mask_of(stored, real_BN, mask, hidden_BTD, as_float=kind == "eager")
        return args, kwargs

    return hook


def seen(
    module: nn.Module, layer: CompressedLayer, hidden_BTD: Tensor, valid_BT: Tensor, kwargs: dict[str, Any]
) -> Seen:
    """What the cache is told: queries only where it asks for them."""
    if not layer.wants_query:
        return Seen(valid_BT)
    width = min(layer.settings.window, hidden_BTD.shape[1]) if layer.store is None else 1
    rope = kwargs.get("position_embeddings") if getattr(module, "use_rope", True) else None
    query = project(module, "q", hidden_BTD[:, -width:], rope)
    key = project(module, "k", hidden_BTD[:, -1:], rope)
    return Seen(valid_BT, query, key, getattr(module, "scaling", module.head_dim**-0.5))


def project(module: nn.Module, which: str, hidden_BWD: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    """Queries or keys [B, H, W, C] of the last positions, as the module itself makes them."""
    x = getattr(module, f"{which}_proj")(hidden_BWD)
    norm = getattr(module, f"{which}_norm", None)
    if (
        norm is not None and norm.weight.shape[-1] == x.shape[-1] != module.head_dim
    ):  # over all heads, as OLMo 2
        x, norm = norm(x), None
    x = x.unflatten(-1, (-1, module.head_dim))
    x_BHWC = (x if norm is None else norm(x)).transpose(1, 2)
    if rope is None:
        return x_BHWC
    cos, sin = (part[:, None, -hidden_BWD.shape[1] :] for part in rope)
    turned, rest = x_BHWC[..., : cos.shape[-1]], x_BHWC[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)


def new_tokens(mask: Tensor | None, hidden_BTD: Tensor) -> Tensor:
    """Which of the new tokens are real [B, T]: those that the last one may look at."""
    rows, new = hidden_BTD.shape[:2]
    if mask is None:
        return torch.ones(rows, new, dtype=torch.bool, device=hidden_BTD.device)
    return _allowed(mask)[:, 0, -1, -new:].expand(rows, -1)


def mask_of(
    stored: int, real_BN: Tensor | None, mask: Tensor | None, hidden_BTD: Tensor, *, as_float: bool
) -> Tensor | None:
    """[B, 1, T, N + T]: every real stored token, and of the new ones what the model's own mask allows."""
    rows, new = hidden_BTD.shape[:2]
    if new == 1 and real_BN is None and (mask is None or bool(_allowed(mask)[..., -1].all())):
        return None
    if mask is None:
        own = torch.ones(new, new, dtype=torch.bool, device=hidden_BTD.device).tril()[None, None]
    else:
        own = _allowed(mask)[..., -new:]
    old = own.new_ones(rows, stored) if real_BN is None else real_BN
    allowed = torch.cat([old[:, None, None].expand(-1, -1, new, -1), own.expand(rows, 1, -1, -1)], -1)
    if not as_float:
        return allowed
    least = torch.finfo(hidden_BTD.dtype).min
    return torch.zeros_like(allowed, dtype=hidden_BTD.dtype).masked_fill(~allowed, least)


def _allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask >= 0
