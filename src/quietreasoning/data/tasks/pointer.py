"""Pointer chains: `q c , b q , ... ? 2 b` asks for the node 2 hops after b.

A visible step names the hop and what is left: `b q , 1`, then `q c , 0`.

Every node of a random map is listed once, in random order. A walk never meets a node twice, so
no number of hops collapses into a smaller one and the start is never the answer. Base rates and
what each shortcut scores stand in docs/tasks.md.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping
from string import ascii_lowercase
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask

WORDS = (*ascii_lowercase, *(a + b for a in ascii_lowercase for b in ascii_lowercase))


class PointerConfig(Settings):
    nodes: int = Field(8, ge=3)
    """Entities in a map."""
    symbols: int = Field(16, ge=3, le=26 * 27)
    """Entities to draw the nodes from; one word each."""
    hops: int | tuple[int, ...] = (1, 2, 3, 4)
    """Hop counts; several mix uniformly."""
    map: Literal["permutation", "function"] = "function"
    """function: any map without fixed points; permutation: every node has one predecessor, so that on few
    nodes many hops are few hops backwards."""

    @property
    def hop_counts(self) -> tuple[int, ...]:
        return (self.hops,) if isinstance(self.hops, int) else self.hops

    @model_validator(mode="after")
    def _fits(self) -> PointerConfig:
        if self.symbols < self.nodes:
            raise ValueError(f"symbols={self.symbols} must be at least nodes={self.nodes}")
        if not self.hop_counts or min(self.hop_counts) < 1 or max(self.hop_counts) >= self.nodes:
            raise ValueError(f"hops={self.hops} must lie between 1 and nodes - 1 = {self.nodes - 1}")
        return self


class Problem(NamedTuple):
    successor: dict[str, str]  # in the order of the nodes drawn
    start: str
    hops: int


class Pointer(GeneratedTask):
    Config = PointerConfig
    name = "pointer"
    describe = "k-hop pointer chains over a random map of single-word entities"
    scorer = "exact"
    config: PointerConfig

    def vocabulary(self) -> list[str]:
        """The entities, most common spelling first: a..z, then aa, ab, ..."""
        return list(WORDS[: self.config.symbols])

    def draw(self, rng: random.Random) -> Problem:
        c = self.config
        hops = rng.choice(c.hop_counts)
        nodes = rng.sample(WORDS[: c.symbols], c.nodes)
        cut = permutation if c.map == "permutation" else function
        return Problem(cut(nodes, hops, rng), nodes[0], hops)

    def canonical(self, problem: Problem) -> str:
        # the map alone: a map of the training split never returns, whatever its start or hops
        return " ".join(f"{a}>{b}" for a, b in sorted(problem.successor.items()))

    def render(self, problem: Problem, id: str, rng: random.Random) -> Example:
        successor, start, hops = problem
        pairs = list(successor.items())
        rng.shuffle(pairs)
        walk = [start]
        for _ in range(hops):
            walk.append(successor[walk[-1]])
        return Example(
            id=id,
            prompt=" , ".join(f"{a} {b}" for a, b in pairs) + f" ? {hops} {start}",
            steps=tuple(
                f"{a} {b} , {hops - i}" for i, (a, b) in enumerate(itertools.pairwise(walk), start=1)
            ),
            results=tuple(walk[1:]),
            answer=walk[-1],
            meta={"start": start, "hops": hops, "pairs": tuple(pairs)},
        )

    def group(self, example: Example) -> str:
        return f"{example.meta['hops']} hops"

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """Walks of the wrong length, the node before the start, the node most pointed at."""
        pairs = example.meta["pairs"]
        successor = dict(pairs)
        before = {b: a for a, b in pairs}
        start = example.meta["start"]
        return {
            "start": start,
            "1-hop": successor[start],
            "2-hop": successor[successor[start]],
            "1-back": before.get(start, start),
            "2-back": before.get(before.get(start, start), start),
            "majority": Counter(b for _, b in pairs).most_common(1)[0][0],
        }


def permutation(nodes: list[str], hops: int, rng: random.Random) -> dict[str, str]:
    """No fixed points; the first node lies on a cycle longer than `hops`.

    The cycle's length is uniform over those allowed: with one left over, the last would be fixed.
    """
    allowed = [n for n in range(hops + 1, len(nodes) + 1) if n > 1 and n != len(nodes) - 1]
    length = rng.choice(allowed)
    ring, rest = nodes[:length], nodes[length:]
    successor = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    images = rest[:]
    while rest and any(a == b for a, b in zip(rest, images, strict=True)):
        rng.shuffle(images)
    return successor | dict(zip(rest, images, strict=True))


def function(nodes: list[str], hops: int, rng: random.Random) -> dict[str, str]:
    """Any map without fixed points in which `hops` steps from the first node meet no node twice."""
    walk = nodes[: hops + 1]
    successor = dict(itertools.pairwise(walk))
    for node in nodes[hops:]:
        successor[node] = rng.choice([other for other in nodes if other != node])
    return successor
