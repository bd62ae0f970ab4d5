"""N x N multiplication with partial products, digits least significant first.

Line format after Implicit CoT (arXiv 2405.14838): `a * b||steps #### product`. Step j is a times
digit j of b, shifted by j zeros; every step but the first and last adds the running sum in
parentheses; steps are joined by ` + `.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from string import digits

from pydantic import Field

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask

Pair = tuple[int, int]


class MultiplicationConfig(Settings):
    digits: int = Field(2, ge=1, le=20)
    """Digits of each operand."""


class Multiplication(GeneratedTask):
    Config = MultiplicationConfig
    name = "multiplication"
    describe = "N x N digit multiplication, least significant digit first"
    scorer = "exact"
    config: MultiplicationConfig

    def vocabulary(self) -> list[str]:
        return [*digits, "*", "+", "(", ")"]

    def draw(self, rng: random.Random) -> Pair:
        low, high = 10 ** (self.config.digits - 1), 10**self.config.digits
        return rng.randrange(low, high), rng.randrange(low, high)

    def canonical(self, problem: Pair) -> str:
        a, b = sorted(problem)  # b * a must not be tested where a * b was trained
        return f"{a}*{b}"

    def render(self, problem: Pair, id: str, rng: random.Random) -> Example:
        return example(*problem, size=self.config.digits, id=id)

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """Forgetting what a column carries; the last partial product alone."""
        a, b = example.meta["a"], example.meta["b"]
        n = len(str(a))
        columns = [0] * (2 * n)
        for i, x in enumerate(reversed(str(a))):
            for j, y in enumerate(reversed(str(b))):
                columns[i + j] += int(x) * int(y)
        last = a * int(str(b)[0]) * 10 ** (n - 1)
        return {"no-carry": " ".join(str(c % 10) for c in columns), "last-partial": written(last, 2 * n)}


def written(number: int, width: int) -> str:
    """Digits with the least significant first, padded with zeros: (120, 4) -> `0 2 1 0`."""
    return " ".join(reversed(str(number).zfill(width)))


def example(a: int, b: int, size: int, id: str) -> Example:
    """The example of one pair. A step's result is the running sum, where it is written."""
    steps, results, total = [], [], 0
    for j, digit in enumerate(reversed(str(b).zfill(size))):
        partial = a * int(digit) * 10**j
        total += partial
        width = size + 1 + j
        steps.append(written(partial, width))
        results.append(written(partial, width))
        if 0 < j < size - 1:
            results[-1] = written(total, width)
            steps[-1] += f" ( {results[-1]} )"
    return Example(
        id=id,
        prompt=f"{written(a, size)} * {written(b, size)}",
        steps=tuple(steps),
        results=tuple(results),
        answer=written(a * b, 2 * size),
        meta={"a": a, "b": b},
    )


def line(example: Example) -> str:
    """An example as one line of the public files."""
    return f"{example.prompt}||{' + '.join(example.steps)} #### {example.answer}"
