"""A made-up world for `encyclopaedia`: entities, relations, values, and how often each fact is told.

Everything is a function of settings and seed, and is made once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from quietreasoning.config import UserError
from quietreasoning.data.tasks.base import stream

RELATIONS = tuple(
    "capital river founder anthem emblem harbour dialect festival currency mountain patron guild colour "
    "instrument dish flower".split()
)
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
MAX_WORDS = len(SYLLABLES) ** 2 * 10  # far fewer than there are, so that drawing stays quick
_MAX_DRAWS = 1000


class Fact(NamedTuple):
    """One triple. No two facts share entity and relation."""

    entity: str
    relation: str
    value: str
    mentions: int  # training rows that tell it
    kept_back: int  # the question template in which training never asks it


class World(NamedTuple):
    facts: tuple[Fact, ...]  # the most told first
    names: tuple[str, ...]  # one an entity
    values: dict[str, tuple[str, ...]]  # relation -> its pool; pools share no word


def build(
    facts: int,
    relations: int,
    values: int,
    *,
    exponent: float,
    mentions: int,
    name_words: tuple[int, ...],
    words: int | None,
    questions: int,
    seed: int,
) -> World:
    """Facts are drawn from all pairs of entity and relation; the order drawn is their rank."""
    rng = stream("encyclopaedia", seed, "world")
    number = -(-facts // relations)
    pool = new_words((words or number) + relations * values, rng)
    entities = new_names(number, pool[: words or number], name_words, rng)
    rest = iter(pool[words or number :])
    pools = {relation: tuple(next(rest) for _ in range(values)) for relation in RELATIONS[:relations]}
    pairs = [(entity, relation) for entity in entities for relation in pools]
    rng.shuffle(pairs)
    counts = zipf(facts, mentions, exponent)
    told = tuple(
        Fact(entity, relation, rng.choice(pools[relation]), count, rng.randrange(questions))
        for (entity, relation), count in zip(pairs, counts, strict=False)
    )
    return World(told, tuple(entities), pools)


def zipf(facts: int, mentions: int, exponent: float) -> list[int]:
    """How often each rank is told: max(1, c / rank^exponent), whole, with c such that all sum to `mentions`.

    Below 1 lies what Zipf's law would not tell at all; each is told once, and the head pays for it.
    """
    shape = [rank**-exponent for rank in range(1, facts + 1)]
    low, high = 0.0, mentions + 1.0  # c is about the mentions of the first rank
    for _ in range(60):
        c = (low + high) / 2
        low, high = (c, high) if sum(max(1, int(c * share)) for share in shape) <= mentions else (low, c)
    counts = [max(1, int(low * share)) for share in shape]
    # what rounding down left over goes to the largest fractions, the same way on every machine
    fractions = sorted(range(facts), key=lambda i: (low * shape[i] < 1, -(low * shape[i] % 1), i))
    for i in range(mentions - sum(counts)):
        counts[fractions[i % facts]] += 1
    return sorted(counts, reverse=True)


def new_words(number: int, rng: random.Random) -> list[str]:
    """Different words of two or three syllables."""
    if number > MAX_WORDS:
        raise UserError(
            f"task encyclopaedia needs {number:,} different words and has {MAX_WORDS:,}; lower "
            "data.options.facts, data.options.values or data.options.words"
        )
    found: dict[str, None] = {}
    while len(found) < number:
        found["".join(rng.choices(SYLLABLES, k=rng.choice((2, 3))))] = None
    return list(found)


def new_names(number: int, pool: list[str], lengths: tuple[int, ...], rng: random.Random) -> list[str]:
    """Different names of so many words each; words recur in other names."""
    found: dict[str, None] = {}
    for _ in range(number):
        found[next(name for name in _draws(pool, lengths, rng) if name not in found)] = None
    return list(found)


def _draws(pool: list[str], lengths: tuple[int, ...], rng: random.Random) -> Iterator[str]:
    for _ in range(_MAX_DRAWS):
        yield " ".join(rng.choices(pool, k=rng.choice(lengths)))
    raise UserError(
        f"task encyclopaedia: {len(pool)} words give too few names; raise data.options.words or "
        "data.options.name_words"
    )
