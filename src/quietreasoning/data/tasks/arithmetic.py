"""Worded arithmetic in several steps, with the exact integer answer: GSM8K's shape, generated.

A person starts with some things; each sentence changes how many there are. The canonical problem
is the chain of numbers and operations, so a test problem is not a training one with other names.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask

NAMES = tuple("Ada Ben Cleo Dora Emil Finn Gwen Hugo Iris Jon Kira Liam Mona Nils Olga Paul".split())
THINGS = tuple("apples books cards coins eggs marbles pencils shells stamps stickers".split())
PLACES = ("the market", "the fair", "school", "the attic", "the beach", "a friend's house")

STARTS = (
    "{name} has {n} {things}.",
    "{name} starts the week with {n} {things}.",
    "There are {n} {things} in {name}'s box.",
    "{name} collected {n} {things} at {place}.",
)
SENTENCES = {
    "+": (
        "{name} finds {n} more at {place}.",
        "Then {friend} gives {name} {n} more.",
        "{name} buys another {n} {things}.",
        "On the way home {name} picks up {n} extra {things}.",
    ),
    "-": (
        "{name} gives {n} of them to {friend}.",
        "{name} loses {n} at {place}.",
        "After that, {n} {things} break.",
        "{friend} borrows {n} and does not return them.",
    ),
    "*": (
        "By the next month the number has grown to {n} times as many.",
        "{friend} trades with {name}, who now has {n} times as many {things}.",
        "A lucky swap leaves {name} with {n} times as many.",
    ),
    "/": (
        "{name} shares them equally among {n} children, keeping one child's share.",
        "{name} sorts them into {n} equal piles and keeps only one pile.",
        "{name} keeps just one part out of {n} equal parts.",
    ),
}
QUESTIONS = (
    "How many {things} does {name} have now?",
    "How many {things} are left with {name}?",
    "What is the number of {things} that {name} has in the end?",
)
_NUMBER = re.compile(r"\d+")


class ArithmeticConfig(Settings):
    steps: int | tuple[int, ...] = (2, 3, 4, 5, 6)
    """Operations in a problem; several counts mix uniformly."""
    largest: int = Field(200, ge=20, le=100_000)
    """No number in a problem or its solution is larger."""
    style: Literal["equations", "marked", "sentences"] = "equations"
    """A step as `12+5=17`, as `<<12+5=17>>`, or as `12 + 5 = 17 apples.`."""

    @property
    def counts(self) -> tuple[int, ...]:
        return (self.steps,) if isinstance(self.steps, int) else self.steps

    @model_validator(mode="after")
    def _at_least_one(self) -> ArithmeticConfig:
        if not self.counts or not 1 <= min(self.counts) <= max(self.counts) <= 12:
            raise ValueError(f"steps={self.steps} must lie between 1 and 12")
        return self


class Chain(NamedTuple):
    start: int
    operations: tuple[tuple[str, int], ...]  # (operator, operand)

    def values(self) -> list[int]:
        """The number after each operation."""
        value, values = self.start, []
        for operator, n in self.operations:
            value = apply(value, operator, n)
            values.append(value)
        return values


class Arithmetic(GeneratedTask):
    Config = ArithmeticConfig
    name = "arithmetic"
    describe = "worded arithmetic in 2 to 6 steps with integer answers"
    scorer = "numeric"
    config: ArithmeticConfig

    def draw(self, rng: random.Random) -> Chain:
        value = start = rng.randint(2, max(10, self.config.largest // 4))
        operations = []
        for _ in range(rng.choice(self.config.counts)):
            operator, n = self._operation(value, rng)
            operations.append((operator, n))
            value = apply(value, operator, n)
        return Chain(start, tuple(operations))

    def _operation(self, value: int, rng: random.Random) -> tuple[str, int]:
        """An operation that keeps the number whole, positive and within `largest`."""
        largest = self.config.largest
        divisors = [n for n in range(2, 7) if value % n == 0 and value > n]
        possible = {
            "+": value < largest,
            "-": value > 2,
            "*": value * 2 <= largest,
            "/": bool(divisors),
        }
        operator = rng.choice([name for name, fits in possible.items() if fits])
        if operator == "+":
            return operator, rng.randint(1, min(largest - value, largest // 4))
        if operator == "-":
            return operator, rng.randint(1, value - 1)
        if operator == "*":
            return operator, rng.randint(2, min(6, largest // value))
        return operator, rng.choice(divisors)

    def canonical(self, problem: Chain) -> str:
        return f"{problem.start}" + "".join(f"{operator}{n}" for operator, n in problem.operations)

    def render(self, problem: Chain, id: str, rng: random.Random) -> Example:
        name, friend = rng.sample(NAMES, 2)
        words = {"name": name, "friend": friend, "things": rng.choice(THINGS)}
        sentences = [rng.choice(STARTS).format(n=problem.start, place=rng.choice(PLACES), **words)]
        for operator, n in problem.operations:
            sentences.append(rng.choice(SENTENCES[operator]).format(n=n, place=rng.choice(PLACES), **words))
        sentences.append(rng.choice(QUESTIONS).format(**words))
        values = problem.values()
        before = [problem.start, *values[:-1]]
        return Example(
            id=id,
            prompt=" ".join(sentences),
            steps=tuple(
                self._step(value, operator, n, after, words["things"])
                for value, (operator, n), after in zip(before, problem.operations, values, strict=True)
            ),
            results=tuple(map(str, values)),
            answer=str(values[-1]),
            meta={"start": problem.start, "operations": problem.operations},
        )

    def _step(self, value: int, operator: str, n: int, after: int, things: str) -> str:
        if self.config.style == "sentences":
            return f"{value} {operator} {n} = {after} {things}."
        equation = f"{value}{operator}{n}={after}"
        return equation if self.config.style == "equations" else f"<<{equation}>>"

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """A number of the prompt, the sum of all, the last operation on the first number."""
        numbers = [int(n) for n in _NUMBER.findall(example.prompt)]
        operator, n = example.meta["operations"][-1]
        return {
            "first-number": str(numbers[0]),
            "last-number": str(numbers[-1]),
            "sum": str(sum(numbers)),
            "last-operation": str(apply(numbers[0], operator, n)),
        }


def apply(value: int, operator: str, n: int) -> int:
    """One operation; a division is exact in every problem drawn."""
    if operator == "+":
        return value + n
    if operator == "-":
        return value - n
    return value * n if operator == "*" else value // n
