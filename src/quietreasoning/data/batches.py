"""Examples to token ids to batches: row g of step s is `perm_e[(s*G + g) mod N]`.

G is the global batch and perm_e the permutation of epoch e, drawn from Philox(seed, e). A batch
depends on integers alone, so resuming is asking for the next step, and lanes and ranks only cut
the same G rows: 1 x 8 equals 8 x 1, one rank equals two.

Shapes as in contract.py: B rows, P prompt, K steps, S step, R result, A answer tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch
from quietreasoning.data.alignment import Coverage
from quietreasoning.data.encoder import Encoded, Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import digest

_GOLDEN = 0x9E3779B97F4A7C15  # odd, so that keys of different epochs differ
_MASK63 = (1 << 63) - 1


class Batches:
    """Training batches of a fixed list of examples; every row is encoded once and kept."""

    def __init__(self, examples: Sequence[Example], encoder: Encoder, batch_size: int, seed: int = 0):
        if len(examples) == 0:
            raise UserError("the training split holds no examples; check data.path and data.train")
        self.examples = examples
        self.encoder = encoder
        self.batch_size = batch_size
        self.seed = seed
        self._rows: list[tuple[int, Encoded] | None] = [None] * len(examples)
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def batch_at(self, step: int, lane: int = 0, lanes: int = 1, rank: int = 0, world: int = 1) -> Batch:
        """The microbatch of one lane and rank at an optimizer step, counted from 0."""
        cuts = lanes * world
        if self.batch_size % cuts:
            raise UserError(
                f"train.batch_size={self.batch_size} is not divisible by accumulate={lanes} x ranks={world}"
            )
        size = self.batch_size // cuts
        first = step * self.batch_size + (lane * world + rank) * size
        return self._collate(range(first, first + size))

    def rows_at(self, step: int) -> list[int]:
        """Indices of the examples that the whole global batch of a step holds."""
        first = step * self.batch_size
        return [row for row, _ in self._place(range(first, first + self.batch_size))]

    def prepare(
        self, steps: int | None = None, chunk: int = 1024, check: Callable[[], None] = lambda: None
    ) -> None:
        """Encode now what the first `steps` steps read, all examples if None, so that no training step waits
        for it; `check` may raise to stop."""
        rows: Sequence[int] = range(len(self))
        if steps is not None and steps * self.batch_size < len(self):
            rows = sorted(row for row, _ in self._place(range(steps * self.batch_size)))
        for first in range(0, len(rows), chunk):
            check()
            self._encode(rows[first : first + chunk])

    def fingerprint(self, samples: int = 256) -> str:
        """SHA-256 over the number of rows and up to `samples` encoded rows, evenly spaced."""
        rows = sorted({i * len(self) // samples for i in range(samples)})
        self._encode(rows)
        sha = hashlib.sha256(str(len(self)).encode())
        for row in rows:
            key, encoded = self._rows[row]
            sha.update(str(key).encode())
            for part in (encoded.prompt, encoded.steps, encoded.step_lengths, encoded.answer):
                sha.update(part.tobytes())
            sha.update(b"" if encoded.rejected is None else encoded.rejected.tobytes())
        return sha.hexdigest()

    def coverage(self) -> Coverage | None:
        """What a teacher's tokenizer and the student's have in common, on the rows encoded so far; None where
        no such teacher reads them."""
        if self.encoder.taught is None:
            return None
        return sum((row[1].taught.coverage for row in self._rows if row is not None), Coverage())

    def _place(self, positions: range) -> list[tuple[int, int]]:
        """(row, epoch) at each position of the endless sequence of epochs."""
        placed: list[tuple[int, int]] = []
        while len(placed) < len(positions):
            epoch, offset = divmod(positions[len(placed)], len(self))
            rest = len(positions) - len(placed)
            placed += [(row, epoch) for row in self._order(epoch)[offset : offset + rest].tolist()]
        return placed

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if abs(e - epoch) == 1}
            self._orders[epoch] = permutation(len(self), self.seed, epoch)
        return self._orders[epoch]

    def _collate(self, positions: range) -> Batch:
        placed = self._place(positions)
        self._encode([row for row, _ in placed])
        kept = [self._rows[row] for row, _ in placed]
        # the epoch enters the key: what a method samples for a row is fresh each time it returns
        keys = [(key + epoch * _GOLDEN) & _MASK63 for (key, _), (_, epoch) in zip(kept, placed, strict=True)]
        batch = self.encoder.collate([encoded for _, encoded in kept], keys)
        return replace(batch, row_B=torch.tensor([row for row, _ in placed]))

    def _encode(self, rows: Sequence[int]) -> None:
        missing = [row for row in dict.fromkeys(rows) if self._rows[row] is None]
        if not missing:
            return
        examples = [self.examples[row] for row in missing]
        for row, example, encoded in zip(missing, examples, self.encoder.encode_many(examples), strict=True):
            self._rows[row] = (digest(example.id), encoded)


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of n rows in one epoch; a function of its arguments alone.

    Raw Philox words are sorted instead of calling numpy's shuffle, whose algorithm may change.
    """
    words = np.random.Philox(key=[seed & _MASK63, epoch]).random_raw(n)
    return np.argsort(words, kind="stable")


def count_tokens(batch: Batch) -> int:
    """Tokens in a batch: prompts, steps and answers, rejected ones too, without padding."""
    tensors: tuple[Tensor, ...] = (batch.prompt_BP, batch.steps_BKS, batch.answer_BA, batch.rejected_BA)
    return int(sum(torch.count_nonzero(ids != IGNORE) for ids in tensors))
