"""The only file that touches the insides of Hugging Face models.

`load_backbone(config)` gives a `Backbone`: embeddings in, last hidden states out, with a cache that
can be forked, so that a method can run its own loops on the same prompt. Latents are embeddings that
are no token ("soft tokens"); 4-D masks and caches are made here and nowhere else.

Shapes: B rows, T new positions, S cached plus new positions, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig as PeftLora
from peft import inject_adapter_in_model
from pydantic import Field, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    PreTrainedConfig,
)

from quietreasoning.config import Settings, UserError
from quietreasoning.contract import IGNORE, Role


class ScratchConfig(Settings):
    """A Llama-shaped model with fresh weights."""

    layers: int = Field(2, ge=1)
    """Transformer blocks."""
    width: int = Field(128, ge=8)
    """Width of the residual stream."""
    heads: int = Field(4, ge=1)
    """Attention heads; must divide the width."""
    kv_heads: int | None = Field(None, ge=1)
    """Key/value heads; null = as many as heads."""
    mlp: int | None = Field(None, ge=8)
    """Width of the SwiGLU layer; null = 8/3 of the width, rounded up to a multiple of 32."""
    context: int = Field(512, ge=8)
    """Longest sequence, in positions."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    tie: bool = False
    """Share the embedding matrix with the head."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _divides(self) -> ScratchConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


class LoraConfig(Settings):
    """Low-rank adapters (arXiv 2106.09685), by peft."""

    rank: int = Field(16, ge=1)
    """Rank of each update."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers to adapt."""


class BackboneConfig(Settings):
    """Which causal language model carries the method, and what of it is trained."""

    path: str | None = None
    """A model folder or hub id; null = fresh weights of the shape in `scratch`."""
    revision: str | None = None
    """Commit or tag of a hub id; a folder has none."""
    scratch: ScratchConfig = ScratchConfig()
    """Shape of the fresh model, used where `path` is null."""
    tune: Literal["full", "lora", "frozen"] = "full"
    """Train all weights, adapters only, or none."""
    lora: LoraConfig = LoraConfig()
    """Shape of the adapters, used with tune=lora."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the weights are held. Autocast is a setting of the loop."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers."""

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> BackboneConfig:
        if self.path is None and self.revision is not None:
            raise ValueError("revision has no effect without path")
        if self.path is None and self.tune == "lora":
            raise ValueError("tune=lora on fresh weights would train almost nothing; set path, or tune=full")
        return self


@dataclass(frozen=True)
class Past:
    """What the model has read: its cache, which positions are real, and how many there are."""

    cache: DynamicCache
    valid_BS: Tensor
    length_B: Tensor

    def fork(self) -> Past:
        """A copy that can grow on its own; the tensors are shared, the cache never writes in place."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return Past(cache, self.valid_BS, self.length_B)


@dataclass(frozen=True)
class States:
    hidden_BTD: Tensor  # last hidden states, after the final norm: what the head reads
    past: Past | None
    layers_LBTD: Tensor | None = None  # states after every block, where asked for


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
        self.context: int = _context(model.config)
        self.sliding = "sliding_attention" in _layer_types(model.config)
        self._taps: list[list[Call]] = []

    @property
    def borrowed(self) -> tuple[str, ...]:
        """State-dict keys that stand, unchanged, in the model folder this backbone came from."""
        if self.tune == "full" or "path" not in self.identity:
            return ()
        return tuple(key for key in self.state_dict() if "lora_" not in key)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings [B, T, D]; IGNORE reads as token 0 and must be masked by its role."""
        return self.model.get_input_embeddings()(ids_BT.clamp(min=0))

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
    ) -> States:
        """Read token ids [B, T] or embeddings [B, T, D], in whatever precision, after `past`.

        keep: return a `past` that includes the new positions; always so when `past` is given, which
        then grows in place (fork it first to keep the old one).
        mutual: the first so many new positions see each other in both directions; the rest is causal.
        layers: also return the states of all layers.
        """
        ids_BT = None if inputs.is_floating_point() else inputs
        embeds_BTD = inputs.to(self.model.dtype) if ids_BT is None else self.embed(ids_BT)
        if past is None and keep:
            past = self._empty_past(len(role_BT), role_BT.device)
        valid_BT = role_BT != Role.PAD
        start_B = 0 if past is None else past.length_B[:, None]
        position_BT = (start_B + valid_BT.cumsum(1) - 1).clamp(min=0)
        valid_BS = valid_BT if past is None else torch.cat([past.valid_BS, valid_BT], 1)
        mask = self._mutual_mask(valid_BS, embeds_BTD, mutual) if mutual else valid_BS
        output = self.model.base_model(
            inputs_embeds=embeds_BTD,
            attention_mask=mask,
            position_ids=position_BT,
            past_key_values=None if past is None else past.cache,
            use_cache=past is not None,
            output_hidden_states=layers,
        )
        hidden_BTD = output.last_hidden_state
        for tap in self._taps:
            tap.append(Call(role_BT, ids_BT, hidden_BTD))
        if past is not None:
            past = Past(past.cache, valid_BS, past.length_B + valid_BT.sum(1))
        return States(hidden_BTD, past, torch.stack(output.hidden_states[1:]) if layers else None)

    @contextmanager
    def tap(self) -> Iterator[list[Call]]:
        """Record every forward inside the block."""
        calls: list[Call] = []
        self._taps.append(calls)
        try:
            yield calls
        finally:
            self._taps.remove(calls)

    def _empty_past(self, rows: int, device: torch.device) -> Past:
        cache = DynamicCache(config=self.model.config)
        valid_BS = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        return Past(cache, valid_BS, torch.zeros(rows, dtype=torch.long, device=device))

    def _mutual_mask(self, valid_BS: Tensor, embeds_BTD: Tensor, mutual: int) -> Tensor:
        """Additive mask [B, 1, T, S]: causal, but the first `mutual` new positions also see each other."""
        if self.sliding:
            raise UserError("attend=full needs a backbone without sliding windows; use attend=causal")
        new, cached = embeds_BTD.shape[1], valid_BS.shape[1] - embeds_BTD.shape[1]
        at = torch.arange(new, device=embeds_BTD.device)
        seen_TT = (at[None] <= at[:, None]) | ((at < mutual)[None] & (at < mutual)[:, None])
        seen_TS = torch.cat([seen_TT.new_ones(new, cached), seen_TT], 1)
        own_TS = torch.cat([seen_TT.new_zeros(new, cached), torch.eye(new, device=at.device).bool()], 1)
        seen_BTS = (seen_TS & valid_BS[:, None]) | own_TS  # padding sees itself: no row without a key
        blocked = torch.finfo(embeds_BTD.dtype).min
        return torch.zeros_like(seen_BTS, dtype=embeds_BTD.dtype).masked_fill(~seen_BTS, blocked)[:, None]


