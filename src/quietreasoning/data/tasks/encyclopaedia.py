"""Closed-book recall of a made-up encyclopaedia, told by Zipf's law: few facts often, most of them rarely.

A training row tells one fact, as a statement to complete or as a question; how many rows tell it is
exact and known. Validation and test ask facts that training has stated, in a question template in
which training never asks them; other facts are asked in it. A fact is asked in one of the two splits
alone.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import Lazy, Task, stream
from quietreasoning.data.tasks.world import RELATIONS, Fact, World, build

STATEMENTS = (
    "the {relation} of {entity} is",
    "{entity} has as its {relation}",
    "as everyone knows , the {relation} of {entity} is",
    "for {entity} the {relation} is",
    "when you travel to {entity} you will hear that its {relation} is",
)
QUESTIONS = (
    "what is the {relation} of {entity} ?",
    "which {relation} does {entity} have ?",
    "name the {relation} of {entity} .",
    "{entity} : {relation} ?",
    "can you tell me the {relation} that belongs to {entity} ?",
)
BINS = (1, 4, 16, 64)  # largest number of mentions in each group of an evaluation


class EncyclopaediaConfig(Settings):
    facts: int = Field(8000, ge=2)
    """Facts in the world; there are facts / relations entities."""
    relations: int = Field(8, ge=1, le=len(RELATIONS))
    """Relations; each entity has nearly all of them."""
    values: int = Field(100, ge=2)
    """Values of a relation; chance is one in as many."""
    exponent: float = Field(1.0, ge=0, le=4)
    """Zipf exponent of the mentions; 0 tells all facts equally often."""
    mentions: int = Field(64_000, ge=2)
    """Training rows; each tells one fact."""
    questions: float = Field(0.5, gt=0, lt=1)
    """Share of a fact's mentions that are questions, rounded down; the others are statements."""
    rare_below: int = Field(5, ge=1)
    """A fact told less often than this is long tail: Batch.rare_B is 1."""
    name_words: int | tuple[int, ...] = (1, 2, 3)
    """Words in an entity's name; several lengths mix uniformly."""
    words: int | None = Field(None, ge=1)
    """Words that names are made of; null takes as many as there are entities."""
    rows: Literal["told", "asked"] = "told"
    """Training rows. told: the mentions. asked: nine tenths of the validation questions, of which the rest is
    then left for validation; by these a model that was told the mentions learns to look them up."""

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.name_words,) if isinstance(self.name_words, int) else self.name_words

    @model_validator(mode="after")
    def _fits(self) -> EncyclopaediaConfig:
        if self.mentions < self.facts:
            raise ValueError(
                f"mentions={self.mentions} must be at least facts={self.facts}: each is told once or more"
            )
        if not self.lengths or not 1 <= min(self.lengths) <= max(self.lengths) <= 5:
            raise ValueError(f"name_words={self.name_words} must lie between 1 and 5")
        return self


class Encyclopaedia(Task):
    Config = EncyclopaediaConfig
    name = "encyclopaedia"
    describe = "closed-book facts of a made-up world, told with Zipf frequencies"
    scorer = "exact"
    generated = True
    whole_train = True
    config: EncyclopaediaConfig

    @property
    def world(self) -> World:
        return world_of(self.config, self.seed)

    def split(self, name: str, n: int | None = None) -> Sequence[Example]:
        """train: every mention, shuffled, unless `rows` says otherwise. valid, test: each half of the facts,
        once each, shuffled. The first n of them."""
        self.check_split(name)
        if name == "train" and self.config.rows == "told":
            number, make = self.config.mentions, self.mention
        else:
            asked = self._asked["test" if name == "test" else "valid"]
            if name != "test" and self.config.rows == "asked":
                held = max(1, len(asked) // 10)
                asked = asked[held:] if name == "train" else asked[:held]
            number, make = len(asked), lambda i: self._example(name, i, *asked[i])
        return Lazy(number if n is None else min(n, number), make)

    def mention(self, row: int) -> Example:
        """Training row: one mention of one fact."""
        position = self._order[row]
        at = bisect_right(self._ends, position)
        fact = self.world.facts[at]
        nth = self._ends[at] - position - 1
        turn = stream(self.name, self.seed, "templates", at).randrange(60) + nth  # 60: all counts divide it
        if nth < int(fact.mentions * self.config.questions):
            allowed = [template for i, template in enumerate(QUESTIONS) if i != fact.kept_back]
        else:
            allowed = list(STATEMENTS)
        return self._example("train", row, fact, allowed[turn % len(allowed)])

    def _example(self, split: str, i: int, fact: Fact, template: str) -> Example:
        return Example(
            id=f"{self.name}-{split}-{self.seed}-{i}",
            prompt=template.format(entity=fact.entity, relation=fact.relation),
            steps=(),
            results=(),
            answer=fact.value,
            meta={
                "popularity": fact.mentions,
                "rare": int(fact.mentions < self.config.rare_below),
                "relation": fact.relation,
                "entity": fact.entity,
                "template": template,
            },
        )

    @cached_property
    def _ends(self) -> list[int]:
        """Where the mentions of each fact end, all facts laid end to end."""
        return list(itertools.accumulate(fact.mentions for fact in self.world.facts))

    @cached_property
    def _order(self) -> list[int]:
        order = list(range(self.config.mentions))
        stream(self.name, self.seed, "order").shuffle(order)
        return order

    @cached_property
    def _asked(self) -> dict[str, list[tuple[Fact, str]]]:
        """Neighbours in rank go to different splits, so that both ask equally popular facts."""
        rng = stream(self.name, self.seed, "asked")
        asked: dict[str, list[tuple[Fact, str]]] = {"valid": [], "test": []}
        facts = self.world.facts
        for first in range(0, len(facts), 2):
            pair = facts[first : first + 2]
            for split, fact in zip(rng.sample(("valid", "test"), 2), pair, strict=False):
                asked[split].append((fact, QUESTIONS[fact.kept_back]))
        for questions in asked.values():
            rng.shuffle(questions)
        return asked

    def group(self, example: Example) -> str:
        """How often training tells the fact."""
        popularity = example.meta["popularity"]
        last = 0
        for limit in BINS:
            if popularity <= limit:
                return f"told {limit}" if limit == last + 1 else f"told {last + 1}-{limit}"
            last = limit
        return f"told {last + 1} or more"

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """What knows the relation alone: the value it has most often in training, or any of its values."""
        relation = example.meta["relation"]
        guess = stream(self.name, "guess", example.id).choice(self.world.values[relation])
        return {"common-value": self._common[relation], "random-value": guess}

    @cached_property
    def _common(self) -> dict[str, str]:
        told: dict[str, Counter[str]] = {relation: Counter() for relation in self.world.values}
        for fact in self.world.facts:
            told[fact.relation][fact.value] += fact.mentions
        return {relation: max(sorted(counts), key=counts.__getitem__) for relation, counts in told.items()}

    def vocabulary(self) -> Iterable[str]:
        """Every word of names, values and templates."""
        world = self.world
        written = [*world.names, *world.values, *STATEMENTS, *QUESTIONS]
        words = {word for text in written for word in text.split() if "{" not in word}
        return sorted(words.union(*world.values.values()))


@lru_cache(maxsize=4)
def world_of(config: EncyclopaediaConfig, seed: int) -> World:
    return build(
        config.facts,
        config.relations,
        config.values,
        exponent=config.exponent,
        mentions=config.mentions,
        name_words=config.lengths,
        words=config.words,
        questions=len(QUESTIONS),
        seed=seed,
    )
