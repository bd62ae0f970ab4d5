"""Which layers of a language model count in integers, and which models cannot.

All linear layers of the blocks do. Head and embeddings stay in floats: methods read their rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from quietreasoning.backbone.model import Backbone
from quietreasoning.config import UserError
from quietreasoning.nn import fake_quant
from quietreasoning.nn.fake_quant import Bits
from quietreasoning.nn.int_linear import PACKED
from quietreasoning.workspace import WorkspaceForCausalLM

KEPT = ("lm_head", "embed")  # always in floats: an exclusion of these may name nothing


def prepare(backbone: Backbone, bits: Bits, exclude: Sequence[str] = ()) -> None:
    """Make the linear layers of `backbone` countable and leave them off; also on the meta device.

    Keys, parameters and values stay. Raises UserError for adapters, and as `prepare_model`.
    """
    if backbone.tune == "lora":
        raise UserError(
            "train.quant: base weights with adapters beside them are not the weights that would be deployed. "
            "Train the adapters without it, merge them with quiet export RUN FOLDER, then set "
            "backbone.path=FOLDER backbone.tune=full."
        )
    prepare_model(backbone.model, bits, exclude)


def prepare_model(model: nn.Module, bits: Bits, exclude: Sequence[str] = ()) -> None:
    """The same of a language model without adapters.

    Raises UserError for a model that multiplies with weights outside of linear layers, where nothing is left
    to count, for an exclusion that names nothing, and for sizes that do not divide.
    """
    fake_quant.prepare(model, countable(model, bits, exclude), bits)


def countable(model: nn.Module, bits: Bits, exclude: Sequence[str]) -> list[str]:
    """Names of the layers that would count; UserError as `prepare_model`."""
    if isinstance(model, WorkspaceForCausalLM):
        raise UserError(
            "train.quant: a workspace model multiplies with weights outside of its linear layers. Choose a "
            "Llama-like backbone, or set train.quant=null."
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(
            "train.quant: the weights of this backbone are integers already. Give the float model, or set "
            "train.quant=null."
        )
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if type(m) is nn.Linear and m is not head}
    unknown = [e for e in exclude if e not in KEPT and not any(named(name, e) for name in linear)]
    if unknown:
        parts = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(
            f"train.quant.exclude={','.join(unknown)}: no linear layer has such a name. "
            f"Choices: {', '.join(parts) or 'none'}, or a part as layers.0."
        )
    chosen = [name for name in linear if not any(named(name, entry) for entry in exclude)]
    other = other_weights(model, exclude)
    if not chosen or other:
        what = f"{other[0]} is no linear layer" if other else "it has no linear layer"
        spared = f" but {', '.join(exclude)}" if linear and not other else ""
        raise UserError(
            f"train.quant: this {type(model).__name__} cannot be counted in integers: {what}{spared}. Set "
            f"train.quant=null{', or name it in train.quant.exclude' if other else ''}."
        )
    refuse_sizes({name: linear[name].in_features for name in chosen}, bits)
    return chosen


def other_weights(model: nn.Module, exclude: Sequence[str]) -> list[str]:
    """Weights that are multiplied with, but not by a linear layer: experts in one tensor, convolutions."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if not (type(module) is nn.Linear or isinstance(module, nn.Embedding))
        for own, p in module.named_parameters(recurse=False)
        if p.ndim > 1 and not any(named(f"{name}.{own}", entry) for entry in exclude)
    ]


def refuse_sizes(inputs: dict[str, int], bits: Bits) -> None:
    """UserError where a layer's inputs do not divide into groups or words."""
    for name, width in inputs.items():
        if bits.group and width % bits.group:
            raise UserError(
                f"train.quant.group={bits.group} does not divide the {width} inputs of {name}. Choose a "
                "divisor, or null for one scale a channel."
            )
        if bits.weight == 4 and width % PACKED:
            raise UserError(
                f"train.quant.weight_bits=4 packs {PACKED} weights in a word, and {name} has {width} inputs. "
                f"Set weight_bits=8, or name {name.rpartition('.')[2]} in train.quant.exclude."
            )


def named(name: str, entry: str) -> bool:
    """Whether `entry` is a part of a dotted name: layers.1 is one of layers.1.mlp, not of layers.10."""
    return f".{entry}." in f".{name}."
