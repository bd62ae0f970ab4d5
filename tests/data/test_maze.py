"""Mazes: whole, with one shortest path; splits know the walls alone; rules that do not search fail."""

import random

import pytest

from quietreasoning.config import UserError
from quietreasoning.data.tasks import TASKS, maze
from quietreasoning.data.tasks.grids import views
from quietreasoning.data.tasks.maze import Problem, survey

Maze = TASKS["maze"]


def make(**options):
    return Maze(Maze.Config.model_validate(options))


def passages(words, size):
    """Pairs of floor squares side by side."""
    floor = {divmod(i, size) for i, word in enumerate(words) if word != "#"}
    return floor, {(a, b) for a in floor for b in floor if b in ((a[0] + 1, a[1]), (a[0], a[1] + 1))}


@pytest.mark.parametrize("loops", [0.0, 0.3])
def test_a_maze_is_whole_and_a_tree_unless_it_has_loops(loops):
    for example in make(loops=loops, moves=4).split("train", 20):
        floor, pairs = passages(example.prompt.split(), 9)
        near = {a: {b for pair in pairs for b in pair if a in pair} for a in floor}
        reached = {next(iter(floor))}
        while more := set().union(*(near[a] for a in reached)) - reached:
            reached |= more
        assert reached == floor and {(r, c) for r in range(0, 9, 2) for c in range(0, 9, 2)} <= floor
        closed = 40 - 24  # walls between 5 x 5 rooms, less the tree's doors
        assert len(pairs) - (len(floor) - 1) == round(loops * closed)


def every_simple_path(floor, start, goal, longest):
    """Lengths and squares of all paths of at most `longest` moves that meet no square twice."""
    found, open_paths = [], [(start,)]
    for _ in range(longest):
        longer = []
        for path in open_paths:
            r, c = path[-1]
            for square in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if square in floor and square not in path:
                    (found if square == goal else longer).append((*path, square))
        open_paths = longer
    return found


def test_the_path_is_the_only_one_so_short():
    """Against all simple paths."""
    for example in make(loops=0.3, moves=6).split("train", 60):
        words, path = example.prompt.split(), [divmod(square, 9) for square in example.meta["path"]]
        floor, _ = passages(words, 9)
        start, goal = (divmod(words.index(end), 9) for end in "SG")
        assert every_simple_path(floor, start, goal, len(path) - 1) == [tuple(path)]
        assert example.results == tuple(f"r{r + 1}c{c + 1}" for r, c in path[1:])


def test_the_answer_marks_the_path_and_nothing_else():
    task = make()
    for example in task.split("train", 40):
        pairs = list(zip(example.prompt.split(), example.answer.split(), strict=True))
        assert all(a == b or (a, b) == (".", "o") for a, b in pairs)
        assert [b for _, b in pairs].count("o") == example.meta["moves"] - 1 == len(example.steps) - 1
        assert [b for _, b in pairs].count("S") == [b for _, b in pairs].count("G") == 1
        low = int(task.group(example).split()[0])
        assert low <= example.meta["moves"] < low + 8
        assert {*example.prompt.split(), *example.answer.split(), *example.steps} <= set(task.vocabulary())


def test_the_fewest_moves_are_kept():
    assert min(e.meta["moves"] for e in make().split("train", 60)) >= 16
    some = [e.meta["moves"] for e in make(moves=3).split("train", 100)]
    assert min(some) < 6 and max(some) > 16


def test_survey_counts_shortest_ways():
    """An open field of 3 x 3: binomial numbers."""
    moves, ways = survey((1,) * 9, 0)
    assert [moves[i] for i in range(9)] == [0, 1, 2, 1, 2, 3, 2, 3, 4]
    assert [ways[i] for i in range(9)] == [1, 1, 1, 1, 2, 3, 1, 3, 6]


def test_mirrors_turns_start_and_goal_make_no_other_problem():
    task, rng = make(), random.Random(0)
    problem, other = task.draw(rng), task.draw(rng)
    assert len(set(views(tuple(range(9))))) == 8 and len(set(views(tuple(range(36)), turn=False))) == 4
    for floor in views(problem.floor):
        assert task.canonical(Problem(floor, problem.path[::-1])) == task.canonical(problem)
    assert task.canonical(other) != task.canonical(problem)


@pytest.mark.parametrize(("options", "most"), [({}, 40), ({"size": 15}, 25), ({"loops": 0}, 45)])
def test_rules_that_do_not_search_fail(options, most):
    task = make(**options)
    examples = task.split("train", 100)
    named = [task.shortcuts(example) for example in examples]
    right = {
        rule: sum(a[rule] == e.answer for a, e in zip(named, examples, strict=True)) for rule in named[0]
    }
    assert set(right) == {"greedy", "dead-ends-4", "dead-ends"}
    assert right["greedy"] < most and right["dead-ends-4"] < 10
    # in a tree nothing but the path is left once all dead ends are filled
    assert right["dead-ends"] == 100 if options.get("loops") == 0 else right["dead-ends"] < 10


@pytest.mark.parametrize(
    ("options", "said"),
    [({"size": 8}, r"size=8 must be odd"), ({"size": 5, "moves": 9}, r"moves=9 must be at most .* = 8")],
)
def test_settings_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make(**options)


@pytest.mark.parametrize("options", [{"size": 3}, {"loops": 0.6}, {"moves": 1}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError):
        make(**options)


def test_mazes_that_never_come_are_one_clear_line(monkeypatch):
    monkeypatch.setattr(maze, "_MAX_MAZES", 0)
    with pytest.raises(UserError, match=r"maze drew 0 .* of 16 moves; lower data\.options\.moves"):
        make().split("train", 1)[0]
