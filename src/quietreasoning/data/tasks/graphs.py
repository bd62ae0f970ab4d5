"""Questions about directed acyclic graphs, and the rules that answer them without reasoning.

A question names a person (a node nothing points at) and two candidates; exactly one of them can
be reached from that person. ProsQA: Coconut, arXiv 2412.06769; what is wrong with it, and the
rules measured on its public files, stand in docs/tasks.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Edge = tuple[int, int]


@dataclass(frozen=True)
class Graph:
    size: int
    edges: tuple[Edge, ...]  # (parent, child), in the order the nodes were added

    @cached_property
    def children(self) -> list[int]:
        """Bit mask of each node's children."""
        masks = [0] * self.size
        for parent, child in self.edges:
            masks[parent] |= 1 << child
        return masks

    @cached_property
    def in_degree(self) -> list[int]:
        degrees = [0] * self.size
        for _, child in self.edges:
            degrees[child] += 1
        return degrees

    @cached_property
    def persons(self) -> tuple[int, ...]:
        """Nodes nothing points at: the named ones."""
        return tuple(node for node in range(self.size) if not self.in_degree[node])

    @cached_property
    def distances(self) -> dict[int, list[float]]:
        """Hops from each person to every node; infinite where there is no path."""
        return {person: self.distances_from(person) for person in self.persons}

    def distances_from(self, source: int) -> list[float]:
        hops: list[float] = [math.inf] * self.size
        front, seen, distance = 1 << source, 0, 0
        while front:
            seen |= front
            reached = 0
            for node in bits(front):
                hops[node] = distance
                reached |= self.children[node]
            front = reached & ~seen
            distance += 1
        return hops

    def path(self, source: int, target: int) -> list[int]:
        """A shortest path; the parent added first is taken where several are as near."""
        hops = self.distances_from(source)
        path = [target]
        while path[-1] != source:
            path.append(min(p for p, c in self.edges if c == path[-1] and hops[p] == hops[c] - 1))
        return path[::-1]


@dataclass(frozen=True)
class Question:
    graph: Graph
    root: int
    target: int
    other: int  # the candidate that cannot be reached from the root

    def from_others(self, node: int) -> float:
        """Hops to a node from the nearest person who is not asked about."""
        hops = self.graph.distances
        return min((hops[p][node] for p in self.graph.persons if p != self.root), default=math.inf)

    def others_within(self, node: int, hops: float) -> int:
        """How many persons who are not asked about reach a node within `hops`."""
        reach = self.graph.distances
        return sum(reach[p][node] <= hops for p in self.graph.persons if p != self.root)


def bits(mask: int) -> Sequence[int]:
    """Positions of the set bits."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


# Shortcut rules: each gives a candidate, or None for a tie, which counts one half.


def lower_in_degree(q: Question) -> int | None:
    degree = q.graph.in_degree
    return _choose(q, -degree[q.target], -degree[q.other])


def not_from_others(q: Question, hops: int) -> int | None:
    """The candidate that no person but the one asked about reaches within `hops`."""
    return _choose(q, q.from_others(q.target) > hops, q.from_others(q.other) > hops)


def fewer_others(q: Question, hops: float) -> int | None:
    """The candidate that fewer persons but the one asked about reach within `hops`."""
    return _choose(q, -q.others_within(q.target, hops), -q.others_within(q.other, hops))


def from_root(q: Question, hops: int) -> int | None:
    """The intended computation, cut off after `hops`."""
    reach = q.graph.distances[q.root]
    return _choose(q, reach[q.target] <= hops, reach[q.other] <= hops)


def both_ways(q: Question, hops: int) -> int | None:
    """Reach from the root, then reach from the others, then the lower in-degree."""
    for choice in (from_root(q, hops), not_from_others(q, hops)):
        if choice is not None:
            return choice
    return lower_in_degree(q)


def _choose(q: Question, target: float, other: float) -> int | None:
    if target == other:
        return None
    return q.target if target > other else q.other


def rules(q: Question) -> Mapping[str, int | None]:
    """Every rule by name. Those without `root` in it follow no edge from the person asked about."""
    return (
        {"in-degree": lower_in_degree(q)}
        | {f"others-{h}": not_from_others(q, h) for h in (1, 2, 3)}
        | {"fewer-others-3": fewer_others(q, 3), "fewer-others": fewer_others(q, q.graph.size)}
        | {f"root-and-others-{h}": both_ways(q, h) for h in (2, 3, 4)}
        | {f"root-{h}": from_root(q, h) for h in (2, 3, 4, 5)}
    )
