"""Problems of one field for an expert, and of two fields for a consultant. See `strategy_problems`."""

from __future__ import annotations

import random
from typing import NamedTuple

from quietreasoning.data.strategies.forms import EXPERT, MULTIDOMAIN
from quietreasoning.data.tasks.strategy_problems import LARGEST, NAMES, Problem


class Field(NamedTuple):
    """A field that multiplies two numbers: what is told, what is asked, and its rule."""

    name: str
    told: str  # with {a}, {b} and {name}
    asked: str
    rule: str
    unit: str  # what the result counts


FIELDS = (
    Field(
        "physics", "a train drives {a} hours at {b} km an hour", "how far does it drive",
        "distance is time times speed", "km",
    ),
    Field(
        "geometry", "a garden is {a} meters wide and {b} meters long", "what is its area",
        "area is width times length", "square",
    ),
    Field(
        "chemistry", "{a} liters of water hold {b} grams of salt each", "how much salt is that",
        "mass is volume times strength", "gram",
    ),
    Field(
        "electricity", "a wire of {a} ohms carries {b} amps", "what is the voltage",
        "voltage is resistance times current", "volt",
    ),
    Field(
        "medicine", "{name} takes {a} pills {b} times a day", "how many pills a day",
        "the daily dose is pills times doses", "pill",
    ),
    Field(
        "cooking", "a recipe takes {a} eggs a guest and {b} guests come", "how many eggs are needed",
        "a recipe grows with the guests", "egg",
    ),
    Field(
        "finance", "{name} saves {a} coins a month for {b} months", "how much is saved",
        "savings are deposit times months", "coin",
    ),
    Field(
        "logistics", "{a} trucks carry {b} boxes each", "how many boxes arrive",
        "stock is trucks times load", "box",
    ),
)  # fmt: skip


UNPRICED = ("electricity", "finance", "logistics")  # nothing to buy, or a second field itself


class Second(NamedTuple):
    """A field that goes on from a number of units."""

    name: str
    told: str  # with {unit} and {c}
    asked: str
    rule: str
    operator: str


SECONDS = (
    Second("finance", "each {unit} costs {c} coins", "what is the cost", "cost is amount times price", "*"),
    Second(
        "ecology", "each {unit} makes {c} grams of smoke", "how much smoke", "smoke is amount times rate", "*"
    ),
    Second(
        "logistics", "one truck takes {c} of each {unit}", "how many trips", "trips are amount by load", "/"
    ),
)


def expert(rng: random.Random) -> Problem:
    field = rng.choice(FIELDS)
    a, b = _factors(rng, LARGEST)
    told = field.told.format(a=a, b=b, name=rng.choice(NAMES))
    lines = (
        (f"<expert> {field.name} : {field.rule} .", field.name),
        (f"{a} * {b} = {a * b} , so {a * b}", str(a * b)),
    )
    question = f"{told} . {field.asked} ?"
    return Problem("expert", f"{field.name} {a} {b}", question, str(a * b), {EXPERT: lines})


def consultant(rng: random.Random) -> Problem:
    first, second = rng.choice([f for f in FIELDS if f.name not in UNPRICED]), rng.choice(SECONDS)
    a, b = _factors(rng, LARGEST // 2)
    amount = a * b
    by = second.operator == "/"
    c = rng.choice(
        [n for n in range(2, 10) if (amount % n == 0 and amount > n if by else amount * n <= LARGEST)]
    )
    result = amount // c if by else amount * c
    told = (
        f"{first.told.format(a=a, b=b, name=rng.choice(NAMES))} . {second.told.format(unit=first.unit, c=c)}"
    )
    lines = (
        (f"<expert> {first.name} : {first.rule} , {a} * {b} = {amount} .", str(amount)),
        (
            f"<expert> {second.name} : {second.rule} , {amount} {second.operator} {c} = {result} .",
            str(result),
        ),
        (f"<reason> both together : {first.name} gives {amount} and {second.name} {result} , so {result}",
         str(result)),
    )  # fmt: skip
    facts = f"{first.name} {second.name} {a} {b} {c}"
    return Problem("consultant", facts, f"{told} . {second.asked} ?", str(result), {MULTIDOMAIN: lines})


def _factors(rng: random.Random, largest: int) -> tuple[int, int]:
    """Two numbers from 2 whose product is at most `largest`."""
    a = rng.randint(2, min(12, largest // 2))
    return a, rng.randint(2, min(12, largest // a))
