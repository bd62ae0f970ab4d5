"""Every generated task: disjoint splits, examples fixed by (seed, i), answers by an independent solver."""

import itertools
import json
import math
import operator
import re
from collections import Counter

import pytest
from ruler_solver import solve as solve_long
from strategy_solver import solve
from tools_solver import solve as solve_calls

from quietreasoning.config import UserError
from quietreasoning.data.tasks import TASKS, GeneratedTask
from quietreasoning.data.tasks.pointer import Problem

SETTINGS = {
    "pointer": [{}, {"map": "permutation"}, {"nodes": 5, "symbols": 5, "hops": 3}, {"hops": 1, "nodes": 3}],
    "arithmetic": [{}, {"style": "marked", "steps": 12}, {"style": "sentences", "largest": 5000}],
    "reachability": [{}, {"variant": "original"}, {"style": "sentences"}],
    "multiplication": [{}, {"digits": 1}, {"digits": 4}],
    "permutation": [{}, {"size": 3, "factors": [2, 3]}],
    "sudoku": [{}, {"blanks": 12}, {"size": 6}, {"size": 9, "blanks": 30}],
    "maze": [{}, {"loops": 0.4}, {"size": 5, "loops": 0, "moves": 2}, {"size": 15}],
    "strategies": [{}, {"instructed": 0.5, "plain": "steps"}],
    "tools": [{}, {"depth": 3, "parallel": 0.5, "distractors": "random"}],
    "programs": [{}, {"tools": 5, "most": 4}],
    "ruler": [
        {"length": 200, "common": 4, "common_times": 12},
        {"length": [96, 128], "words": 160, "key_words": 2, "common": 3, "common_times": 9},
    ],
}
CASES = [(name, options) for name, all_options in SETTINGS.items() for options in all_options]
SPLITS = ("train", "valid", "test")


def make(name: str, options: dict, seed: int = 0) -> GeneratedTask:
    task = TASKS[name](TASKS[name].Config.model_validate(options), seed=seed)
    assert isinstance(task, GeneratedTask)
    return task


def test_every_generated_task_is_covered():
    assert set(SETTINGS) == {name for name, task in TASKS.items() if issubclass(task, GeneratedTask)}


# Independent solvers: they read the prompt alone.


def solve_pointer(prompt: str) -> str:
    facts, _, query = prompt.partition(" ? ")
    arrows = dict(pair.split() for pair in facts.split(" , "))
    hops, node = query.split()
    for _ in range(int(hops)):
        node = arrows[node]
    return node


def solve_multiplication(prompt: str) -> str:
    a, b = (int("".join(reversed(side.split()))) for side in prompt.split("*"))
    width = len(prompt.split("*")[0].split()) * 2
    return " ".join(reversed(f"{a * b:0{width}d}"))


def solve_permutation(prompt: str) -> str:
    factors = [[int(digit) for digit in word[1:]] for word in prompt.split()]
    images = []
    for element in range(1, len(factors[0]) + 1):
        for factor in factors:
            element = factor[element - 1]
        images.append(str(element))
    return "p" + "".join(images)


def solve_reachability(prompt: str) -> str:
    if prompt.endswith("?"):
        facts, _, query = prompt.rpartition(" Is ")
        edges = re.findall(r"(\w+) is a (\w+)\.", facts)
        person, first, second = re.match(r"(\w+) a (\w+) or (\w+)\?", query).groups()
    else:
        facts, _, query = prompt.partition(" ? ")
        edges = re.findall(r"(\w+) > (\w+)", facts)
        person, first, second = re.match(r"(\w+) : (\w+) (\w+)", query).groups()
    reached = {person}
    while more := {child for parent, child in edges if parent in reached} - reached:
        reached |= more
    (answer,) = {first, second} & reached
    return f"{person} is a {answer}." if prompt.endswith("?") else answer


