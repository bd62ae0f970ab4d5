"""The word problem of a symmetric group: multiply k permutations, first factor first.

A permutation is one word, `p` and its arrangement: `p21345` swaps the first two. The product
`p q` applies p, then q. Steps write every prefix product. NC1-complete for five elements: a model
of fixed depth fails as k grows, loops need about log k passes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from functools import reduce

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask

Permutation = tuple[int, ...]


class PermutationConfig(Settings):
    size: int = Field(5, ge=2, le=7)
    """Elements permuted; the vocabulary has size! words."""
    factors: int | tuple[int, ...] = 8
    """Permutations in a product; several counts mix uniformly."""

    @property
    def counts(self) -> tuple[int, ...]:
        return (self.factors,) if isinstance(self.factors, int) else self.factors

    @model_validator(mode="after")
    def _at_least_two(self) -> PermutationConfig:
        if not self.counts or min(self.counts) < 2:
            raise ValueError(f"factors={self.factors} must be 2 or more")
        return self


class PermutationProduct(GeneratedTask):
    Config = PermutationConfig
    name = "permutation"
    describe = "product of k permutations (the S5 word problem), every prefix a step"
    scorer = "exact"
    config: PermutationConfig

    def vocabulary(self) -> list[str]:
        """Every permutation as a word."""
        return [word(p) for p in itertools.permutations(range(self.config.size))]

    def draw(self, rng: random.Random) -> tuple[Permutation, ...]:
        elements = range(self.config.size)
        count = rng.choice(self.config.counts)
        return tuple(tuple(rng.sample(elements, self.config.size)) for _ in range(count))

    def canonical(self, problem: tuple[Permutation, ...]) -> str:
        return " ".join(map(word, problem))

    def render(self, problem: tuple[Permutation, ...], id: str, rng: random.Random) -> Example:
        prefixes = tuple(word(p) for p in itertools.accumulate(problem, then))
        return Example(
            id=id,
            prompt=" ".join(map(word, problem)),
            steps=prefixes,
            results=prefixes,
            answer=prefixes[-1],
            meta={"factors": problem},
        )

    def group(self, example: Example) -> str:
        return f"{len(example.meta['factors'])} factors"

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """One factor alone, the last two, the product in the wrong order."""
        factors: Sequence[Permutation] = example.meta["factors"]
        return {
            "first": word(factors[0]),
            "last": word(factors[-1]),
            "last-two": word(then(factors[-2], factors[-1])),
            "reversed": word(reduce(then, reversed(factors))),
        }


def then(p: Permutation, q: Permutation) -> Permutation:
    """Apply p, then q."""
    return tuple(q[image] for image in p)


def word(p: Permutation) -> str:
    return "p" + "".join(str(image + 1) for image in p)
