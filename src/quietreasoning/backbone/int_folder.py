"""A model folder whose linear layers are integers, written and read without another package.

The layout is that of compressed-tensors: plain safetensors with int8 weights (4-bit ones packed) and a
`weight_scale` beside each, described under `quantization_config` in config.json. transformers opens it where
that package is installed; `backbone.path=FOLDER` does anyway. Weights are symmetric, one scale a channel or
group; activations int8 with one scale a token, or floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from quietreasoning.backbone.quant import named
from quietreasoning.config import UserError
from quietreasoning.nn.fake_quant import Bits, prepared
from quietreasoning.nn.int_linear import IntLinear

METHOD = "compressed-tensors"


def convert(model: nn.Module) -> nn.Module:
    """The same model, in place, with its countable layers as the integers they are; its config says so."""
    layers = dict(prepared(model))
    bits = next(iter(layers.values())).bits
    floats = [name for name, m in model.named_modules() if type(m) is nn.Linear]
    for name, layer in layers.items():
        _replace(model, name, IntLinear.of(layer, bits))
    model.config.quantization_config = describe(bits, floats)
    return model.requires_grad_(False)


def describe(bits: Bits, floats: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of such a folder. floats: names of the linear layers that stayed floats."""

    def integers(width: int, strategy: str, **rest: Any) -> dict[str, Any]:
        return {"num_bits": width, "type": "int", "symmetric": True, "strategy": strategy} | rest

    group = {"strategy": "group", "group_size": bits.group} if bits.group else {"strategy": "channel"}
    put_in = None if bits.activation is None else integers(bits.activation, "token", dynamic=True)
    layout = "pack-quantized" if bits.weight == 4 else "int-quantized"
    return {
        "quant_method": METHOD,
        "format": layout,
        "quantization_status": "compressed",
        "ignore": list(floats),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": layout,  # said again: from bits alone, readers would guess another one
                "weights": integers(bits.weight, dynamic=False, **group),
                "input_activations": put_in,
            }
        },
    }


def described(shape: PreTrainedConfig, where: str) -> tuple[Bits, list[str]] | None:
    """The integers of a folder, from its configuration, and the layers that stayed floats; None where all
    did, or torchao wrote them, which transformers reads. UserError for a layout that is not read here."""
    given = _plain(getattr(shape, "quantization_config", None))
    if given is None or given.get("quant_method") == "torchao":
        return None
    bits = None
    try:
        (group,) = given["config_groups"].values()
        weights, put_in = group["weights"], group["input_activations"]
        bits = Bits(weights["num_bits"], put_in and put_in["num_bits"], weights.get("group_size"))
        other = given.get("kv_cache_scheme") or weights.get("actorder")
        other = other or any(entry.startswith("re:") for entry in given["ignore"])
        wanted = describe(bits, given["ignore"])
        if "format" not in group:
            del wanted["config_groups"]["group_0"]["format"]
        known = not other and _described_as(given, wanted)
    except (KeyError, TypeError, ValueError, AttributeError):
        known = False
    if not known or bits.weight not in (4, 8):
        raise UserError(
            f"{where}: weights quantised as {given.get('quant_method')} {given.get('format', '')} are not "
            "read here. Give the float model, or a folder that quiet export --int8 wrote."
        )
    return bits, list(given["ignore"])


def hollow(model: nn.Module, bits: Bits, floats: Sequence[str]) -> nn.Module:
    """Empty integer layers in place of the linear ones but `floats`; also on the meta device."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and not any(named(name, entry) for entry in floats):
            bias = None if layer.bias is None else layer.bias.detach()
            _replace(model, name, IntLinear(layer.in_features, layer.out_features, bits, bias))
    return model


def load(shape: PreTrainedConfig, folder: Path, dtype: torch.dtype, attention: str, where: str) -> nn.Module:
    """The model of such a folder, what is float in `dtype`. UserError where tensors do not fit."""
    if not folder.is_dir():
        raise UserError(f"{where}: integer weights are read from a folder. Download it, and name the folder.")
    bits, floats = described(shape, where)
    model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=attention)
    hollow(model, bits, floats)
    tensors: dict[str, torch.Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: cannot be loaded: {text}. Write the folder again.") from error
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    filled = {id(own[name]) for name in tensors.keys() & own.keys()}  # of tied ones, one name is enough
    missing = [name for name in missing if id(own[name]) not in filled]
    if missing or unexpected:
        raise UserError(
            f"{where}: the weights do not fit the model: missing {missing[:3]}, unexpected {unexpected[:3]}. "
            "Give a complete model folder."
        )
    return model.eval()


def _described_as(given: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether `given` says all that `wanted` says."""
    for key, value in wanted.items():
        if isinstance(value, dict):
            if not isinstance(given.get(key), dict) or not _described_as(given[key], value):
                return False
        elif given.get(key) != value:
            return False
    return True


def _plain(quantization: Any) -> dict[str, Any] | None:
    return quantization.to_dict() if hasattr(quantization, "to_dict") else quantization


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
