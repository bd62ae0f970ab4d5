"""A causal language model as methods use it: embeddings in, hidden states out, a cache that forks.

Shapes: B rows, T new positions, S cached plus new positions, D width, V vocabulary, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from quietreasoning.backbone.config import BackboneConfig
from quietreasoning.backbone.new_rows import NAME, blended
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.workspace import Trace, WorkspaceForCausalLM
from quietreasoning.workspace.cache import WorkspaceCache


@dataclass(frozen=True)
class Past:
    """What the model has read: its cache, which positions are real, and how many there are."""

    cache: Cache | WorkspaceCache
    valid_BS: Tensor
    length_B: Tensor

    def fork(self) -> Past:
        """A copy that can grow on its own; the tensors are shared, the cache never writes in place.

        UserError for a cache of `Backbone.caching` that does."""
        self.refuse_in_place("goes on from one prompt in more than one way")
        cache = copy.copy(self.cache)
        if isinstance(cache, WorkspaceCache):
            return Past(cache, self.valid_BS, self.length_B)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return Past(cache, self.valid_BS, self.length_B)

    def refuse_in_place(self, what: str) -> None:
        """UserError for what needs a cache that is never written in place."""
        if not isinstance(self.cache, DynamicCache | WorkspaceCache):
            raise UserError(f"{what}, which a compressed key/value cache cannot follow: its bytes stand once")


@dataclass(frozen=True)
class States:
    hidden_BTD: Tensor  # last hidden states, after the final norm: what the head reads
    past: Past | None
    layers_LBTD: Tensor | None = None  # states after every block, where asked for
    trace: Trace | None = None  # of a workspace model, where asked for


@dataclass(frozen=True)
class Call:
    """One forward as the doctor sees it."""

    role_BT: Tensor
    ids_BT: Tensor | None  # None where the input was embeddings
    hidden_BTD: Tensor


class Backbone(nn.Module):
    """A causal language model as methods use it."""

    def __init__(self, model: nn.Module, config: BackboneConfig, identity: dict[str, str]):
        super().__init__()
        self.model = model
        self.tune = config.tune
        self.identity = identity
        self.width: int = model.get_input_embeddings().embedding_dim
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.num_layers: int = model.config.num_hidden_layers
        self.context: int = context_of(model.config)
        self.sliding = "sliding_attention" in layer_types(model.config)
        self.is_workspace = isinstance(model, WorkspaceForCausalLM)
        self._taps: list[list[Call]] = []
        self._make_cache: Callable[[], Cache] | None = None
        self._learns = frozenset(name for name, p in model.named_parameters() if p.requires_grad)

    @property
    def borrowed(self) -> tuple[str, ...]:
        """State-dict keys that stand, unchanged, in the model folder this backbone came from."""
        if self.tune == "full" or "path" not in self.identity:
            return ()
        return tuple(key for key in self.state_dict() if "lora_" not in key and not key.endswith(f".{NAME}"))

    def thaw(self) -> None:
        """What may learn by `backbone.tune` may again, whatever a method before has frozen."""
        for name, p in self.model.named_parameters():
            p.requires_grad_(name in self._learns)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings [B, T, D]; IGNORE reads as token 0 and must be masked by its role."""
        return self.model.get_input_embeddings()(ids_BT.clamp(min=0))

    def blend(self, weights: Tensor) -> Tensor:
        """Embedding of a distribution over tokens, [..., V] -> [..., D]; that of a sure one is `embed`'s."""
        table = self.model.get_input_embeddings()
        scale = getattr(table, "embed_scale", 1.0)  # some families scale in the look-up
        return blended(table, weights) * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self.model.get_output_embeddings()(hidden.to(self.model.dtype))

    def forward(
        self,
        inputs: Tensor,
        role_BT: Tensor,
        past: Past | None = None,
        *,
        keep: bool = False,
        mutual: int = 0,
        layers: bool = False,
        seen_BTS: Tensor | None = None,
        position_BT: Tensor | None = None,
        starts_BT: Tensor | None = None,
        trace: bool = False,
    ) -> States:
        """Read token ids [B, T] or embeddings [B, T, D], in whatever precision, after `past`.

        keep: return a `past` that includes the new positions; always so when `past` is given, which
        then grows in place (fork it first to keep the old one).
        mutual: the first so many new positions see each other in both directions; the rest is causal.
        layers: also return the states of all layers.
        seen_BTS, position_BT: a mask of one's own, which cached and new columns each new one attends to, and
        the positions that go with it (see `tree.py`); UserError where attention takes none.
        starts_BT, trace: of a workspace model alone: where a chunk begins, and whether to keep what the
        workspace did.
        """
        ids_BT = None if inputs.is_floating_point() else inputs
        embeds_BTD = inputs.to(self.model.dtype) if ids_BT is None else self.embed(ids_BT)
        if past is None and keep:
            past = self._empty_past(len(role_BT), role_BT.device)
        valid_BT = role_BT != Role.PAD
        valid_BS = valid_BT if past is None else torch.cat([past.valid_BS, valid_BT], 1)
        shared = {
            "inputs_embeds": embeds_BTD,
            "past_key_values": None if past is None else past.cache,
            "use_cache": past is not None,
            "output_hidden_states": layers,
        }
        if past is not None and (seen_BTS is not None or mutual):
            past.refuse_in_place("reads a prompt by a mask of its own")
        if seen_BTS is not None:
            self.refuse_own_mask()
        if self.is_workspace:
            if mutual:
                raise UserError("attend=full needs attention in both directions; a workspace model has none")
            output = self.model.base_model(attention_mask=valid_BS, starts=starts_BT, trace=trace, **shared)
        else:
            if position_BT is None:
                start_B = 0 if past is None else past.length_B[:, None]
                position_BT = (start_B + valid_BT.cumsum(1) - 1).clamp(min=0)
            if mutual:
                seen_BTS = self._mutual(valid_BS, embeds_BTD.shape[1], mutual)
            mask = valid_BS if seen_BTS is None else additive(seen_BTS, embeds_BTD.dtype)
            output = self.model.base_model(attention_mask=mask, position_ids=position_BT, **shared)
        hidden_BTD = output.last_hidden_state
        for tap in self._taps:
            tap.append(Call(role_BT, ids_BT, hidden_BTD))
        if past is not None:
            past = Past(past.cache, valid_BS, past.length_B + valid_BT.sum(1))
        return States(
            hidden_BTD, past, torch.stack(output.hidden_states[1:]) if layers else None, output.get("trace")
        )

    @contextmanager
    def tap(self) -> Iterator[list[Call]]:
        """Record every forward inside the block."""
        calls: list[Call] = []
        self._taps.append(calls)
        try:
            yield calls
        finally:
            self._taps.remove(calls)

    @contextmanager
    def caching(self, make: Callable[[], Cache]) -> Iterator[None]:
        """Inside, every text that is read with no past goes into a cache that `make` gives."""
        if self.is_workspace:
            raise UserError(
                "a workspace model keeps its keys and values with its slots, in a cache of its own kind"
            )
        before, self._make_cache = self._make_cache, make
        try:
            yield
        finally:
            self._make_cache = before

    def _empty_past(self, rows: int, device: torch.device) -> Past:
        if self._make_cache is not None:
            cache = self._make_cache()
        else:
            cache = WorkspaceCache() if self.is_workspace else DynamicCache(config=self.model.config)
        valid_BS = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        return Past(cache, valid_BS, torch.zeros(rows, dtype=torch.long, device=device))

    def refuse_own_mask(self) -> None:
        """UserError where attention does not follow a mask of one's own in every layer."""
        if not (self.is_workspace or self.sliding):
            return
        name = next((kind for kind in ("path", "workspace", "scratch") if kind in self.identity), "path")
        reason = (
            "a workspace model has none" if self.is_workspace else "its sliding windows drop what is read"
        )
        raise UserError(
            f"backbone.{name}={self.identity.get(name, type(self.model).__name__)}: thoughts that branch off "
            f"a text need full attention in every layer, and {reason}. Choose a Llama, Qwen3 or SmolLM3, or "
            "a Mistral whose sliding_window is null."
        )

    def _mutual(self, valid_BS: Tensor, new: int, mutual: int) -> Tensor:
        """Who sees whom [B, T, S]: causal, but the first `mutual` new positions also see each other."""
        if self.sliding:
            raise UserError("attend=full needs a backbone without sliding windows; use attend=causal")
        cached = valid_BS.shape[1] - new
        at = torch.arange(new, device=valid_BS.device)
        seen_TT = (at[None] <= at[:, None]) | ((at < mutual)[None] & (at < mutual)[:, None])
        seen_TS = torch.cat([seen_TT.new_ones(new, cached), seen_TT], 1)
        own_TS = torch.cat([seen_TT.new_zeros(new, cached), torch.eye(new, device=at.device).bool()], 1)
        return (seen_TS & valid_BS[:, None]) | own_TS  # padding sees itself: no row without a key


def additive(seen_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask [B, 1, T, S] every attention takes: finite, so that low precision makes no NaN of it."""
    mask_BTS = torch.zeros_like(seen_BTS, dtype=dtype)
    return mask_BTS.masked_fill(~seen_BTS, torch.finfo(dtype).min)[:, None]


def last_hidden(states: States) -> Tensor:
    """The state of the last column [B, D]: with left padding, the end of every prompt."""
    return states.hidden_BTD[:, -1]


def role_of(ids_BT: Tensor, role: Role) -> Tensor:
    """`role` where a token stands, PAD where IGNORE does."""
    return torch.where(ids_BT == IGNORE, int(Role.PAD), int(role))


def layer_types(config) -> tuple[str, ...]:
    """Attention kinds by layer; families that say nothing are full attention, or slide if a window is set."""
    values = config.to_dict()
    kinds = values.get("layer_types")
    if kinds:
        return tuple(kinds)
    slides = values.get("sliding_window") and values.get("use_sliding_window", True)
    return ("sliding_attention",) if slides else ("full_attention",)


def context_of(shape) -> int | None:
    """The longest sequence, under whatever name; None where the family names none."""
    name = shape.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return shape.to_dict().get(name)
