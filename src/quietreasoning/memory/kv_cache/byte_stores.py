"""Keys and values in bytes that are written once and never again.

Shapes: B rows, G key/value heads, N tokens, C head width, K tokens asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quietreasoning.memory.kv_cache.codecs import Codec, Grouped, Parts
from quietreasoning.memory.kv_cache.snapkv import ROUNDING, best, gather, positions
from quietreasoning.memory.kv_cache.stores import Pair, Plain, Scratch, Store


@dataclass(frozen=True)
class Run:
    """Tokens in bytes."""

    codec: Codec
    parts: Parts
    count: int
    valid_BN: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Run:
        valid_BN = None if self.valid_BN is None else change(self.valid_BN)
        return replace(self, parts=tuple(change(part) for part in self.parts), valid_BN=valid_BN)

    def join(self, other: Run) -> Run:
        parts = tuple(torch.cat(pair, 2) for pair in zip(self.parts, other.parts, strict=True))
        return replace(self, parts=parts, count=self.count + other.count)


class Bytes(Store):
    """Closed tokens are encoded at once; decoded ones wait in floating point until their group is full."""

    def __init__(self, codec: Codec, group: int, scratch: Scratch):
        self.codec, self.group, self.scratch = codec, group, scratch
        self._runs: list[Run] = []
        self._decoded: Run | None = None
        self._tail = Plain(group)

    def close(
        self, keys: Tensor, values: Tensor, valid: Tensor | None, salience: Tensor | None = None
    ) -> None:
        self._close(self.codec, keys, values, valid)

    def _close(self, codec: Codec, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        count = keys.shape[2]
        if count:
            self._like = keys.new_empty(keys.shape[0], keys.shape[1], 0, keys.shape[3])
            self._runs.append(Run(codec, codec.encode(keys, values, valid), count, valid))
            self.closed += count

    def append(self, keys: Tensor, values: Tensor) -> None:
        self._tail.append(keys, values)
        self.decoded += 1
        if len(self._tail) == self.group:
            run = Run(self.codec, self.codec.encode(*self._tail.read(), None), self.group)
            self._decoded = run if self._decoded is None else self._decoded.join(run)
            self._tail.clear()

    def evict(self, count: int) -> None:
        old = self._decoded
        if old is None or old.count < count:
            raise RuntimeError(f"{count} tokens are to leave, {old.count if old else 0} are in bytes")
        left = old.count - count
        self._decoded = replace(old, parts=old.codec.drop(old.parts, count), count=left) if left else None
        self.decoded -= count

    def read(self) -> Pair:
        return self._read([*self._runs, *self._decoded_runs()], len(self))

    def decoded_pair(self) -> Pair:
        return self._read(self._decoded_runs(), self.decoded)

    def _decoded_runs(self) -> list[Run]:
        return [] if self._decoded is None else [self._decoded]

    def _read(self, runs: list[Run], count: int) -> Pair:
        keys, values = self.scratch.take(self._like, count)
        at = 0
        for run in runs:
            run.codec.decode(run.parts, keys[:, :, at : at + run.count], values[:, :, at : at + run.count])
            at += run.count
        if len(self._tail):
            for out, tail in zip((keys, values), self._tail.read(), strict=True):
                out[:, :, at:] = tail
        return keys, values

    def take(self, index_BGK: Tensor) -> Pair:
        if len(self._runs) != 1:
            raise RuntimeError(f"tokens can be taken from one closed run, not from {len(self._runs)}")
        return self._runs[0].codec.take(self._runs[0].parts, index_BGK, self._like)

    def valid(self) -> Tensor | None:
        if all(run.valid_BN is None for run in self._runs):
            return None
        ones = torch.ones(self._like.shape[0], len(self), dtype=torch.bool, device=self._like.device)
        parts = [ones[:, : run.count] if run.valid_BN is None else run.valid_BN for run in self._runs]
        return torch.cat([*parts, ones[:, : self.decoded]], 1)

    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        self._like = change(self._like)
        self._runs = [run.map(change) for run in self._runs]
        self._decoded = None if self._decoded is None else self._decoded.map(change)
        self._tail.rows(change)

    def tensors(self) -> Iterator[Tensor]:
        for run in [*self._runs, *self._decoded_runs()]:
            yield from run.parts
            if run.valid_BN is not None:
                yield run.valid_BN
        yield from self._tail.tensors()


class Mixed(Bytes):
    """ZipCache (arXiv 2405.14256): salient tokens of a prompt in 4 bits, the others in 2.

    Departures: decoded tokens and texts after the first get 4 bits, for nobody has measured their salience
    when they are written; both parts are coded by KIVI's groups, not by channel-normalised tokens.
    """

    def __init__(self, width: int, group: int, share: float, scratch: Scratch):
        super().__init__(Grouped(4, group, width), group, scratch)
        self.low, self.share = Grouped(2, group, width), share

    def close(
        self, keys: Tensor, values: Tensor, valid: Tensor | None, salience: Tensor | None = None
    ) -> None:
        if salience is None:
            super().close(keys, values, valid)
            return
        if valid is None:
            valid = torch.ones(keys.shape[0], keys.shape[2], dtype=torch.bool, device=keys.device)
        count_B = (valid.sum(1) * self.share + 1 - ROUNDING).long()
        salient_BGN = best(salience, valid, count_B)
        for codec, part_BGN in ((self.codec, salient_BGN), (self.low, valid[:, None] & ~salient_BGN)):
            index, real = positions(part_BGN)
            self._close(codec, gather(keys, index), gather(values, index), real)
