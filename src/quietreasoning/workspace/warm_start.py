"""A workspace model around the weights of a Llama-like model; its first logits are the trunk's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quietreasoning.config import UserError
from quietreasoning.workspace.causal_lm import WorkspaceForCausalLM
from quietreasoning.workspace.config import WorkspaceConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def config_for_trunk(shape: Any, preset: str, changes: dict[str, Any]) -> WorkspaceConfig:
    """The preset's modules around a trunk of this shape, their blocks scaled by depth; UserError where it
    is no Llama-like family, or has a part this trunk lacks."""
    kind = shape.model_type
    if kind not in FAMILIES:
        raise UserError(
            f"backbone.workspace.trunk: family {kind!r} is not Llama-like; choices: {', '.join(FAMILIES)}"
        )
    values = shape.to_dict()
    slides = values.get("sliding_window") and values.get("use_sliding_window", True)
    lacking = {"sliding windows": slides, "biases in its MLP": values.get("mlp_bias"), "dropout": False}
    lacking["an activation other than silu"] = values.get("hidden_act", "silu") != "silu"
    for part, there in lacking.items():
        if there:
            raise UserError(
                f"backbone.workspace.trunk: this {kind} model has {part}, which the trunk lacks; "
                "choose another"
            )
    base = WorkspaceConfig.preset(preset).to_dict()
    blocks, width = shape.num_hidden_layers, shape.hidden_size
    old_blocks = base["num_hidden_layers"]

    def scaled(block: int, last: int = blocks) -> int:
        return min(max(1, round(block * blocks / old_blocks)), last)

    rope = dict(shape.rope_parameters)
    keep_rope = values.get("no_rope_layers") or ()  # SmolLM3 writes 1 where a block has rotary positions
    sizes = {
        "vocab_size": shape.vocab_size,
        "hidden_size": width,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": blocks,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": values.get("head_dim") or width // shape.num_attention_heads,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "attention_bias": kind == "qwen2" or bool(values.get("attention_bias")),
        "attention_out_bias": kind in ("llama", "qwen3", "smollm3") and bool(values.get("attention_bias")),
        "qk_norm": kind == "qwen3",
        "no_rope_layers": tuple(i for i, rotary in enumerate(keep_rope, 1) if not rotary)
        if kind == "smollm3"
        else (),
        "pad_token_id": shape.pad_token_id,
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": shape.eos_token_id,
        "read_block": scaled(base["read_block"], blocks - 1),
        "ssm_blocks": tuple(dict.fromkeys(scaled(b) for b in base["ssm_blocks"])),
        "pkm_blocks": tuple(dict.fromkeys(scaled(b) for b in base["pkm_blocks"])),
        "ssm_inner": width if width % base["ssm_head_dim"] == 0 else base["ssm_inner"],
    }
    base = {k: v for k, v in base.items() if k in WorkspaceConfig.__dataclass_fields__}
    for key in changes:
        if key not in WorkspaceConfig.__dataclass_fields__:
            WorkspaceConfig.preset(preset, **{key: changes[key]})  # refuses it by name
    return WorkspaceConfig(**{**base, **sizes, **changes})


@torch.no_grad()
def take_trunk(model: WorkspaceForCausalLM, trunk: nn.Module) -> None:
    """Copy a trunk's weights; every one of them must find its place."""
    given = dict(trunk.state_dict())
    own = model.model
    head = given.pop("lm_head.weight", None)
    _put(own.embed_tokens.weight, given.pop("model.embed_tokens.weight"))
    if not model.config.tie_word_embeddings:
        _put(model.lm_head.weight, head)
    _put(own.norm.weight, given.pop("model.norm.weight"))
    for number, block in enumerate(own.blocks):
        prefix = f"model.layers.{number}."

        def take(name: str, at: str = prefix) -> Tensor:
            return given.pop(f"{at}{name}")

        _put(block.attention_norm.weight, take("input_layernorm.weight"))
        _put(block.mlp_norm.weight, take("post_attention_layernorm.weight"))
        for kind in ("weight", "bias"):
            if kind == "weight" or block.qkv.bias is not None:
                parts = [take(f"self_attn.{p}_proj.{kind}") for p in "qkv"]
                _put(getattr(block.qkv, kind), torch.cat(parts))
            if kind == "weight" or block.out.bias is not None:
                _put(getattr(block.out, kind), take(f"self_attn.o_proj.{kind}"))
        if block.query_norm is not None:
            _put(block.query_norm.weight, take("self_attn.q_norm.weight"))
            _put(block.key_norm.weight, take("self_attn.k_norm.weight"))
        _put(block.gate_up.weight, torch.cat([take("mlp.gate_proj.weight"), take("mlp.up_proj.weight")]))
        _put(block.down.weight, take("mlp.down_proj.weight"))
    left = [name for name in given if "rotary_emb" not in name]
    if left:
        raise UserError(
            f"backbone.workspace.trunk: weights that have no place here: {', '.join(sorted(left)[:3])}"
        )


def _put(parameter: Tensor, value: Tensor) -> None:
    if parameter.shape != value.shape:
        raise UserError(
            f"backbone.workspace.trunk: a weight of shape {tuple(value.shape)} where "
            f"{tuple(parameter.shape)} belongs; sizes of the trunk cannot be changed, drop them from "
            "backbone.workspace.sizes"
        )
    parameter.copy_(value)