def last_hidden(states: States) -> Tensor:
    """The state of the last column [B, D]: with left padding, the end of every prompt."""
    return states.hidden_BTD[:, -1]


def role_of(ids_BT: Tensor, role: Role) -> Tensor:
    """`role` where a token stands, PAD where IGNORE does."""
    return torch.where(ids_BT == IGNORE, int(Role.PAD), int(role))


def load_backbone(config: BackboneConfig, vocab_size: int) -> Backbone:
    """The backbone of a run, on the CPU. `vocab_size` is the tokenizer's; fresh models take it."""
    dtype = getattr(torch, config.dtype)
    if config.path is None:
        model = AutoModelForCausalLM.from_config(
            _scratch_shape(config.scratch, vocab_size), dtype=dtype, attn_implementation=config.attention
        )
        identity = {"scratch": config.scratch.model_dump_json()}
    else:
        model = _load_pretrained(config, dtype)
        identity = _identity(config)
        if model.get_input_embeddings().num_embeddings < vocab_size:
            raise UserError(
                f"backbone.path={config.path}: the tokenizer has {vocab_size} tokens, the embedding only "
                f"{model.get_input_embeddings().num_embeddings}. Give the tokenizer of this model."
            )
    _refuse_unsupported(model, config)
    backbone = Backbone(_tuned(model, config), config, identity)
    _check_family(backbone, f"backbone.path={config.path}")
    return backbone


def meta_backbone(config: BackboneConfig, vocab_size: int) -> Backbone:
    """The same backbone without weights: shapes for planning, on the meta device."""
    if config.path is None:
        shape = _scratch_shape(config.scratch, vocab_size)
    else:
        shape = _read_shape(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, attn_implementation=config.attention)
        return Backbone(_tuned(model, config), config, {"path": config.path} if config.path else {})


