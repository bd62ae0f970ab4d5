"""What the key/value caches of an arm hold and what its answers take: bytes, peak memory, tokens a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from quietreasoning.contract import Response
from quietreasoning.memory.kv_cache.cache import Cache, CompressedCache, held_bytes

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """The most memory held since `begin`, above what was then: allocated on a GPU, resident elsewhere."""

    def __init__(self, device: torch.device):
        self.device = device
        self.begin()

    def begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before: int | None = torch.cuda.memory_allocated(self.device)
            return
        try:
            CLEAR.write_text("5")  # VmHWM starts anew, see proc_pid_clear_refs(5)
            self.before = resident("VmRSS")
        except OSError:
            self.before = None

    def above(self) -> int | None:
        """Bytes; None where the system does not tell (Linux does)."""
        if self.before is None:
            return None
        cuda = self.device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self.device) if cuda else resident("VmHWM")
        return max(most - self.before, 0)


def resident(key: str) -> int:
    """Bytes of a line of /proc/self/status, which counts kB."""
    (line,) = (each for each in STATUS.read_text().splitlines() if each.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


class Meter:
    """Of one arm, batch by batch. `make` is what the backbone takes its caches from."""

    def __init__(self, device: torch.device):
        self.maker: Callable[[], Cache] | None = None
        self.peak = Peak(device)
        self.made: list[Cache] = []
        self.most: int | None = None
        self.timed: list[tuple[int, float]] = []  # tokens, milliseconds
        self.prompts = self.bytes = self.plain_bytes = self.measured = self.fell = 0

    def make(self) -> Cache:
        if self.maker is None:
            raise RuntimeError("a meter makes caches inside `through`")
        self.made.append(self.maker())
        return self.made[-1]

    def begin(self) -> None:
        """Before a batch."""
        self.made.clear()
        self.peak.begin()

    def note(self, response: Response, milliseconds: float) -> tuple[int, int]:
        """After it: what its caches hold, and what plain ones would."""
        above = self.peak.above()
        self.most = above if self.most is None else max(self.most, above or 0)
        self.prompts += len(response.answers)
        written = sum(response.visible_tokens) + sum(map(len, response.answers))
        self.timed.append((written, milliseconds))
        held = plain = 0
        for cache in self.made:
            size = held_bytes(cache)
            held += size
            if isinstance(cache, CompressedCache):
                stats = cache.stats()
                plain += stats.plain_bytes
                self.measured += len(stats.errors)
                self.fell += len(stats.fallback_layers)
            else:
                plain += size
        self.made.clear()
        self.bytes += held
        self.plain_bytes += plain
        return held, plain

    def figures(self) -> dict[str, float | None]:
        """bytes: of the caches when their prompts were answered, a prompt. compression: how many times fewer
        than a plain cache of the same columns. fallback_rate: share of the layers whose error was measured
        that took 8 bits; None where none was. tokens_s: written, over the whole time of their batches, the
        first one left out where there are more. peak_bytes: of the batch that took most, above what was held
        before its prompts were read; None where the system does not tell."""
        timed = self.timed[1:] or self.timed
        return {
            "bytes": self.bytes / self.prompts,
            "compression": self.plain_bytes / self.bytes if self.bytes else 1.0,
            "fallback_rate": self.fell / self.measured if self.measured else None,
            "tokens_s": 1000 * sum(written for written, _ in timed) / sum(ms for _, ms in timed),
            "peak_bytes": self.most,
        }
