"""Keys and values in room made beforehand: no shape changes from step to step, so a step can be compiled."""

from __future__ import annotations

import copy

from transformers.cache_utils import StaticLayer

from quietreasoning.backbone.model import Past


def with_room(past: Past, columns: int) -> Past:
    """A copy of a past with room for so many columns more, which are written in place: fork it no further.

    Attention then reads all columns, written or not, so a mask must say which are (`Branches`).
    """
    cache = copy.copy(past.cache)
    cache.layers = []
    for layer in past.cache.layers:
        room = StaticLayer(layer.keys.shape[2] + columns)
        room.update(layer.keys, layer.values)
        cache.layers.append(room)
    return Past(cache, past.valid_BS, past.length_B)
