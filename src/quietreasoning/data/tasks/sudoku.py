"""Sudoku of 4x4, 6x6 or 9x9 cells with exactly one solution: `. 2 . 4 3 . ...` asks for all cells.

Prompt and answer have one word a cell, row after row, so that word i of the answer belongs to word i of the
prompt. A step names a blank and its digit, `r2c3 4`. Steps stand in an order in which they can be found: a
cell that a single digit fits, or a digit that fits a single cell of a row, column or box; where neither
exists, the cell with the fewest candidates is told, and `meta["told"]` counts it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

from pydantic import model_validator

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask
from quietreasoning.data.tasks.grids import name, views

Cells = tuple[int, ...]  # row after row, 0 for a blank

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size -> rows and columns of a box
BLANKS = {4: (8, 10, 12), 6: (16, 20, 24), 9: (30, 40, 50)}
MOST = {4: 12, 6: 26, 9: 55}  # blanks that digging at random reaches in more than half of all tries


class SudokuConfig(Settings):
    size: Literal[4, 6, 9] = 4
    """Cells of a row."""
    blanks: int | tuple[int, ...] | None = None
    """Blanks of a puzzle, its difficulty; several mix uniformly. null: 8, 10, 12 of 16 cells; 16, 20, 24
    of 36; 30, 40, 50 of 81."""

    @property
    def blank_counts(self) -> tuple[int, ...]:
        if self.blanks is None:
            return BLANKS[self.size]
        return (self.blanks,) if isinstance(self.blanks, int) else self.blanks

    @model_validator(mode="after")
    def _fits(self) -> SudokuConfig:
        counts, most = self.blank_counts, MOST[self.size]
        if not counts or min(counts) < 1 or max(counts) > most:
            raise ValueError(f"blanks={self.blanks} must lie between 1 and {most} for size={self.size}")
        return self


class Problem(NamedTuple):
    clues: Cells
    solution: Cells


class Sudoku(GeneratedTask):
    Config = SudokuConfig
    name = "sudoku"
    describe = "sudoku of 4x4, 6x6 or 9x9 cells with one solution"
    scorer = "exact"
    shares = {"train": 50, "valid": 25, "test": 25}
    config: SudokuConfig

    def vocabulary(self) -> list[str]:
        size = self.config.size
        names = [name(size, cell) for cell in range(size * size)]
        return [".", *map(str, range(1, size + 1)), *names]

    def draw(self, rng: random.Random) -> Problem:
        size, blanks = self.config.size, rng.choice(self.config.blank_counts)
        clues = None
        while clues is None:
            solution = next(solutions((0,) * (size * size), rng))
            clues = dig(solution, blanks, rng)
        return Problem(clues, solution)

    def canonical(self, problem: Problem) -> str:
        # the solved grid; there are too few of 4x4, where it is the puzzle
        cells = problem.clues if self.config.size == 4 else problem.solution
        square = self.config.size != 6  # on its side a box of 2 rows would have 3
        return " ".join(map(str, min(map(renamed, views(cells, turn=square)))))

    def render(self, problem: Problem, id: str, rng: random.Random) -> Example:
        clues, solution = problem
        size = self.config.size
        order, told = deduce(clues, solution)
        return Example(
            id=id,
            prompt=written(clues),
            steps=tuple(f"{name(size, cell)} {solution[cell]}" for cell in order),
            results=tuple(str(solution[cell]) for cell in order),
            answer=written(solution),
            meta={"clues": clues, "solution": solution, "blanks": clues.count(0), "told": told},
        )

    def group(self, example: Example) -> str:
        return f"{example.meta['blanks']} blanks"

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """The lowest digit that a blank's row, column and box leave; cells that one digit fits first, looked
        for once, or until there are none."""
        clues = example.meta["clues"]
        once = fill_singles(clues)
        fixed, before = once, clues
        while fixed != before:
            fixed, before = fill_singles(fixed), fixed
        return {
            "lowest": written(fill_lowest(clues)),
            "singles-once": written(fill_lowest(once)),
            "singles": written(fill_lowest(fixed)),
        }


def written(cells: Sequence[int]) -> str:
    return " ".join(str(digit) if digit else "." for digit in cells)


@cache
def units(size: int) -> tuple[Cells, ...]:
    """The cells of every row, column and box."""
    high, wide = BOXES[size]
    lines = range(size)
    rows = [tuple(r * size + c for c in lines) for r in lines]
    corners = [(r, c) for r in range(0, size, high) for c in range(0, size, wide)]
    boxes = [tuple((r + i) * size + c + j for i in range(high) for j in range(wide)) for r, c in corners]
    return (*rows, *zip(*rows, strict=True), *boxes)


@cache
def peers(size: int) -> tuple[Cells, ...]:
    """For every cell the others that share a row, column or box."""
    shared = ([unit for unit in units(size) if cell in unit] for cell in range(size * size))
    return tuple(tuple(sorted(set().union(*own) - {cell})) for cell, own in enumerate(shared))


def candidates(cells: Sequence[int]) -> dict[int, int]:
    """Blank -> the digits that its row, column and box leave, bit d for digit d."""
    size = round(len(cells) ** 0.5)
    every, left = (2 << size) - 2, {}
    for cell, others in enumerate(peers(size)):
        if not cells[cell]:
            taken = 0
            for other in others:
                taken |= 1 << cells[other]
            left[cell] = every & ~taken
    return left


def digits(bits: int) -> list[int]:
    return [digit for digit in range(1, bits.bit_length()) if bits >> digit & 1]


def solutions(cells: Cells, rng: random.Random | None = None) -> Iterator[Cells]:
    """Every solution, by search over the blank with the fewest candidates; rng: in random order."""
    grid, size = list(cells), round(len(cells) ** 0.5)

    def search(left: dict[int, int]) -> Iterator[Cells]:
        if not left:
            yield tuple(grid)
            return
        blanks = list(left)
        if rng is not None:
            rng.shuffle(blanks)
        cell = min(blanks, key=lambda blank: left[blank].bit_count())
        choices = digits(left[cell])
        if rng is not None:
            rng.shuffle(choices)
        for digit in choices:
            grid[cell] = digit
            rest = {blank: bits for blank, bits in left.items() if blank != cell}
            for other in peers(size)[cell]:
                if other in rest:
                    rest[other] &= ~(1 << digit)
            if all(rest.values()):
                yield from search(rest)
        grid[cell] = 0

    yield from search(candidates(cells))


def dig(solution: Cells, blanks: int, rng: random.Random) -> Cells | None:
    """Blank cells in random order, leaving those without which there would be a second solution; None where
    fewer than `blanks` can go."""
    cells, dug = list(solution), 0
    for cell in rng.sample(range(len(cells)), len(cells)):
        cells[cell] = 0
        # what had one solution and gets a second one has it with another digit in this cell
        others = (digit for digit in digits(candidates(cells)[cell]) if digit != solution[cell])
        if any(next(solutions((*cells[:cell], digit, *cells[cell + 1 :])), None) for digit in others):
            cells[cell] = solution[cell]
            continue
        dug += 1
        if dug == blanks:
            return tuple(cells)
    return None


def deduce(clues: Cells, solution: Cells) -> tuple[list[int], int]:
    """The blanks in an order in which they can be filled, and how many of them had to be told."""
    cells, order, told = list(clues), [], 0
    while left := candidates(cells):
        cell = next(_singles(cells, left), None)
        if cell is None:
            cell, told = min(left, key=lambda blank: left[blank].bit_count()), told + 1
        cells[cell] = solution[cell]
        order.append(cell)
    return order, told


def _singles(cells: Sequence[int], left: Mapping[int, int]) -> Iterator[int]:
    """Blanks with one candidate, then blanks alone in a unit with one of their candidates."""
    yield from (cell for cell, bits in left.items() if bits.bit_count() == 1)
    for unit in units(round(len(cells) ** 0.5)):
        blanks = [cell for cell in unit if cell in left]
        for cell in blanks:
            elsewhere = 0
            for other in blanks:
                elsewhere |= left[other] if other != cell else 0
            if left[cell] & ~elsewhere:
                yield cell


def fill_singles(cells: Cells) -> Cells:
    """All blanks with one candidate at once."""
    left = candidates(cells)
    return tuple(
        digit or (digits(left[cell])[0] if left[cell].bit_count() == 1 else 0)
        for cell, digit in enumerate(cells)
    )


def fill_lowest(cells: Cells) -> Cells:
    """Every blank gets its lowest candidate, whatever the others get."""
    left = candidates(cells)
    return tuple(digit or next(iter(digits(left[cell])), 1) for cell, digit in enumerate(cells))


def renamed(cells: Cells) -> Cells:
    """Digits in the order of their first appearance."""
    names = {0: 0}
    return tuple(names.setdefault(digit, len(names)) for digit in cells)
