"""Shape of a workspace model, its presets, and what is refused."""

from __future__ import annotations

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from quietreasoning.config import UserError, suggest

FEATURES = ("workspace", "pkm", "adapters", "ssm", "retrieval", "knn")

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        # 3b in small, whose modules add 6 % to its trunk's FLOPs: slots, experts and memory are narrower than
        # the stream, an adapter's rank is a 128th of it, one block in four has an expert, one a memory, and
        # an update of the slots is paid for by 256 tokens, as there
        "chunk_size": 256,
        "slots": 8,
        "slot_width": 64,
        "slot_heads": 2,
        "read_block": 2,
        "router_width": 16,
        "ssm_blocks": (2,),
        "ssm_inner": 64,
        "ssm_state": 16,
        "ssm_head_dim": 32,
        "ssm_chunk": 32,
        "pkm_blocks": (3,),
        "pkm_slots": 64**2,
        "pkm_value_dim": 32,
        "pkm_heads": 1,
        "pkm_key_dim": 32,
        "pkm_topk": 8,
        "adapters": 4,
        "adapter_rank": 1,
        "adapter_alpha": 2.0,
    },
    "125m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
        "chunk_size": 256,
        "slots": 32,
        "slot_width": 512,
        "read_block": 8,
        "ssm_blocks": (4, 8),
        "ssm_inner": 768,
        "ssm_state": 64,
        "pkm_blocks": (9, 11),
        "pkm_slots": 512**2,
        "pkm_value_dim": 128,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "read_block": 11,
        "ssm_blocks": (6, 11),
        "ssm_inner": 2048,
        "pkm_blocks": (12, 15),
        "pkm_slots": 1024**2,
    },
    "3b": {},
}


