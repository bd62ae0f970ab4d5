"""How a run of keys and values becomes bytes, once, and how it is read again.

Shapes: B rows, G key/value heads, N tokens, C head width, M = ceil(N / group), K tokens asked for,
V = C / channels that share a value's scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.memory.kv_cache.packing import affine, pack, symmetric, unpack_into
from quietreasoning.memory.kv_cache.snapkv import gather

Parts = tuple[Tensor, ...]  # of one run; rows on dimension 0, tokens or groups of tokens on dimension 2


class Codec(ABC):
    """Encodes both of a pair at once; all tensors of a run can be joined along dimension 2."""

    bits: int
    tokens: tuple[int, ...]  # of each part: tokens that one entry of dimension 2 stands for

    @abstractmethod
    def encode(self, keys_BGNC: Tensor, values_BGNC: Tensor, valid_BN: Tensor | None) -> Parts: ...

    @abstractmethod
    def decode(self, parts: Parts, keys_BGNC: Tensor, values_BGNC: Tensor) -> None:
        """Into the tensors given."""

    @abstractmethod
    def take(self, parts: Parts, index_BGK: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Only these tokens."""

    def drop(self, parts: Parts, count: int) -> Parts:
        """Without the oldest `count` tokens, a multiple of the group; what is left is copied, or the old
        bytes would stay."""
        return tuple(p[:, :, count // n :].clone() for p, n in zip(parts, self.tokens, strict=True))


class Int8(Codec):
    """Symmetric, one scale per token and head."""

    bits, tokens = 8, (1, 1, 1, 1)

    def encode(self, keys_BGNC: Tensor, values_BGNC: Tensor, valid_BN: Tensor | None) -> Parts:
        return (*symmetric(keys_BGNC), *symmetric(values_BGNC))

    def decode(self, parts: Parts, keys_BGNC: Tensor, values_BGNC: Tensor) -> None:
        keys_BGNC.copy_(parts[0]).mul_(parts[1])  # one product of mixed types is slower than both of these
        values_BGNC.copy_(parts[2]).mul_(parts[3])

    def take(self, parts: Parts, index_BGK: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        keys, key_scale, values, value_scale = (gather(part, index_BGK) for part in parts)
        return keys * key_scale, values * value_scale


class Grouped(Codec):
    """KIVI (arXiv 2402.02750): keys per channel in groups of tokens, values per token in groups of channels.

    A last group may be partly filled: it then has the range of the tokens it holds.
    """

    def __init__(self, bits: int, group: int, width: int):
        if width % (8 // bits):
            raise UserError(f"bits={bits}: a head width of {width} does not fill bytes; use bits=8")
        self.bits, self.group = bits, group
        self.channels = max(d for d in range(1, min(group, width) + 1) if width % d == 0)
        self.tokens = (1, group, group, 1, 1, 1)

    def encode(self, keys_BGNC: Tensor, values_BGNC: Tensor, valid_BN: Tensor | None) -> Parts:
        count = keys_BGNC.shape[2]
        groups = -(-count // self.group)
        # every token of a group beyond the last one is left out of its range
        there_BN = torch.arange(groups * self.group, device=keys_BGNC.device)[None] < count
        if valid_BN is not None:
            there_BN = there_BN & torch.nn.functional.pad(valid_BN, (0, groups * self.group - count))
        padded = torch.nn.functional.pad(keys_BGNC, (0, 0, 0, groups * self.group - count))
        there = None if bool(there_BN.all()) else there_BN.unflatten(1, (groups, -1))[:, None, :, :, None]
        key = affine(padded.unflatten(2, (groups, -1)), self.bits, 3, there)
        value = affine(values_BGNC.unflatten(3, (-1, self.channels)), self.bits, 4)
        return (
            pack(key.codes.flatten(2, 3)[:, :, :count], self.bits),
            key.low.squeeze(3),
            key.step.squeeze(3),
            pack(value.codes.flatten(3), self.bits),
            value.low.squeeze(4),
            value.step.squeeze(4),
        )

    def decode(self, parts: Parts, keys_BGNC: Tensor, values_BGNC: Tensor) -> None:
        key_codes, key_low, key_step, value_codes, value_low, value_step = parts
        unpack_into(key_codes, self.bits, keys_BGNC)
        whole = keys_BGNC.shape[2] // self.group * self.group
        for tokens, groups in (
            (slice(0, whole), slice(0, whole // self.group)),
            (slice(whole, None), slice(-1, None)),
        ):
            run = keys_BGNC[:, :, tokens]
            if run.shape[2]:
                grouped = run.unflatten(2, (key_low[:, :, groups].shape[2], -1))
                grouped.mul_(key_step[:, :, groups, None]).add_(key_low[:, :, groups, None])
        unpack_into(value_codes, self.bits, values_BGNC)
        values_BGNC.unflatten(3, (-1, self.channels)).mul_(value_step[..., None]).add_(value_low[..., None])

    def take(self, parts: Parts, index_BGK: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        of_group = index_BGK // self.group
        at = (index_BGK, of_group, of_group, index_BGK, index_BGK, index_BGK)
        key_codes, key_low, key_step, value_codes, value_low, value_step = (
            gather(part, index) for part, index in zip(parts, at, strict=True)
        )
        shape = (*index_BGK.shape, like.shape[-1])
        keys, values = like.new_empty(shape), like.new_empty(shape)
        unpack_into(key_codes, self.bits, keys)
        keys.mul_(key_step).add_(key_low)
        unpack_into(value_codes, self.bits, values)
        values.unflatten(3, (-1, self.channels)).mul_(value_step[..., None]).add_(value_low[..., None])
        return keys, values
