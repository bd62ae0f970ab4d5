"""One rank's way through the shards of a cache: what is missing, in batches, its pace."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quietreasoning.data.pairs.work import Stop
from quietreasoning.data.teacher_cache.keys import Row
from quietreasoning.data.teacher_cache.shards import is_whole, read_index, write_shard
from quietreasoning.data.teacher_cache.targets import Targets

Read = Callable[[Sequence[Row]], list[Targets]]  # a batch of rows to the targets of each


@dataclass
class Work:
    """One rank's way: shard i holds rows i*S to (i+1)*S and is closed by rank i mod R."""

    folder: Path
    settings: dict[str, Any]
    read: Read
    stop: Stop
    rank: int = 0
    ranks: int = 1

    def through(self, rows: Sequence[Row], batch_size: int) -> float:
        """Close the shards that are missing; how many tokens a second were read.

        A stop keeps the shards that are closed. What was not is made again, the same.
        """
        size = self.settings["rows_per_shard"]
        lines = read_index(self.folder)
        done = {number for number, line in lines.items() if is_whole(self.folder, line)}
        mine = range(self.rank, -(-len(rows) // size), self.ranks)
        todo = [number for number in mine if number not in done]
        if len(todo) < len(mine):
            _say(f"going on: {len(mine) - len(todo)} of {len(mine)} shards are there")
        pace = _Pace(sum(len(rows[n * size : (n + 1) * size]) for n in todo))
        for number in todo:
            chunk = rows[number * size : (number + 1) * size]
            targets = self._targets(chunk, batch_size, pace)
            write_shard(self.folder, number, chunk, targets, self.settings, self.rank, self.ranks)
        return pace.tokens_per_second

    def _targets(self, rows: Sequence[Row], batch_size: int, pace: _Pace) -> list[Targets]:
        """Targets of each row; rows of like length are read together, which takes less padding."""
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].read), i))
        found: dict[int, Targets] = {}
        for first in range(0, len(order), batch_size):
            self.stop.check()
            batch = order[first : first + batch_size]
            found |= zip(batch, self.read([rows[i] for i in batch]), strict=True)
            pace.show(len(batch), sum(len(rows[i].read) for i in batch))
        return [found[i] for i in range(len(rows))]


class _Pace:
    """Now and then how far it is, how fast, and how long it will take."""

    def __init__(self, total: int, seconds: float = 5.0):
        self.total, self.seconds = total, seconds
        self.rows = self.tokens = 0
        self.began = self.shown = time.monotonic()

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(time.monotonic() - self.began, 1e-9)

    def show(self, rows: int, tokens: int) -> None:
        self.rows += rows
        self.tokens += tokens
        now = time.monotonic()
        if now - self.shown < self.seconds and self.rows < self.total:
            return
        self.shown = now
        left = (self.total - self.rows) * (now - self.began) / self.rows
        _say(f"{self.rows}/{self.total} rows, {self.tokens_per_second:.0f} tokens/s, {left:.0f} s left")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
