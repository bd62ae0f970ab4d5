"""Random questions about graphs: as ProsQA asks them (`original`), and without shortcuts (`debiased`)."""

from __future__ import annotations

import bisect
import itertools
import math
import random

from quietreasoning.data.tasks.graphs import Edge, Graph, Question

_NO_PARENT = math.exp(-1.5)  # Poisson(1.5) of 0


def grow(rng: random.Random, size: int) -> Graph:
    """A graph grown node by node from two persons, 0 and 1.

    Parents are drawn from one side, the other or anywhere with probability .35, .35 and .30, deeper
    ones more often (weight 1.5 * depth + 1). Shares of in-degrees are fitted to the public files.
    """
    # side: bit 0 descends from node 0, bit 1 from node 1
    depth, side = [0, 0], [1, 2]
    edges: list[Edge] = []
    for node in range(2, size):
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
    rule that ignores the person does better than chance. Bystanders are added so that the rest of the
    persons tell nothing either: see `is_fair`.
    """
    while True:
        graph = grow(rng, rng.randint(16, 24))
        far = [_asked_of(graph, person) for person in (0, 1)]
        pairs = [(x, y) for x in far[0] for y in far[1] if graph.in_degree[x] == graph.in_degree[y]]
        if not pairs:
            continue
        # long walks are rare: favour them
        hops = graph.distances
        x, y = rng.choices(pairs, [3 ** (hops[0][x] + hops[1][y]) for x, y in pairs])[0]
        graph = add_bystanders(rng, graph, x, y)
        if is_fair(graph, x, y):
            pair, root = (x, y), rng.randrange(2)
            return Question(graph, root, pair[root], pair[1 - root])


def add_bystanders(rng: random.Random, graph: Graph, x: int, y: int) -> Graph:
    """One person who reaches x and y in equally many hops, and two or three who reach one of them.

    With two more persons behind one candidate, a rule that counts persons is right for one of the
    mirror questions and wrong for the other.
    """
    above = [_distances_to(graph, node) for node in (x, y)]
    limit = int(min(graph.distances[0][x], graph.distances[1][y]))
    hops = rng.randint(1, limit)
    shared = [[n for n in range(graph.size) if up[n] == hops - 1 and n > 1] for up in above]
    rich = rng.randrange(2)
    behind = [
        n
        for n in range(2, graph.size)
        if graph.in_degree[n]
        and max(1, hops - 1) <= above[rich][n] < limit
        and above[1 - rich][n] == math.inf
    ]
    aside = [n for n in range(2, graph.size) if graph.in_degree[n] and above[0][n] == above[1][n] == math.inf]
    if not all((*shared, behind, aside)):
        return graph
    edges = list(graph.edges)
    edges += [(graph.size, child) for child in sorted({rng.choice(nodes) for nodes in shared})]
    size = graph.size + 1 + rng.choice((2, 3))
    for person in range(graph.size + 1, size):
        edges += [(person, rng.choice(behind)), (person, rng.choice(aside))]
    return Graph(size, tuple(edges))


def is_fair(graph: Graph, x: int, y: int) -> bool:
    """Whether in-degree and the persons who are not asked about favour neither candidate.

    The nearest other person is as far from x as from y, whichever of 0 and 1 is asked about; and for
    every number of hops, counting the others who reach a candidate is right in one of the two mirror
    questions for each time it is wrong.
    """
    questions = Question(graph, 0, x, y), Question(graph, 1, y, x)
    if graph.in_degree[x] != graph.in_degree[y]:
        return False
    if any(
        q.from_others(q.target) != q.from_others(q.other) or q.from_others(q.target) == math.inf
        for q in questions
    ):
        return False
    return all(sum(_lead(q, hops) for q in questions) == 0 for hops in range(1, graph.size))


def _lead(q: Question, hops: float) -> int:
    """1 where fewer other persons reach the target than the other candidate within `hops`, -1 for more."""
    target, other = (q.others_within(node, hops) for node in (q.target, q.other))
    return (target < other) - (target > other)


def _distances_to(graph: Graph, node: int) -> list[float]:
    return Graph(graph.size, tuple((child, parent) for parent, child in graph.edges)).distances_from(node)


def _asked_of(graph: Graph, person: int) -> list[int]:
    hops = graph.distances[person]
    return [node for node in range(graph.size) if 3 <= hops[node] <= 6 and _only_from(graph, node, person)]


def _only_from(graph: Graph, node: int, person: int) -> bool:
    hops = graph.distances
    return hops[person][node] < math.inf and hops[1 - person][node] == math.inf