@strict
class WorkspaceConfig(PreTrainedConfig):
    """Sizes of the trunk and of every module around it. The defaults are the 3b model.

    Blocks are counted from 1; a module "after block b" works on the stream that leaves it. `features`
    names the modules that are switched on; the others are there, but compute nothing.
    Raises UserError, before anything is built, where sizes do not fit together.
    """

    model_type = "quiet_workspace"
    keys_to_ignore_at_inference = ("past_key_values", "trace")

    vocab_size: int = 50_000
    hidden_size: int = 2304
    intermediate_size: int = 6144
    num_hidden_layers: int = 28
    num_attention_heads: int = 24
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 8192
    rope_parameters: dict | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    attention_bias: bool = False  # of q, k, v
    attention_out_bias: bool = False
    qk_norm: bool = False
    no_rope_layers: list | tuple | None = None  # blocks without rotary positions, counted from 1
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = True

    features: list | tuple = ("workspace", "pkm", "adapters", "ssm")
    chunk_size: int = 256  # real tokens between two updates of the workspace
    bptt_chunks: int = 4  # updates of the workspace one gradient crosses; 0: all

    slots: int = 64
    slot_width: int = 1024
    slot_heads: int = 8
    inner_steps: int = 3
    mean_steps: float = 1.2  # what the halting prior expects
    halting_threshold: float = 0.8
    halting_epsilon: float = 1e-3
    read_block: int = 20  # the workspace reads the stream after it; later blocks read the slots

    router_width: int = 256
    skip_threshold: float = 0.3  # a gate at or below it is exactly zero: the module is skipped
    episodic_choices: list | tuple = (0, 1, 2, 4, 8)  # how many episodes a plan may ask for
    knn_max: float = 0.5

    ssm_blocks: list | tuple = (10, 20)
    ssm_inner: int = 2304
    ssm_state: int = 128
    ssm_head_dim: int = 64
    ssm_conv: int = 4
    ssm_chunk: int = 64

    pkm_blocks: list | tuple = (21, 24, 27)
    pkm_slots: int = 4_000_000
    pkm_value_dim: int = 256
    pkm_heads: int = 4
    pkm_key_dim: int = 256
    pkm_topk: int = 32
    pkm_temperature: float = 0.7  # when serving; training anneals towards it
    pkm_int8: bool = False  # values as bytes with one scale a row; no longer trainable

    adapters: int = 8  # 0: there is no bank, as after merging
    adapters_active: int = 2
    adapter_rank: int = 16
    adapter_alpha: float = 32.0
    ia3: bool = True
    adapter_fusion: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_attention_heads < 1 or (
            self.head_dim is None and self.hidden_size % self.num_attention_heads
        ):
            raise UserError(
                f"num_attention_heads={self.num_attention_heads} does not divide "
                f"hidden_size={self.hidden_size}; try "
                f"{divisor_near(self.hidden_size, self.num_attention_heads)}, or set head_dim"
            )
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
        for name in ("features", "ssm_blocks", "pkm_blocks", "episodic_choices"):
            setattr(self, name, tuple(getattr(self, name)))
        self.no_rope_layers = tuple(self.no_rope_layers or ())
        self.check()
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> WorkspaceConfig:
        """tiny, 125m, 1b or 3b, with changes. UserError for another name or an unknown setting."""
        if name not in _PRESETS:
            raise UserError(f"no preset {name!r}. {suggest(name, _PRESETS)}")
        known = cls.__dataclass_fields__
        for key in changes:
            if key not in known:
                raise UserError(
                    f"{key}={changes[key]!r}: a workspace model has no such size. {suggest(key, known)}"
                )
        return cls(**{**_PRESETS[name], **changes})

    def extended(self, context: int) -> WorkspaceConfig:
        """The same model for a longer context, by YaRN (arXiv 2309.00071) on its rotary positions."""
        values = self.to_dict() | {"max_position_embeddings": context}
        values["rope_parameters"] = self.rope_parameters | {
            "rope_type": "yarn",
            "factor": context / self.max_position_embeddings,
            "original_max_position_embeddings": self.max_position_embeddings,
        }
        return WorkspaceConfig.from_dict(values)

    @property
    def write_blocks(self) -> tuple[int, ...]:
        """Blocks that read the slots."""
        return tuple(range(self.read_block + 1, self.num_hidden_layers + 1))

    def has(self, feature: str) -> bool:
        return feature in self.features

    def check(self) -> None:
        """UserError names the first size that cannot be, and the cure."""
        for name in self.features:
            if name not in FEATURES:
                raise UserError(f"features: no module {name!r}. {suggest(name, FEATURES)}")
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be 1 or more")
        _divides(
            "num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads
        )
        if self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} must be even: rotary positions turn pairs of channels")
        _divides("slot_heads", self.slot_heads, "slot_width", self.slot_width)
        _divides("ssm_head_dim", self.ssm_head_dim, "ssm_inner", self.ssm_inner)
        _inside("read_block", (self.read_block,), 1, self.num_hidden_layers - 1)
        _inside("ssm_blocks", self.ssm_blocks, 1, self.num_hidden_layers)
        _inside("pkm_blocks", self.pkm_blocks, 1, self.num_hidden_layers)
        root = math.isqrt(self.pkm_slots)
        if root * root != self.pkm_slots:
            raise UserError(
                f"pkm_slots={self.pkm_slots} is no square; every pair of two half keys is one slot. "
                f"Use {root * root} or {(root + 1) ** 2}"
            )
        if self.pkm_key_dim % 2:
            raise UserError(f"pkm_key_dim={self.pkm_key_dim} must be even: a key has two halves")
        if self.pkm_topk > root:
            raise UserError(f"pkm_topk={self.pkm_topk} is more than the {root} half keys; lower it")
        if self.adapters < 0 or (self.adapters == 0 and self.has("adapters")):
            raise UserError(f"adapters={self.adapters}: the feature adapters needs a bank of 1 or more")
        if self.adapters_active > self.adapters > 0:
            raise UserError(f"adapters_active={self.adapters_active} is more than adapters={self.adapters}")
        if not (1 < self.mean_steps < self.inner_steps or self.mean_steps == self.inner_steps == 1):
            raise UserError(
                f"mean_steps={self.mean_steps} must lie between 1 and inner_steps={self.inner_steps}, both "
                "left out; with inner_steps=1 set mean_steps=1"
            )
        if self.ssm_conv < 2:
            raise UserError("ssm_conv=1 sees no token before its own; use 2 or more, usually 4")
        if not 0 < self.skip_threshold < 0.4:
            raise UserError(
                f"skip_threshold={self.skip_threshold} must lie between 0 and 0.4, where gates begin"
            )


_POSITIVE = (
    *(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_key_value_heads",
        "head_dim",
    ),
    *("max_position_embeddings", "chunk_size", "slots", "slot_width", "slot_heads", "inner_steps"),
    *("router_width", "ssm_inner", "ssm_state", "ssm_head_dim", "ssm_conv", "ssm_chunk"),
    *("pkm_slots", "pkm_value_dim", "pkm_heads", "pkm_key_dim", "pkm_topk"),
    *("adapters_active", "adapter_rank"),
)


def _divides(small: str, a: int, large: str, b: int) -> None:
    if b % a:
        raise UserError(f"{small}={a} does not divide {large}={b}; try {divisor_near(b, a)}")


def _inside(name: str, blocks: tuple[int, ...], first: int, last: int) -> None:
    outside = [b for b in blocks if not first <= b <= last]
    if outside:
        raise UserError(
            f"{name}={outside[0]} lies outside the trunk: its blocks are {first} to {last}. "
            f"Name blocks in this range, or raise num_hidden_layers"
        )


def divisor_near(total: int, wanted: int) -> int:
    """The divisor of `total` nearest to `wanted`."""
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - wanted))