def solve_sudoku(prompt: str) -> str:
    """Knuth's exact cover (algorithm X): each cell, and each digit in each row, column and box, just once."""
    cells = prompt.split()
    size = math.isqrt(len(cells))
    high, wide = {4: (2, 2), 6: (2, 3), 9: (3, 3)}[size]
    covers, wanted = {}, {}
    for r, c, d in itertools.product(range(size), range(size), range(1, size + 1)):
        if cells[r * size + c] in (".", str(d)):
            box = (r // high, c // wide)
            covers[r, c, d] = (("cell", r, c), ("row", r, d), ("column", c, d), ("box", box, d))
            for want in covers[r, c, d]:
                wanted.setdefault(want, set()).add((r, c, d))
    found = []

    def search(wanted: dict, chosen: list) -> None:
        if not wanted:
            found.append(chosen)
        elif len(found) < 2:
            for choice in min(wanted.values(), key=len):
                clash = set().union(*(wanted[want] for want in covers[choice]))
                rest = {w: choices - clash for w, choices in wanted.items() if w not in covers[choice]}
                search(rest, [*chosen, choice])

    search(wanted, [])
    (only,) = found  # exactly one solution
    return " ".join(str(d) for _, _, d in sorted(only))


def solve_maze(prompt: str) -> str:
    """Count walks of each length between squares, until some reach the goal: there must be one."""
    words = prompt.split()
    size = math.isqrt(len(words))
    floor = [i for i, word in enumerate(words) if word != "#"]
    step = {
        i: [j for j in floor if abs(i // size - j // size) + abs(i % size - j % size) == 1] for i in floor
    }
    start, goal = words.index("S"), words.index("G")
    walks = [Counter({start: 1})]
    while goal not in walks[-1]:
        assert len(walks) <= len(floor)
        walks.append(sum((Counter(dict.fromkeys(step[i], n)) for i, n in walks[-1].items()), Counter()))
    assert walks[-1][goal] == 1, "one shortest path"
    at = goal
    for counts in reversed(walks[1:-1]):
        (at,) = (i for i in step[at] if counts[i])
        words[at] = "o"
    return " ".join(words)


def solve_arithmetic(prompt: str) -> str:
    kinds = [
        ("*", "times as many"),
        ("/", "equal|child's share"),
        ("-", "gives \\d+ of them|loses|break|borrows"),
        ("+", "finds|gives|another|extra"),
    ]
    apply = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    value, *rest = re.split(r"(?<=[.?]) ", prompt)[:-1]
    total = float(re.search(r"\d+", value)[0])
    for sentence in rest:
        kind = next(kind for kind, pattern in kinds if re.search(pattern, sentence))
        total = apply[kind](total, int(re.search(r"\d+", sentence)[0]))
    assert total == int(total)
    return str(int(total))


def solve_programs(prompt: str) -> str:
    """One call for one value, else a program: over a loop, or over the rows of a long result."""
    *declared, asked = prompt.splitlines()
    pattern = r"user : what is the (?:(total|highest|lowest) )?(\w+) (?:of|in) (.*) on day (\d+) \?"
    work, what, named, day = re.fullmatch(pattern, asked).groups()
    names = re.split(" , | and ", named)
    tool, value, long = {
        **{"price": ("_price", "price", 0), "rain": ("_rain", "rain", 0), "score": ("_score", "score", 0)},
        **{"sales": ("_sales", "sold", 1), "minutes": ("_visits", "minutes", 1)},
    }[what]
    line = next(line for line in declared if f'{tool}" (' in line)
    name, key = re.match(r'tool "(\w+)" \( "(\w+)"', line).groups()
    if work is None:
        return f'{{ "name" : "{name}" , "arguments" : {{ "{key}" : "{named}" , "day" : {day} }} }}'
    assert (len(names) > 1) != long
    loop = "" if long else f"for x in [ {' , '.join(map(json.dumps, names))} ] "
    function = {"total": "sum", "highest": "max", "lowest": "min"}[work]
    call = f"{name} ( {key} = {json.dumps(named) if long else 'x'} , day = {day} )"
    return f'```python\nprint ( {function} ( row [ "{value}" ] {loop}for row in {call} ) )\n```'


SOLVERS = {
    name.removeprefix("solve_"): solver for name, solver in globals().items() if name.startswith("solve_")
} | {"strategies": solve, "tools": solve_calls, "ruler": solve_long}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_answers_follow_from_the_prompt(name, options):
    for split in SPLITS:
        for example in make(name, options).split(split, 60 if split == "train" else 15):
            assert SOLVERS[name](example.prompt) == example.answer, example
            assert len(example.steps) == len(example.results) == example.meta["num_steps"]
            for step, result in zip(example.steps, example.results, strict=True):
                assert result and result in step


@pytest.mark.parametrize(("name", "options"), CASES)
def test_example_depends_on_seed_and_index_alone(name, options):
    task, again = make(name, options), make(name, options)
    few, many = task.split("train", 5), again.split("train", 50)
    assert [many[i] for i in (4, 0, 2)] == [few[i] for i in (4, 0, 2)]
    assert few[0] == again.example("train", 0) and few[-1] == few[4]
    other = make(name, options, seed=1).split("train", 30)
    assert [e.prompt for e in other] != [e.prompt for e in many[:30]]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_splits_are_disjoint_across_seeds(name, options):
    """No problem of one split is drawn for another, under any seed: checked on the canonical form."""
    owner = {}
    for seed, (split, n) in itertools.product((0, 1), (("train", 60), ("valid", 25), ("test", 25))):
        task = make(name, options, seed)
        canonical = task.canonical
        seen = []
        task.canonical = lambda problem, seen=seen, canonical=canonical: (
            seen.append(canonical(problem)) or seen[-1]
        )
        for i in range(n):
            task.example(split, i)
            assert owner.setdefault(seen[-1], split) == split


def test_canonical_forms_ignore_what_does_not_matter():
    pointer = make("pointer", {})
    arrows = {"a": "b", "b": "c", "c": "a"}
    shuffled = dict(sorted(arrows.items(), reverse=True))
    assert pointer.canonical(Problem(arrows, "a", 1)) == pointer.canonical(Problem(shuffled, "b", 2))
    multiplication = make("multiplication", {})
    assert multiplication.canonical((12, 34)) == multiplication.canonical((34, 12))


def test_ids_are_unique_and_read_only():
    examples = make("pointer", {}).split("train", 200)
    assert len({e.id for e in examples}) == 200
    with pytest.raises(TypeError):
        examples[0].meta["start"] = "z"


def test_too_few_problems_is_one_clear_line():
    with pytest.raises(UserError, match=r"pointer found no problem for split '(test|valid)'.*larger"):
        for split in ("valid", "test"):
            make("pointer", {"nodes": 3, "symbols": 3, "hops": 1, "map": "permutation"}).split(split, 1)[0]


def test_unknown_split_names_the_choices():
    with pytest.raises(UserError, match=r"no split 'tset'.*test"):
        make("pointer", {}).split("tset")


@pytest.mark.parametrize("kind", ["permutation", "function"])
def test_pointer_walks_never_meet_a_node_twice(kind):
    for example in make("pointer", {"nodes": 6, "hops": [2, 5], "map": kind}).split("train", 200):
        walk = [example.meta["start"], *example.results]
        assert len(set(walk)) == len(walk)
        pairs = dict(example.meta["pairs"])
        assert len(pairs) == 6 and all(a != b for a, b in pairs.items())
        if kind == "permutation":
            assert set(pairs.values()) == set(pairs)


def test_pointer_writes_hops_before_the_start_and_what_is_left_in_each_step():
    for example in make("pointer", {}).split("train", 20):
        start, hops = example.meta["start"], example.meta["hops"]
        assert example.prompt.endswith(f" ? {hops} {start}")
        walk = [start, *example.results]
        left = range(hops - 1, -1, -1)
        hop_texts = [f"{a} {b} , {n}" for (a, b), n in zip(itertools.pairwise(walk), left, strict=True)]
        assert list(example.steps) == hop_texts


def test_pointer_hops_mix_evenly():
    counts = [e.meta["hops"] for e in make("pointer", {"hops": [1, 2, 3, 4]}).split("train", 800)]
    assert all(150 <= counts.count(hops) <= 250 for hops in (1, 2, 3, 4))


@pytest.mark.parametrize(("name", "limit"), [("pointer", 0.5), ("arithmetic", 0.2), ("permutation", 0.1)])
def test_shortcuts_are_named_and_score_low(name, limit):
    task = make(name, {"hops": 4, "nodes": 10} if name == "pointer" else {})
    examples = task.split("train", 300)
    named = [task.shortcuts(example) for example in examples]
    assert len({tuple(rules) for rules in named}) == 1 and named[0]
    for rule in named[0]:
        right = sum(rules[rule] == e.answer for rules, e in zip(named, examples, strict=True))
        assert right / len(examples) < limit, rule


@pytest.mark.parametrize("options", [{"nodes": 2}, {"hops": 8}, {"hops": []}, {"symbols": 4}])
def test_pointer_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError):
        make("pointer", options)
