"""The same integers as tensors of torchao, an optional package (`pip install quietreasoning[quant]`).

Its dynamic int8 layers compute what ours compute, so it converts weights that trained here as they are.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn
from transformers import AutoModelForCausalLM, TorchAoConfig

from quietreasoning.config import UserError
from quietreasoning.nn.fake_quant import Bits, prepared, restore


def require(bits: Bits) -> None:
    """UserError where torchao is not installed, or has no such integers."""
    require_package("--torchao", "leave it out")
    if bits.weight != 8:
        raise UserError(
            f"--torchao writes int8 weights, this run has {bits.weight} bits. Leave --torchao out."
        )


def require_package(where: str, cure: str) -> None:
    """UserError where torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f"{where}: torchao is not installed. pip install quietreasoning[quant], or {cure}.")


def save(model: nn.Module, folder: Path, bits: Bits) -> None:
    """Write `model`, whose layers are countable, as transformers opens it with torchao."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    counted = {name for name, _ in prepared(model)}
    restore(model)
    floats = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in counted]
    kind = Int8WeightOnlyConfig if bits.activation is None else Int8DynamicActivationInt8WeightConfig
    with TemporaryDirectory(dir=folder.parent) as plain:
        model.save_pretrained(plain)
        settings = TorchAoConfig(kind(), modules_to_not_convert=floats)
        made = AutoModelForCausalLM.from_pretrained(
            plain, dtype=model.dtype, quantization_config=settings, trust_remote_code=False
        )
    made.save_pretrained(folder)
