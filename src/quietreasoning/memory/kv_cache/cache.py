"""A transformers cache whose full-attention layers are compressed; other layers are transformers' own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from quietreasoning.config import UserError
from quietreasoning.memory.kv_cache.layer import Clock, CompressedLayer
from quietreasoning.memory.kv_cache.settings import KVCacheSettings
from quietreasoning.memory.kv_cache.stores import Scratch


@dataclass(frozen=True)
class CacheStats:
    """Bytes are those of the storages that tensors hold, spare room, scales, codes and tails included."""

    tokens: int
    """Columns read, padding included."""
    bytes: int
    plain_bytes: int
    """What keys and values of all those columns take as the model computes them."""
    compression: float
    """plain_bytes / bytes; 0 before the first token."""
    scratch_bytes: int
    """Of the buffer into which layers are read one after another; not in `bytes`."""
    fallback_layers: tuple[int, ...]
    """Layers that fell back to 8 bits because of their error."""
    fallback_rate: float
    """Their share of the layers whose error was measured."""
    errors: tuple[float, ...]
    """The measured errors: change of the window's attention output over its norm, worst row."""
    ms: dict[str, float]
    """Host milliseconds: choosing tokens, writing, reading."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class CompressedCache(Cache):
    """Pass it as `past_key_values` inside `attach`. It serves one `generate`, or one chat's turns, until
    `reset` makes it new."""

    def __init__(self, settings: KVCacheSettings, config: PreTrainedConfig):
        self.settings, self.scratch, self.clock = settings, Scratch(), Clock()
        layers = DynamicCache(config=config).layers
        for number, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[number] = CompressedLayer(settings, number, self.scratch, self.clock)
        super().__init__(layers=layers)
        absent = [number for number in settings.int8_layers if number not in self.numbers]
        if absent:
            raise UserError(
                f"int8_layers={absent[0]}: compressed layers are {_listed(self.numbers)}; name these"
            )
        if not self.numbers:
            raise UserError(
                f"{config.model_type}: no layer has full attention, so there is nothing to compress"
            )

    @property
    def numbers(self) -> list[int]:
        """Which layers are compressed."""
        return [number for number, layer in enumerate(self.layers) if isinstance(layer, CompressedLayer)]

    def crop(self, tokens_to_remove: int) -> None:
        self.layers[self.numbers[0]].crop(tokens_to_remove)  # refuses before any layer is cut

    def reset(self) -> None:
        super().reset()
        self.clock = Clock()
        for number in self.numbers:
            self.layers[number].clock = self.clock

    def stats(self) -> CacheStats:
        mine = [self.layers[number] for number in self.numbers]
        others = [t for n, layer in enumerate(self.layers) if n not in self.numbers for t in _held(layer)]
        measured = [layer for layer in mine if layer.error is not None]
        fallen = tuple(layer.number for layer in measured if layer.fell_back)
        used = storage_bytes([*(t for layer in mine for t in layer.tensors()), *others])
        plain = sum(layer.total * layer.plain_bytes_a_token for layer in mine) + storage_bytes(others)
        return CacheStats(
            tokens=mine[0].total,
            bytes=used,
            plain_bytes=plain,
            compression=plain / used if used else 0.0,
            scratch_bytes=storage_bytes(self.scratch.tensors()),
            fallback_layers=fallen,
            fallback_rate=len(fallen) / len(measured) if measured else 0.0,
            errors=tuple(layer.error for layer in measured),
            ms=dict(self.clock.ms),
        )


def plain_cache(model: PreTrainedModel) -> DynamicCache:
    """What the model reads into without a compressed cache."""
    return DynamicCache(config=model.config)


def held_bytes(cache: Cache) -> int:
    """Of the storages that a cache holds, whatever its kind."""
    if isinstance(cache, CompressedCache):
        return cache.stats().bytes
    return storage_bytes(t for layer in cache.layers for t in _held(layer))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Allocated bytes, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _held(layer: Any) -> list[Tensor]:
    return [
        t for t in (getattr(layer, "keys", None), getattr(layer, "values", None)) if isinstance(t, Tensor)
    ]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
