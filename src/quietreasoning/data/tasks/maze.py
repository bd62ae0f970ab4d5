"""Mazes: a square grid with a start S and a goal G asks for the one shortest path between them.

Prompt and answer have one word a square, row after row: `#` is a wall, `.` floor, and in the answer `o` lies
on the path. A step is the next square of the path, `r2c3`.

Rooms stand on every second square; a random walk that backs up at dead ends joins them into a tree, then a
share `loops` of the walls left between two rooms falls. With loops some squares are reached by two equally
short ways; those are never the goal.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from pydantic import Field, model_validator

from quietreasoning.config import Settings, UserError
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask
from quietreasoning.data.tasks.grids import name, views

_MAX_MAZES = 1000
_BUCKET = 8  # moves


class MazeConfig(Settings):
    size: int = Field(9, ge=5, le=41)
    """Squares of a side, an odd number."""
    moves: int | None = Field(None, ge=2)
    """Fewest moves from start to goal; null: 2 (size - 1), the most that every maze has."""
    loops: float = Field(0.1, ge=0, le=0.5)
    """Share of the walls between two rooms that falls; 0: a tree, in which no other way exists."""

    @property
    def fewest(self) -> int:
        return 2 * (self.size - 1) if self.moves is None else self.moves

    @model_validator(mode="after")
    def _fits(self) -> MazeConfig:
        if self.size % 2 == 0:
            raise ValueError(f"size={self.size} must be odd: rooms and walls take turns")
        if self.fewest > 2 * (self.size - 1):
            raise ValueError(
                f"moves={self.moves} must be at most 2 (size - 1) = {2 * (self.size - 1)}, corner to corner"
            )
        return self


class Problem(NamedTuple):
    floor: tuple[int, ...]  # 1 where one can stand
    path: tuple[int, ...]  # squares from start to goal


class Maze(GeneratedTask):
    Config = MazeConfig
    name = "maze"
    describe = "the one shortest path through a maze, marked square by square"
    scorer = "exact"
    shares = {"train": 50, "valid": 25, "test": 25}
    config: MazeConfig

    def vocabulary(self) -> list[str]:
        size = self.config.size
        return ["#", ".", "S", "G", "o", *(name(size, square) for square in range(size * size))]

    def draw(self, rng: random.Random) -> Problem:
        c = self.config
        for _ in range(_MAX_MAZES):
            floor = carve(c.size, c.loops, rng)
            start = rng.choice([square for square, open in enumerate(floor) if open])
            moves, ways = survey(floor, start)
            goals = [square for square, far in moves.items() if far >= c.fewest and ways[square] == 1]
            if goals:
                return Problem(floor, path_to(rng.choice(goals), moves, c.size))
        raise UserError(
            f"task maze drew {_MAX_MAZES} mazes without one shortest path of {c.fewest} moves; "
            "lower data.options.moves or data.options.loops"
        )

    def canonical(self, problem: Problem) -> str:
        return "".join(map(str, min(views(problem.floor))))  # walls alone, whatever start and goal

    def render(self, problem: Problem, id: str, rng: random.Random) -> Example:
        floor, path = problem
        squares = tuple(name(self.config.size, square) for square in path[1:])
        return Example(
            id=id,
            prompt=written(problem, ()),
            steps=squares,
            results=squares,
            answer=written(problem, path),
            meta={"floor": floor, "path": path, "moves": len(path) - 1},
        )

    def group(self, example: Example) -> str:
        low = example.meta["moves"] // _BUCKET * _BUCKET
        return f"{low} to {low + _BUCKET - 1} moves"

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """The walk that always steps nearer to the goal if it can; what is left where dead ends are filled
        square by square, four times or until there are none (in a tree this is the path)."""
        problem = Problem(example.meta["floor"], example.meta["path"])
        return {
            "greedy": written(problem, greedy(problem)),
            "dead-ends-4": written(problem, without_dead_ends(problem, 4)),
            "dead-ends": written(problem, without_dead_ends(problem, len(problem.floor))),
        }


def written(problem: Problem, marked: tuple[int, ...]) -> str:
    words = ["." if open else "#" for open in problem.floor]
    for square in marked:
        words[square] = "o"
    words[problem.path[0]], words[problem.path[-1]] = "S", "G"
    return " ".join(words)


@cache
def beside(size: int) -> tuple[tuple[int, ...], ...]:
    """The squares above, left, right and below each square."""
    found = []
    for square in range(size * size):
        row, column = divmod(square, size)
        around = ((row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column))
        found.append(tuple(r * size + c for r, c in around if 0 <= r < size and 0 <= c < size))
    return tuple(found)


def carve(size: int, loops: float, rng: random.Random) -> tuple[int, ...]:
    """Rooms in a tree of passages, and the loops."""
    rooms = [r * size + c for r in range(0, size, 2) for c in range(0, size, 2)]
    floor = [0] * (size * size)
    trail = [rng.choice(rooms)]
    floor[trail[0]] = 1
    while trail:
        doors = [(door, room) for door, room in _doors(size, trail[-1]) if not floor[room]]
        if doors:
            door, room = rng.choice(doors)
            floor[door] = floor[room] = 1
            trail.append(room)
        else:
            trail.pop()
    closed = [door for a in rooms for door, b in _doors(size, a) if a < b and not floor[door]]
    for door in rng.sample(closed, round(loops * len(closed))):
        floor[door] = 1
    return tuple(floor)


def _doors(size: int, room: int) -> Iterator[tuple[int, int]]:
    """(wall between, room behind it) for the up to four rooms beside a room."""
    for door in beside(size)[room]:
        behind = 2 * door - room
        if behind in beside(size)[door]:
            yield door, behind


def survey(floor: tuple[int, ...], start: int) -> tuple[dict[int, int], dict[int, int]]:
    """Square -> moves from the start, and how many shortest paths lead there."""
    around = beside(round(len(floor) ** 0.5))
    moves, ways, ring = {start: 0}, {start: 1}, [start]
    while ring:
        outer: dict[int, int] = {}
        for square in ring:
            for other in around[square]:
                if floor[other] and other not in moves:
                    outer[other] = outer.get(other, 0) + ways[square]
        moves |= dict.fromkeys(outer, moves[ring[0]] + 1)
        ways |= outer
        ring = list(outer)
    return moves, ways


def path_to(goal: int, moves: Mapping[int, int], size: int) -> tuple[int, ...]:
    path = [goal]
    while moves[path[-1]]:
        path.append(next(s for s in beside(size)[path[-1]] if moves.get(s) == moves[path[-1]] - 1))
    return tuple(reversed(path))


def greedy(problem: Problem) -> tuple[int, ...]:
    """Until the goal, or until every open neighbour has been walked on."""
    size = round(len(problem.floor) ** 0.5)
    row, column = divmod(problem.path[-1], size)
    walk = [problem.path[0]]
    while walk[-1] != problem.path[-1]:
        ahead = [s for s in beside(size)[walk[-1]] if problem.floor[s] and s not in walk]
        if not ahead:
            break
        walk.append(min(ahead, key=lambda s: abs(s // size - row) + abs(s % size - column)))
    return tuple(walk)


def without_dead_ends(problem: Problem, rounds: int) -> tuple[int, ...]:
    """The floor left after filling, `rounds` times, all squares that have at most one open neighbour."""
    around = beside(round(len(problem.floor) ** 0.5))
    ends = {problem.path[0], problem.path[-1]}
    left = {square for square, open in enumerate(problem.floor) if open}
    for _ in range(rounds):
        dead = {s for s in left - ends if sum(other in left for other in around[s]) <= 1}
        if not dead:
            break
        left -= dead
    return tuple(left)
