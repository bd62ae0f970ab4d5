"""Where a layer's keys and values lie; here as they are, in byte_stores.py in few bits.

What was closed (a prompt) stays for good; what was decoded comes one token at a time, the same for all rows,
and may leave from its old end. A store is read as closed tokens, then decoded ones.

Shapes: B rows, G key/value heads, N tokens, C head width, K tokens asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from quietreasoning.memory.kv_cache.snapkv import gather

SPARE = 16  # tokens of room when a buffer grows, or a sixteenth of it
Pair = tuple[Tensor, Tensor]


class Scratch:
    """One pair of buffers into which every layer is read in its turn: attention is done with one layer before
    the next is read. Only one layer's keys and values exist in floating point at a time."""

    def __init__(self) -> None:
        self._pair: Pair | None = None

    def take(self, like_BGNC: Tensor, count: int) -> Pair:
        """Keys and values [B, G, count, C] of any content."""
        rows, heads, _, width = like_BGNC.shape
        old = self._pair
        key = (rows, heads, width, like_BGNC.dtype, like_BGNC.device)
        if (
            old is None
            or key != (*old[0].shape[:2], width, old[0].dtype, old[0].device)
            or old[0].shape[2] < count
        ):
            self._pair = None  # free before asking for more
            self._pair = _room(like_BGNC, spared(count))
        keys, values = self._pair
        return keys[:, :, :count], values[:, :, :count]

    def tensors(self) -> Pair | tuple[()]:
        return self._pair or ()


def spared(count: int) -> int:
    return count + max(SPARE, count // 16)


def _room(like_BGNC: Tensor, count: int) -> Pair:
    rows, heads, _, width = like_BGNC.shape
    shape = (rows, heads, count, width)
    return like_BGNC.new_empty(shape), like_BGNC.new_empty(shape)


class Store(ABC):
    """Of one layer."""

    closed = 0
    decoded = 0

    def __len__(self) -> int:
        return self.closed + self.decoded

    @abstractmethod
    def close(
        self, keys: Tensor, values: Tensor, valid: Tensor | None, salience: Tensor | None = None
    ) -> None:
        """Tokens [B, G, N, C] that stay for good. valid [B, N]: None means all."""

    @abstractmethod
    def append(self, keys: Tensor, values: Tensor) -> None:
        """One decoded token [B, G, 1, C]."""

    @abstractmethod
    def evict(self, count: int) -> None:
        """Forget the oldest `count` decoded tokens, a multiple of the group."""

    @abstractmethod
    def read(self) -> Pair:
        """All keys and values [B, G, len, C], until the next call of any layer that shares the scratch."""

    @abstractmethod
    def take(self, index_BGK: Tensor) -> Pair:
        """Keys and values of some closed tokens."""

    @abstractmethod
    def decoded_pair(self) -> Pair:
        """Keys and values of the decoded tokens."""

    @abstractmethod
    def valid(self) -> Tensor | None:
        """Which tokens are real [B, len]; None: all."""

    @abstractmethod
    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Pick or repeat rows: `change` works on dimension 0."""

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Everything this store holds."""


class Plain(Store):
    """A buffer that grows by a sixteenth, so that a token is not paid for by copying all before it."""

    def __init__(self, room: int = 0) -> None:
        """room: tokens to make room for at first; 0 goes by what comes."""
        self.room = room
        self._pair: Pair | None = None
        self._valid_BN: Tensor | None = None  # of the closed tokens

    def close(
        self, keys: Tensor, values: Tensor, valid: Tensor | None, salience: Tensor | None = None
    ) -> None:
        count = keys.shape[2]
        if valid is not None or self._valid_BN is not None:
            ones = torch.ones(keys.shape[0], 1, dtype=torch.bool, device=keys.device)
            old = ones.expand(-1, self.closed) if self._valid_BN is None else self._valid_BN
            self._valid_BN = torch.cat([old, ones.expand(-1, count) if valid is None else valid], 1)
        self._grow(keys, count)
        first, last = self.closed, len(self)
        for buffer, new in zip(self._pair or (), (keys, values), strict=True):
            buffer[:, :, first + count : last + count] = buffer[:, :, first:last].clone()
            buffer[:, :, first : first + count] = new
        self.closed += count

    def append(self, keys: Tensor, values: Tensor) -> None:
        self._grow(keys, 1)
        for buffer, new in zip(self._pair or (), (keys, values), strict=True):
            buffer[:, :, len(self) : len(self) + 1] = new
        self.decoded += 1

    def evict(self, count: int) -> None:
        first, last = self.closed, len(self)
        for buffer in self._pair or ():
            buffer[:, :, first : last - count] = buffer[:, :, first + count : last].clone()
        self.decoded -= count

    def clear(self) -> None:
        """Forget everything and keep the room."""
        self.closed = self.decoded = 0

    def read(self) -> Pair:
        return self._slice(slice(0, len(self)))

    def take(self, index_BGK: Tensor) -> Pair:
        keys, values = self._slice(slice(0, self.closed))
        return gather(keys, index_BGK), gather(values, index_BGK)

    def decoded_pair(self) -> Pair:
        return self._slice(slice(self.closed, len(self)))

    def valid(self) -> Tensor | None:
        if self._valid_BN is None:
            return None
        return torch.nn.functional.pad(self._valid_BN, (0, self.decoded), value=True)

    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._pair is not None:
            self._pair = (change(self._pair[0]), change(self._pair[1]))
        if self._valid_BN is not None:
            self._valid_BN = change(self._valid_BN)

    def tensors(self) -> Iterator[Tensor]:
        yield from self._pair or ()
        if self._valid_BN is not None:
            yield self._valid_BN

    def _slice(self, tokens: slice) -> Pair:
        if self._pair is None:
            raise RuntimeError("an empty store was read")
        return self._pair[0][:, :, tokens], self._pair[1][:, :, tokens]

    def _grow(self, like: Tensor, count: int) -> None:
        if self._pair is not None and self._pair[0].shape[2] >= len(self) + count:
            return
        new = _room(like, max(self.room, len(self) + count) if self.room else spared(len(self) + count))
        for old, buffer in zip(self._pair or (), new, strict=False):
            buffer[:, :, : len(self)] = old[:, :, : len(self)]
        self._pair = new