def _scratch_shape(shape: ScratchConfig, vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        intermediate_size=shape.mlp or -(-shape.width * 8 // 3 // 32) * 32,
        max_position_embeddings=shape.context,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tie,
        initializer_range=shape.init_std,
        attention_dropout=0.0,
    )


def _read_shape(config: BackboneConfig):
    """The model's configuration; UserError where transformers itself does not know the architecture."""
    where = f"backbone.path={config.path}"
    try:
        raw, _ = PreTrainedConfig.get_config_dict(config.path, revision=config.revision)
        if raw.get("model_type") not in CONFIG_MAPPING:
            # asked first: AutoConfig would offer to run the folder's own code
            raise UserError(
                f"{where}: model_type {raw.get('model_type')!r} needs code from its own repository, which is "
                "never run here. Use a model whose architecture transformers ships."
            )
        return AutoConfig.from_pretrained(config.path, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_refusal(where, error)) from error


def _load_pretrained(config: BackboneConfig, dtype: torch.dtype) -> nn.Module:
    where = f"backbone.path={config.path}"
    shape = _read_shape(config)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            config.path,
            revision=config.revision,
            config=shape,
            trust_remote_code=False,  # left out, transformers may ask on the terminal
            dtype=dtype,
            attn_implementation=config.attention,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named and refused below
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(_refusal(where, error)) from error
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong or info["mismatched_keys"]:
        raise UserError(
            f"{where}: the weights do not fit the model: missing {sorted(info['missing_keys'])[:3]}, "
            f"unexpected {sorted(info['unexpected_keys'])[:3]}, "
            f"wrong shape {sorted(map(str, info['mismatched_keys']))[:3]}. Give a complete model folder."
        )
    return model


def _refusal(where: str, error: Exception) -> str:
    text = _line(error)
    if "remote" in text or "custom code" in text:
        return (
            f"{where}: this model needs code from its own repository, which is never run here. "
            "Use a model whose architecture transformers ships."
        )
    if "Repo id must" in text:
        return f"{where}: no such folder. Give a folder written by save_pretrained, or a hub id."
    if "attention implementation" in text:
        return f"{where}: this model does not support the implementation. Set backbone.attention=eager."
    if "no file named model.safetensors" in text:
        return f"{where}: no safetensors weights; pickled weights are never loaded. Convert the model first."
    return f"{where}: cannot be loaded: {text} Give a folder written by save_pretrained, or a hub id."


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _identity(config: BackboneConfig) -> dict[str, str]:
    """What a checkpoint writes down in place of borrowed weights."""
    identity = {"path": str(config.path), "revision": config.revision or ""}
    folder = Path(config.path)
    if folder.is_dir():
        identity["path"] = str(folder.resolve())
        digest = hashlib.sha256()
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        identity["sha256"] = digest.hexdigest()
    return identity


def _layer_types(config) -> tuple[str, ...]:
    """Attention kinds by layer; families that say nothing are full attention, or slide if a window is set."""
    values = config.to_dict()
    kinds = values.get("layer_types")
    if kinds:
        return tuple(kinds)
    slides = values.get("sliding_window") and values.get("use_sliding_window", True)
    return ("sliding_attention",) if slides else ("full_attention",)


def _context(shape) -> int | None:
    """The longest sequence, under whatever name; None where the family names none."""
    name = shape.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return shape.to_dict().get(name)


def _refuse_unsupported(model: nn.Module, config: BackboneConfig) -> None:
    kinds = set(_layer_types(model.config)) - {"full_attention", "sliding_attention"}
    kinds |= {"state space"} if model._is_stateful else set()
    kinds |= {"encoder-decoder"} if model.config.is_encoder_decoder else set()
    kinds |= {"unbounded context"} if _context(model.config) is None else set()
    if kinds:
        raise UserError(
            f"backbone.path={config.path}: layers of kind {', '.join(sorted(kinds))} are not supported; "
            "choose a decoder with full or sliding attention (Llama, Qwen, Mistral, SmolLM, ...)."
        )


def _tuned(model: nn.Module, config: BackboneConfig) -> nn.Module:
    if config.tune == "frozen":
        return model.requires_grad_(False)
    if config.tune == "lora":
        lora, model = config.lora, model.requires_grad_(False)
        head = model.get_output_embeddings()
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
        names = sorted({name.rsplit(".", 1)[-1] for name in linear})
        targets = names if lora.targets == "all-linear" else list(lora.targets)
        unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
        if unknown or not targets:
            raise UserError(
                f"backbone.lora.targets={','.join(unknown) or lora.targets}: this model has no such linear "
                f"layers. Choices: {', '.join(names) or 'none; use tune=full'}."
            )
        inject_adapter_in_model(PeftLora(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets), model)
    return model


@torch.no_grad()
def _check_family(backbone: Backbone, where: str) -> None:
    """Tries on four tokens what methods rely on, so that a family that differs is refused, not misused."""
    was_training = backbone.training
    backbone.eval()
    ids_BT = torch.arange(4)[None] % backbone.vocab_size
    role_BT = role_of(ids_BT, Role.PROMPT)
    try:
        own = backbone.model(input_ids=ids_BT).logits
        whole = backbone(ids_BT, role_BT).hidden_BTD
        padded = backbone(pad(ids_BT, (2, 0), value=IGNORE), pad(role_BT, (2, 0))).hidden_BTD
        start = backbone(ids_BT[:, :3], role_BT[:, :3], keep=True)
        end = backbone(ids_BT[:, 3:], role_BT[:, 3:], start.past).hidden_BTD
    except (TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{where}: cannot read embeddings with a cache ({_line(error)}).") from error
    backbone.train(was_training)
    allowed = 1e-3 if whole.dtype == torch.float32 else 3e-2
    for fault, got, wanted in (
        ("changes its logits after the head", backbone.logits(whole), own),
        ("lets a token see later ones", whole[:, :3], start.hidden_BTD),
        ("reads padding as text", padded[:, 2:], whole),
        ("reads with a cache what it does not read without", end, whole[:, 3:]),
    ):
        if not (got - wanted).norm() <= allowed * wanted.norm():
            family = type(backbone.model).__name__
            raise UserError(f"{where}: {family} {fault}; such a family is not supported.")
