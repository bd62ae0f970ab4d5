"""Problems with known answers, a family a function: what is asked, and how each strategy that fits thinks.

Small numbers, plain words, marks between spaces. A family's question shows what kind of thinking fits, and
its `thoughts` say which strategies that are: they are the annotation. Every answer is computed, and every
thought ends with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from quietreasoning.data.strategies.forms import (
    CHAIN,
    DOUBT,
    FALSIFICATION,
    MECE,
)
from quietreasoning.data.tasks.arithmetic import Arithmetic, ArithmeticConfig
from quietreasoning.data.tasks.pointer import function

Piece = tuple[str, str]  # one line of a thought, and the result in it
LARGEST = 60  # no number is larger
NAMES = tuple("Ada Ben Cleo Dora Emil Finn Gwen Hugo".split())
THINGS = tuple("apples books coins eggs cups".split())


class Problem(NamedTuple):
    family: str
    facts: object  # what makes it this problem, whatever the names
    question: str
    answer: str | int
    thoughts: Mapping[str, Sequence[Piece]]  # strategy that fits -> its lines, each with its result


_STORY = Arithmetic(ArithmeticConfig(steps=(2, 3), largest=LARGEST))
_SENTENCES = {
    "+": "{name} finds {n} more .",
    "-": "{name} gives {n} away .",
    "*": "they grow to {n} times as many .",
    "/": "{name} keeps one of {n} equal parts .",
}


def story(rng: random.Random) -> Problem:
    """Operations in a row, as the task `arithmetic` draws them."""
    chain, name, things = _STORY.draw(rng), rng.choice(NAMES), rng.choice(THINGS)
    told = [f"{name} has {chain.start} {things} ."]
    told += [_SENTENCES[operator].format(name=name, n=n) for operator, n in chain.operations]
    before = chain.start
    steps = []
    for (operator, n), after in zip(chain.operations, chain.values(), strict=True):
        steps.append((f"<step> {before} {operator} {n} = {after} .", str(after)))
        before = after
    question = f"{' '.join(told)} how many {things} does {name} have now ?"
    return Problem(
        "story", _STORY.canonical(chain), question, before, {CHAIN: [*steps, _so("<step>", before)]}
    )


def hands(rng: random.Random) -> Problem:
    """A coin from hand to hand: pointers in words."""
    hops, names = rng.choice((2, 3)), rng.sample(NAMES, 4)
    goes = function(names, hops, rng)
    pairs = list(goes.items())
    rng.shuffle(pairs)
    at, steps = names[0], []
    for _ in range(hops):
        steps.append((f"<step> {at} gives to {goes[at]} .", goes[at]))
        at = goes[at]
    told = " ".join(f"{a} gives to {b} ." for a, b in pairs)
    question = f"{told} the coin starts with {names[0]} and moves {hops} times . who has it ?"
    facts = " ".join(f"{a}>{b}" for a, b in sorted(pairs))
    return Problem("hands", facts, question, at, {CHAIN: [*steps, _so("<step>", at)]})


def swaps(rng: random.Random) -> Problem:
    """A coin under one of three cups: a product of permutations in words."""
    start = at = rng.randint(1, 3)
    moves = [sorted(rng.sample((1, 2, 3), 2)) for _ in range(rng.choice((4, 5)))]
    steps = []
    for a, b in moves:
        at = {a: b, b: a}.get(at, at)
        steps.append((f"<step> swap {a} and {b} : cup {at} .", str(at)))
    told = " ".join(f"swap {a} and {b} ." for a, b in moves)
    question = f"the coin is under cup {start} of three cups . {told} under which cup is the coin ?"
    return Problem("swaps", (start, moves), question, at, {CHAIN: [*steps, _so("<step>", at)]})


GROUPS = (
    ("class", "girls", "boys", "children", "wear a hat"),
    ("farm", "cows", "goats", "animals", "sleep"),
    ("shop", "pens", "lamps", "things", "sell today"),
    ("harbor", "boats", "ships", "vessels", "need paint"),
)


def groups(rng: random.Random) -> Problem:
    """Two kinds that share nothing: what is left of each."""
    place, one, two, all_, do = rng.choice(GROUPS)
    a, b = rng.randint(4, 20), rng.randint(4, 20)
    x, y = rng.randint(2, a - 1), rng.randint(2, b - 1)
    question = (
        f"a {place} has {a} {one} and {b} {two} . {x} {one} and {y} {two} {do} . how many {all_} do not ?"
    )
    lines = [
        (f"<mece> case {one} : {a} - {x} = {a - x} .", str(a - x)),
        (f"case {two} : {b} - {y} = {b - y} .", str(b - y)),
        (
            f"no case overlaps and nothing is missing , so {a - x} + {b - y} = {a - x + b - y}",
            f"{a - x + b - y}",
        ),
    ]
    return Problem("groups", sorted(((a, x), (b, y))), question, a - x + b - y, {MECE: lines})


def parity(rng: random.Random) -> Problem:
    """How many numbers are even (odd) or large."""
    start, kind = rng.randint(1, 20), rng.choice(("even", "odd"))
    last = start + rng.randint(5, 11)
    above = rng.randint(start + 2, last - 1)
    other = "odd" if kind == "even" else "even"
    first = [n for n in range(start, last + 1) if n % 2 == (kind == "odd")]
    rest = [n for n in range(above + 1, last + 1) if n not in first]
    total = len(first) + len(rest)
    question = f"how many numbers from {start} to {last} are {kind} or greater than {above} ?"
    lines = [
        (f"<mece> case {kind} : {' , '.join(map(str, first))} makes {len(first)} .", str(len(first))),
        (f"case {other} : {' , '.join(map(str, rest)) or 'none'} makes {len(rest)} .", str(len(rest))),
        (f"no case overlaps and nothing is missing , so {len(first)} + {len(rest)} = {total}", str(total)),
    ]
    return Problem("parity", (kind, start, last, above), question, total, {MECE: lines})


CLAIMS: tuple[tuple[str, str, Callable[[int], bool]], ...] = (
    ("even", "odd", lambda n: n % 2 == 0),
    ("odd", "even", lambda n: n % 2 == 1),
    ("below 10", "above 9", lambda n: n < 10),
    ("above 9", "below 10", lambda n: n > 9),
)


def claim(rng: random.Random) -> Problem:
    """A claim about all numbers of a list, refuted by one of them or by none."""
    wanted, against, holds = rng.choice(CLAIMS)
    true = rng.random() < 0.5
    numbers = rng.sample([n for n in range(1, 20) if holds(n)], 4)
    if not true:
        numbers[rng.randrange(4)] = rng.choice([n for n in range(1, 20) if not holds(n)])
    culprit = next((str(n) for n in numbers if not holds(n)), "none")
    answer = "yes" if true else "no"
    listed = " , ".join(map(str, numbers))
    question = f"claim : all of {listed} are {wanted} . is the claim true ?"
    outcome = "nothing refutes it , the claim holds" if true else f"{culprit} refutes it"
    settled = "the first answer is kept" if true else "the first answer is corrected"
    return Problem(
        "claim",
        (wanted, sorted(numbers)),
        question,
        answer,
        {
            FALSIFICATION: [
                (f"<falsify> the claim fails if one number is {against} .", against),
                (f"check {listed} : {culprit} is {against} .", culprit),
                (f"{outcome} , so {answer}", answer),
            ],
            DOUBT: [
                ("<doubt> the first answer is yes .", "yes"),
                (f"a possible error : one number is {against} . look : {culprit} is {against} .", culprit),
                (f"{settled} , so {answer}", answer),
            ],
        },
    )


FENCES = (("fence", "post"), ("road", "tree"), ("wall", "lamp"), ("river", "boat"))


def fence(rng: random.Random) -> Problem:
    """Posts along a fence: one more than the gaps."""
    what, mark = rng.choice(FENCES)
    gap = rng.randint(2, 9)
    gaps = rng.randint(2, LARGEST // gap)
    length = gap * gaps
    question = (
        f"a {what} is {length} meters long with a {mark} every {gap} meters and at both ends . "
        f"how many {mark}s are there ?"
    )
    lines = [
        (f"<doubt> the first answer is {length} / {gap} = {gaps} .", str(gaps)),
        (f"a possible error : the {mark} at the start is missed .", "missed"),
        (f"the first answer is corrected , {gaps} + 1 = {gaps + 1} , so {gaps + 1}", str(gaps + 1)),
    ]
    steps = [
        (f"<step> {length} / {gap} = {gaps} gaps .", str(gaps)),
        (f"<step> {gaps} + 1 = {gaps + 1} {mark}s .", str(gaps + 1)),
        _so("<step>", gaps + 1),
    ]
    return Problem("fence", (length, gap), question, gaps + 1, {DOUBT: lines, CHAIN: steps})


def rides(rng: random.Random) -> Problem:
    """Cars for children: one more where some are left over."""
    seats, children, what = (
        rng.randint(3, 6),
        rng.randint(7, LARGEST),
        rng.choice(("cars", "boats", "trains")),
    )
    full, left = divmod(children, seats)
    cars = full + (left > 0)
    question = f"{children} children ride in {what} with {seats} seats each . how many {what} are needed ?"
    settled = f"corrected , {full} + 1 = {cars}" if left else "kept"
    lines = [
        (f"<doubt> the first answer is {full} full {what} .", str(full)),
        (
            f"a possible error : some children are left . {full} * {seats} = {full * seats} , {left} left .",
            str(left),
        ),
        (f"the first answer is {settled} , so {cars}", str(cars)),
    ]
    return Problem("rides", (children, seats), question, cars, {DOUBT: lines})


def _so(tag: str, answer: object) -> Piece:
    return f"{tag} so {answer}", str(answer)
