"""One rank's way through its rollouts: what is missing, in batches, a shard now and then, its pace."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quietreasoning.data.pairs.folder import read_rows
from quietreasoning.data.pairs.keys import Item, rank_of
from quietreasoning.data.pairs.roll import Roller
from quietreasoning.data.pairs.shards import Rollout, write_shard


class Stop(Protocol):
    """Someone may ask for an end; `check` raises once that is so."""

    requested: bool

    def check(self) -> None: ...


@dataclass
class Work:
    """One rank's way through its items."""

    folder: Path
    roll: Roller
    stop: Stop
    rank: int = 0
    ranks: int = 1

    def through(self, items: Sequence[Item], batch_size: int, checkpoint_every: int) -> None:
        """Make what is missing, a shard every `checkpoint_every` items.

        A stop saves what is done. What a killed process had not saved is made again, the same.
        """
        done = {row["key"] for row in read_rows(self.folder)}
        mine = [item for item in items if rank_of(item.problem.id, self.ranks) == self.rank]
        todo = sorted((item for item in mine if item.key not in done), key=lambda item: item.key)
        if len(todo) < len(mine):
            _say(f"going on: {len(mine) - len(todo)} of {len(mine)} rollouts are there")
        progress = Progress(len(todo))
        for start in range(0, len(todo), checkpoint_every):
            made: list[Rollout] = []
            chunk = todo[start : start + checkpoint_every]
            chunk.sort(key=lambda item: (len(item.problem.example.prompt), item.key))  # less padding
            for first in range(0, len(chunk), batch_size):
                made += self.roll(chunk[first : first + batch_size])
                progress.show(made[-1], len(made) + start)
                if self.stop.requested:
                    break
            write_shard(self.folder, made, self.rank, self.ranks)
            self.stop.check()


class Progress:
    """Now and then how far it is, how fast, how long it will take, and a sample."""

    def __init__(self, total: int, seconds: float = 5.0):
        self.total, self.seconds = total, seconds
        self.began = self.shown = time.monotonic()

    def show(self, latest: Rollout, done: int) -> None:
        now = time.monotonic()
        if now - self.shown < self.seconds and done < self.total:
            return
        self.shown, rate = now, done / max(now - self.began, 1e-9)
        left = (self.total - done) / rate
        row = latest.row
        chain = " ".join(" ; ".join(row.get("steps", ())).split())
        _say(f"{done}/{self.total} rollouts, {rate:.1f}/s, {left:.0f} s left; {row['outcome']}: {chain[:80]}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
