"""What a reasoner reads of a frozen model's prompt: states of some layers, compressed or as they are.

Shapes: B rows, P prompt tokens, L layers, D width, W = numbers the reasoner reads a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.backbone import Backbone
from quietreasoning.backbone.compressor_file import load_compressor
from quietreasoning.backbone.states import PRE_NORM, Layer, watch
from quietreasoning.config import UserError
from quietreasoning.nn.compressor import Compressor


def chosen_layers(backbone: Backbone, layers: tuple[Layer, ...] | None) -> tuple[Layer, ...]:
    """Those named, or the middle one and the last before the final norm: the last alone already looks ahead
    to one next token and has little of the prompt left. UserError where the model has no such layer."""
    with named("method.layers"), watch(backbone.model, layers or ()):
        return layers or (max(1, backbone.num_layers // 2), PRE_NORM)


@contextmanager
def named(key: str) -> Iterator[None]:
    """Faults found inside are told with the setting that they come from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def compressor_path(folder: str | Path, layer: Layer) -> Path:
    """Where a folder keeps the compressor of a layer."""
    return Path(folder) / f"compressor-{layer}.safetensors"


class Reader(nn.Module):
    """States [L, B, P, D] -> context [B, P, W]: whitened codes, or states of unit size, side by side."""

    def __init__(self, backbone: Backbone, layers: tuple[Layer, ...], folder: str | None, width: int | None):
        """UserError where a compressor is missing or was made of other states."""
        super().__init__()
        self.layers = layers
        with named("method.compressor"):
            self.compressors = nn.ModuleList(
                load_compressor(
                    compressor_path(folder, layer),
                    identity=backbone.identity,
                    layer=layer,
                    hidden_size=backbone.width,
                    width=width,
                )
                for layer in (layers if folder is not None else ())
            )
        parts = [compressor.width for compressor in self.compressors] or [backbone.width] * len(layers)
        self.width = sum(parts)

    def forward(self, states_LBPD: Tensor) -> Tensor:
        if not self.compressors:
            return (
                F.rms_norm(states_LBPD.float(), states_LBPD.shape[-1:], eps=1e-6).movedim(0, -2).flatten(-2)
            )
        codes = [one.compress(states) for one, states in zip(self.compressors, states_LBPD, strict=True)]
        return torch.cat(codes, -1)

    def of(self, layer: Layer) -> Compressor | None:
        """The compressor of a layer, if it is read through one."""
        return (
            self.compressors[self.layers.index(layer)] if self.compressors and layer in self.layers else None
        )
