"""Directed acyclic graphs in the manner of ProsQA, and the rules that answer without reasoning.

A question names a person (a node nothing points at) and two candidates; exactly one of them can
be reached from that person. ProsQA: Coconut, arXiv 2412.06769; what is wrong with it, and the
rules measured on its public files, stand in docs/tasks.md.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Edge = tuple[int, int]
_NO_PARENT = math.exp(-1.5)  # Poisson(1.5) of 0


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
    """Every rule of the audit by name. Those without `root` follow no edge from the person asked about."""
    return (
        {"in-degree": lower_in_degree(q)}
        | {f"others-{h}": not_from_others(q, h) for h in (1, 2, 3)}
        | {f"root-and-others-{h}": both_ways(q, h) for h in (2, 3, 4)}
        | {f"root-{h}": from_root(q, h) for h in (2, 3, 4, 5)}
    )


# Generators


def grow(rng: random.Random, size: int, neutral: int = 0) -> Graph:
    """A graph grown node by node from two persons, 0 and 1, and `neutral` more who are on no side.

    Parents are drawn from one side, the other or anywhere with probability .35, .35 and .30, deeper
    ones more often (weight 1.5 * depth + 1). Shares of in-degrees are fitted to the public files.
    """
    # side: bit 0 descends from node 0, bit 1 from node 1
    depth, side = [0] * (2 + neutral), [1, 2] + [0] * neutral
    edges: list[Edge] = []
    for node in range(2 + neutral, size):
        point = rng.random()
        banned = 2 if point < 0.35 else 1 if point < 0.70 else 0
        allowed = [n for n in range(node) if not side[n] & banned]
        parents = _weighted(rng, allowed, [1.5 * depth[n] + 1 for n in allowed], in_degree(rng))
        edges += [(parent, node) for parent in parents]
        depth.append(1 + max((depth[p] for p in parents), default=-1))
        side.append(0)
        for parent in parents:
            side[node] |= side[parent]
    return Graph(size, tuple(edges))


def in_degree(rng: random.Random) -> int:
    """0 rarely (a new person), else Poisson given that it is not 0."""
    if rng.random() < 0.026:
        return 0
    while True:
        count, product = 0, rng.random()
        while product > _NO_PARENT:
            count, product = count + 1, product * rng.random()
        if count:
            return count


def _weighted(rng: random.Random, items: list[int], weights: list[float], count: int) -> list[int]:
    """`count` different items, each drawn with probability proportional to its weight."""
    if count >= len(items):
        return items
    sums = list(itertools.accumulate(weights))
    chosen: list[int] = []
    while len(chosen) < count:
        item = items[bisect.bisect(sums, rng.random() * sums[-1])]
        if item not in chosen:
            chosen.append(item)
    return sorted(chosen)


def original(rng: random.Random) -> Question:
    """A question as ProsQA asks them: the candidates are ends of paths from persons 0 and 1."""
    while True:
        graph = grow(rng, min(28, max(14, round(rng.gauss(22.8, 2)))))
        ends = [node for node in range(2, graph.size) if not graph.children[node]]
        sides = [[n for n in ends if _only_from(graph, n, person)] for person in (0, 1)]
        if not all(sides):
            continue
        depths = [max(graph.distances[person][n] for n in sides[person]) for person in (0, 1)]
        root = int(depths[1] >= depths[0])
        hops = graph.distances[root]
        deep = [n for n in sides[root] if 3 <= hops[n] <= 6]
        if deep:
            deepest = [n for n in deep if hops[n] == depths[root]]
            target = rng.choice(deepest if deepest and rng.random() < 0.85 else deep)
            return Question(graph, root, target, rng.choice(sides[1 - root]))


def debiased(rng: random.Random) -> Question:
    """A question whose mirror image is as good: same graph, same candidates, other person, other answer.

    Persons 0 and 1 each reach one candidate in 3 to 6 hops; a coin decides who is asked about, so no
    rule that ignores the person does better than chance. The candidates have the same in-degree, and
    the nearest other person is as far from both, so neither in-degree nor the others tell them apart.
    """
    while True:
        graph = grow(rng, rng.randint(18, 27), neutral=rng.choice((1, 2)))
        far = {person: _asked_of(graph, person) for person in (0, 1)}
        pairs = [(x, y) for x in far[0] for y in far[1] if _matched(graph, x, y)]
        if pairs:
            # long walks are rare: favour them
            hops = graph.distances
            pair = rng.choices(pairs, [3 ** (hops[0][x] + hops[1][y]) for x, y in pairs])[0]
            root = rng.randrange(2)
            return Question(graph, root, pair[root], pair[1 - root])


def _asked_of(graph: Graph, person: int) -> list[int]:
    hops = graph.distances[person]
    return [node for node in range(graph.size) if 3 <= hops[node] <= 6 and _only_from(graph, node, person)]


def _matched(graph: Graph, x: int, y: int) -> bool:
    if graph.in_degree[x] != graph.in_degree[y]:
        return False
    bystanders = [graph.distances[person] for person in graph.persons if person > 1]
    near = [min((hops[node] for hops in bystanders), default=math.inf) for node in (x, y)]
    # no nearer person may break the tie: the one asked about in the mirror image stands among the others
    return near[0] == near[1] <= min(graph.distances[0][x], graph.distances[1][y])


def _only_from(graph: Graph, node: int, person: int) -> bool:
    hops = graph.distances
    return hops[person][node] < math.inf and hops[1 - person][node] == math.inf
