"""Belief under evidence, and what looks easier from another field. See `strategy_problems`."""

from __future__ import annotations

import random
from fractions import Fraction

from quietreasoning.data.strategies.forms import BAYESIAN, ORTHOGONAL
from quietreasoning.data.tasks.strategy_problems import LARGEST, Problem


def boxes(rng: random.Random) -> Problem:
    """Which of two boxes a ball came from."""
    size, weight = rng.randint(4, 9), rng.choice((1, 2, 3))
    a, b = rng.randint(2, size - 2), rng.randint(2, size - 2)
    color, other = rng.sample(("red", "blue", "green"), 2)
    picked = (
        "a fair coin picks the box"
        if weight == 1
        else f"box one is picked {weight} times as often as box two"
    )
    above = weight * a
    question = (
        f"box one has {a} {color} and {size - a} {other} balls . box two has {b} {color} and {size - b} "
        f"{other} balls . {picked} , and a {color} ball is drawn . what is the chance of box one ?"
    )
    chance = _fraction(above, above + b)
    lines = [
        (f"<reason> prior : {weight} to 1 for box one .", str(weight)),
        (f"evidence : {color} is {a} of {size} in box one and {b} of {size} in box two .", str(b)),
        (f"updated : {above} to {b} , so {chance}", chance),
    ]
    return Problem("boxes", (size, weight, a, b), question, chance, {BAYESIAN: lines})


def alarm(rng: random.Random) -> Problem:
    """How likely a person who is marked is sick."""
    sick, healthy = rng.randint(2, 9), rng.randint(4, 30)
    hit, false = rng.randint(1, sick), rng.randint(1, min(9, healthy))
    question = (
        f"of {sick + healthy} people {sick} are sick . a test marks {hit} of the sick and {false} of the "
        "healthy . Ada is marked . what is the chance that Ada is sick ?"
    )
    chance = _fraction(hit, hit + false)
    lines = [
        (f"<reason> prior : {sick} sick to {healthy} healthy .", str(healthy)),
        (f"evidence : {hit} of {sick} and {false} of {healthy} are marked .", str(false)),
        (f"updated : {hit} to {false} , so {chance}", chance),
    ]
    return Problem("alarm", (sick, healthy, hit, false), question, chance, {BAYESIAN: lines})


MEETINGS = (
    ("friends", "hugs", "hug"),
    ("cooks", "calls", "call"),
    ("singers", "visits", "visit"),
    ("players", "games", "play"),
    ("teams", "letters", "write to"),
)
ROWS = (
    ("boys", "girls", "dance", "dances"),
    ("cooks", "guests", "talk", "talks"),
    ("players", "teams", "play", "games"),
)


def meetings(rng: random.Random) -> Problem:
    """Pairs, seen as lines between points."""
    n, (who, what, do) = rng.randint(3, 11), rng.choice(MEETINGS)
    pairs = n * (n - 1) // 2
    question = f"{n} {who} all {do} each other once . how many {what} are there ?"
    lines = [
        (f"<reason> this is like lines between {n} points in geometry .", str(n)),
        (f"each point has {n - 1} lines and each line has 2 ends .", str(n - 1)),
        (f"mapped back to {what} : {n} * {n - 1} / 2 = {pairs} , so {pairs}", str(pairs)),
    ]
    return Problem("meetings", n, question, pairs, {ORTHOGONAL: lines})


def couples(rng: random.Random) -> Problem:
    """Each of one group with each of another, seen as squares of a board."""
    a = rng.randint(2, 10)
    b, (one, two, do, what) = rng.randint(2, LARGEST // a if a > 5 else 10), rng.choice(ROWS)
    question = f"each of {a} {one} will {do} once with each of {b} {two} . how many {what} are there ?"
    lines = [
        (f"<reason> this is like squares on a board in chess with {a} rows .", str(a)),
        (f"each row has {b} squares , one for each of the {two} .", str(b)),
        (f"mapped back to {what} : {a} * {b} = {a * b} , so {a * b}", str(a * b)),
    ]
    return Problem("couples", (a, b), question, a * b, {ORTHOGONAL: lines})


CUPS = (
    ("players", "game", "sends one player home"),
    ("singers", "round", "sends one singer home"),
    ("teams", "match", "sends one team home"),
)


def cup(rng: random.Random) -> Problem:
    """A knock-out cup, seen as candles that go out one by one."""
    n, (who, what, does) = rng.randint(4, LARGEST), rng.choice(CUPS)
    question = f"{n} {who} enter a cup and each {what} {does} . how many of these until one is left ?"
    lines = [
        (f"<reason> this is like {n} candles in the wind .", str(n)),
        ("each gust puts out one candle until one burns .", "one"),
        (f"mapped back to the cup : {n} - 1 = {n - 1} , so {n - 1}", str(n - 1)),
    ]
    return Problem("cup", n, question, n - 1, {ORTHOGONAL: lines})


def rumor(rng: random.Random) -> Problem:
    """A rumor that doubles or trebles, seen as cells that split."""
    hours, (factor, times) = rng.randint(2, 3), rng.choice(((2, "twice"), (3, "three times")))
    start = rng.randint(2, LARGEST // factor**hours)
    values = [start * factor**hour for hour in range(hours + 1)]
    people = rng.choice(("people", "teams", "friends", "players", "singers", "cooks"))
    question = f"{start} {people} know a rumor and each hour {times} as many . how many after {hours} hours ?"
    lines = [
        (f"<reason> this is like {start} cells that split and grow in biology .", str(start)),
        (f"they grow from {' to '.join(map(str, values))} .", str(values[-1])),
        (f"mapped back to {people} : {values[-1]} know it , so {values[-1]}", str(values[-1])),
    ]
    return Problem("rumor", (start, factor, hours), question, values[-1], {ORTHOGONAL: lines})


def _fraction(above: int, below: int) -> str:
    chance = Fraction(above, below)
    return f"{chance.numerator} / {chance.denominator}"
