"""Sudoku: one solution by brute force, steps that follow, splits blind to names and mirrors."""

import itertools
import random

import pytest

from quietreasoning.data.tasks import TASKS
from quietreasoning.data.tasks.sudoku import MOST, Problem, renamed, solutions

Sudoku = TASKS["sudoku"]


def make(**options):
    return Sudoku(Sudoku.Config.model_validate(options))


def all_small_grids():
    """Every filled 4x4 grid: rows of permutations whose columns and boxes hold each digit once."""
    lines = list(itertools.permutations((1, 2, 3, 4)))
    grids = []
    for rows in itertools.product(lines, repeat=4):
        boxes = (
            {rows[r][c], rows[r][c + 1], rows[r + 1][c], rows[r + 1][c + 1]} for r in (0, 2) for c in (0, 2)
        )
        if all(len(set(column)) == 4 for column in zip(*rows, strict=True)) and all(
            len(box) == 4 for box in boxes
        ):
            grids.append(tuple(itertools.chain(*rows)))
    return grids


def test_small_puzzles_fit_one_of_all_grids():
    grids = all_small_grids()
    assert len(grids) == 288
    assert set(solutions((0,) * 16)) == set(grids)
    for example in make(blanks=(1, 8, 12)).split("train", 150):
        clues = example.meta["clues"]
        fitting = [grid for grid in grids if all(c in (0, g) for c, g in zip(clues, grid, strict=True))]
        assert fitting == [example.meta["solution"]]


def test_search_finds_every_solution_and_none_where_there_is_none():
    solved = next(solutions((0,) * 36, random.Random(0)))
    two_left = tuple(0 if digit in (1, 2) else digit for digit in solved)
    found = set(solutions(two_left))
    assert solved in found and len(found) > 1, "1 and 2 may always change places"
    assert tuple({1: 2, 2: 1}.get(digit, digit) for digit in solved) in found
    assert list(solutions((1, 1, *(0,) * 14))) == []


def candidate_sets(cells, size):
    """Digits a blank may hold, by coordinates."""
    high, wide = {4: (2, 2), 6: (2, 3), 9: (3, 3)}[size]
    at = {divmod(i, size): digit for i, digit in enumerate(cells)}
    zone = {(r, c): (("r", r), ("c", c), ("b", r // high, c // wide)) for r, c in at}
    free = {
        spot: set(range(1, size + 1))
        - {digit for other, digit in at.items() if set(zone[other]) & set(zone[spot])}
        for spot, digit in at.items()
        if not digit
    }
    return free, zone


@pytest.mark.parametrize("size", [4, 6, 9])
def test_steps_follow_one_from_another(size):
    """Each is the only digit of its cell or the only cell for its digit, unless it counts as told."""
    for example in make(size=size, blanks=MOST[size] - 3).split("train", 6):
        cells, told = list(example.meta["clues"]), 0
        for step in example.steps:
            place, digit = step.split()
            row, column = (int(part) - 1 for part in place[1:].split("c"))
            free, zone = candidate_sets(cells, size)
            own = free[row, column]
            alone = own == {int(digit)} or any(
                not any(
                    int(digit) in free[other]
                    for other in free
                    if other != (row, column) and place in zone[other]
                )
                for place in zone[row, column]
            )
            told += not alone
            cells[row * size + column] = int(digit)
        assert tuple(cells) == example.meta["solution"] and told == example.meta["told"]
        assert told == 0 or size != 4


@pytest.mark.parametrize("size", [4, 6, 9])
def test_blanks_are_the_difficulty_and_mix_evenly(size):
    n = {4: 300, 6: 150, 9: 45}[size]
    examples = make(size=size).split("train", n)
    counts = [e.prompt.split().count(".") for e in examples]
    allowed = make(size=size).config.blank_counts
    assert set(counts) == set(allowed)
    assert all(counts.count(blanks) > n / 6 for blanks in allowed)
    for example, blanks in zip(examples, counts, strict=True):
        assert example.meta["blanks"] == blanks == len(example.steps)
        assert make().group(example) == f"{blanks} blanks"
        pairs = list(zip(example.prompt.split(), example.answer.split(), strict=True))
        assert len(pairs) == size * size and all(a in (".", b) for a, b in pairs)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_names_of_digits_and_mirrors_make_no_other_problem(size):
    task, rng = make(size=size), random.Random(size)
    problem, other = task.draw(rng), task.draw(rng)
    names = [0, *rng.sample(range(1, size + 1), size)]

    def changed(cells):
        rows = [[names[digit] for digit in cells[i : i + size]][::-1] for i in range(0, size * size, size)]
        if size != 6:
            rows = list(zip(*rows, strict=True))
        return tuple(itertools.chain(*rows))

    assert task.canonical(Problem(*map(changed, problem))) == task.canonical(problem)
    assert task.canonical(other) != task.canonical(problem)
    assert renamed((0, 3, 1, 3)) == (0, 1, 2, 1)


def test_a_solved_grid_stands_in_one_split_whatever_is_asked_of_it():
    """Of 4x4 there are too few: there it is the puzzle."""
    rng = random.Random(0)
    for size, same in ((6, True), (9, True), (4, False)):
        task = make(size=size)
        problem = task.draw(rng)
        easier = Problem(problem.solution, problem.solution)
        assert (task.canonical(easier) == task.canonical(problem)) is same


def test_shortcuts_fill_every_cell_and_do_not_solve():
    task = make(size=6, blanks=24)
    examples = task.split("train", 100)
    named = [task.shortcuts(example) for example in examples]
    right = {
        rule: sum(a[rule] == e.answer for a, e in zip(named, examples, strict=True)) for rule in named[0]
    }
    assert right["lowest"] <= right["singles-once"] < 20 and right["singles"] < 100
    for answers, example in zip(named, examples, strict=True):
        for answer in answers.values():
            pairs = zip(example.prompt.split(), answer.split(), strict=True)
            assert all(b != "." and a in (".", b) for a, b in pairs)


@pytest.mark.parametrize(
    "options", [{"size": 5}, {"blanks": 0}, {"blanks": 13}, {"size": 9, "blanks": [30, 60]}, {"blanks": []}]
)
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"size|blanks"):
        make(**options)


def test_all_words_are_known():
    for size in (4, 6, 9):
        task = make(size=size)
        words = set(task.vocabulary())
        for example in task.split("train", 5):
            assert {
                *example.prompt.split(),
                *example.answer.split(),
                *" ".join(example.steps).split(),
            } <= words
