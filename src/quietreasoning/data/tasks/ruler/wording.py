"""What the prompts of `ruler` are made of: English with numbers and UUIDs, or a few made-up words.

All sentences are written with a space before each mark; English closes it up.
"""

from __future__ import annotations

import random
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import cycle, islice

from quietreasoning.config import UserError
from quietreasoning.data.tasks.base import stream
from quietreasoning.data.tasks.world import RELATIONS, SYLLABLES

NOISE = (
    "the kettle hums .",
    "a window is open .",
    "rain falls on the roof .",
    "one more turn and we are home .",
)
NEEDLE = "the {noun} of {key} is {value} ."
LET = "let {name} be {value} ."
ABOUT, HAS = "this is about {name} :", "its {relation} is {value} ."
NEEDLES = "remember every {noun} that the text tells ."
CHAINS = "remember which name stands for what ."
COMMON = "some of these words come more often than others :"
FREQUENT = "count the words , but not the dots :"
PAGES = "read what is told about each place ."
ASK = {
    "one": "what is the {noun} of {key} ?",
    "all": "what are all the {noun}s of {key} ?",
    "each": "what are the {noun}s of {key} ?",
    "vt": "which names stand for {value} ?",
    "cwe": "which {n} words come most often ?",
    "fwe": "which {n} words come most often ?",
    "qa_1": "what is the {relation} of {name} ?",
    "qa_2": "what is the {relation} of the twin of {name} ?",
}
STEPS = {"vt": "{name} is {value}", "qa_2": "the twin of {name} is {value}"}
NOUNS = ("number", "code", "numbers", "codes")
DOTS = "..."
_TOLD = (*NOISE, NEEDLE, LET, ABOUT, HAS)
_FORMS = (*_TOLD, NEEDLES, CHAINS, COMMON, FREQUENT, PAGES, *ASK.values(), *STEPS.values())

ADJECTIVES = tuple(
    "amber brisk calm dusty early faint gentle hollow idle jolly keen lively mellow narrow old pale quiet "
    "rusty silver tidy upper vivid warm young azure bitter clear deep eager frosty golden humble ivory "
    "low misty noble open proud round slender".split()
)
NOUN_WORDS = tuple(
    "anchor barrel candle door engine feather garden harbour island jacket kitchen ladder meadow needle "
    "orchard paper quarry ribbon saddle table umbrella valley wagon yard basket cellar desk elm fence "
    "glove hammer inn jug kite lamp mirror nest oven pillow rope".split()
)
VERBS = tuple(
    "faces leaves follows carries passes meets hides keeps touches needs covers holds reaches shows leads "
    "joins marks misses moves recalls".split()
)
WHEN = tuple("today often again slowly never later soon once twice gladly".split())
_TRIES = 200


class Wording(ABC):
    """Keys, values, fillers, and how they are put together. Nothing here remembers what it gave."""

    @abstractmethod
    def key(self, rng: random.Random, long: bool = False) -> str:
        """A name; long: one as long as a UUID."""

    @abstractmethod
    def values(self, n: int, rng: random.Random, long: bool = False) -> list[str]:
        """n numbers, or UUIDs if long; different ones while there are enough."""

    @abstractmethod
    def names(self, n: int, rng: random.Random) -> list[str]:
        """n different variables, each one word."""

    @abstractmethod
    def told(self, n: int, rng: random.Random) -> list[str]:
        """n different words that a place may be told to have."""

    @abstractmethod
    def coded(self, n: int, rng: random.Random) -> list[str]:
        """Up to n different words in random order, for counting."""

    @abstractmethod
    def filler(self, rng: random.Random) -> str:
        """A sentence about nothing."""

    @abstractmethod
    def say(self, sentence: str) -> str:
        """A sentence as it is written."""

    @abstractmethod
    def page(self, *parts: str) -> str:
        """Introduction, text and question as a prompt."""

    @abstractmethod
    def listed(self, items: Iterable[str]) -> str:
        """Several references as one answer."""

    @abstractmethod
    def vocabulary(self) -> list[str]:
        """Every word there is; in English without numbers, UUIDs and names."""

    def keys(self, n: int, rng: random.Random, long: bool = False, taken: Iterable[str] = ()) -> list[str]:
        """n different names that are not among those taken."""
        return distinct(lambda: self.key(rng, long), n, taken)

    def noise(self) -> Iterator[str]:
        """The same few sentences over and over."""
        return cycle(self.say(sentence) for sentence in NOISE)

    def essay(self, rng: random.Random) -> Iterator[str]:
        while True:
            yield self.filler(rng)


class English(Wording):
    def key(self, rng: random.Random, long: bool = False) -> str:
        return _uuid(rng) if long else f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUN_WORDS)}-{_made(rng, 2)}"

    def values(self, n: int, rng: random.Random, long: bool = False) -> list[str]:
        return distinct(lambda: _uuid(rng) if long else str(rng.randrange(1_000_000, 10_000_000)), n)

    def names(self, n: int, rng: random.Random) -> list[str]:
        return self.keys(n, rng)

    def told(self, n: int, rng: random.Random) -> list[str]:
        return self.coded(n, rng)

    def coded(self, n: int, rng: random.Random) -> list[str]:
        # of one length, so that none is part of another
        return distinct(lambda: _made(rng, 3), min(n, 100_000))

    def filler(self, rng: random.Random) -> str:
        a, b = rng.choices(ADJECTIVES, k=2)
        one, other = rng.sample(NOUN_WORDS, 2)
        return self.say(f"the {a} {one} {rng.choice(VERBS)} the {b} {other} {rng.choice(WHEN)} .")

    def say(self, sentence: str) -> str:
        written = re.sub(r" ([.,:?])(?=\s|$)", r"\1", sentence)
        return written[:1].upper() + written[1:]

    def page(self, *parts: str) -> str:
        return "\n\n".join(parts)

    def listed(self, items: Iterable[str]) -> str:
        return ", ".join(items)

    def vocabulary(self) -> list[str]:
        return sorted({*_plain_words(), *ADJECTIVES, *NOUN_WORDS, *VERBS, *WHEN})


class Made(Wording):
    """Words of two syllables: a quarter each for keys and values, the rest for sentences and counting.

    All have one length, so that no word is part of another.
    """

    def __init__(self, words: int, key_words: int):
        pool = _pool()[:words]
        quarter = words // 4
        self.places, self.numbers = pool[:quarter], pool[quarter : 2 * quarter]
        self.others = pool[2 * quarter :]
        self.key_words = key_words

    def key(self, rng: random.Random, long: bool = False) -> str:
        return " ".join(rng.choices(self.places, k=4 if long else self.key_words))

    def values(self, n: int, rng: random.Random, long: bool = False) -> list[str]:
        if long:
            return distinct(lambda: " ".join(rng.choices(self.numbers, k=4)), n)
        return list(islice(cycle(rng.sample(self.numbers, len(self.numbers))), n))

    def names(self, n: int, rng: random.Random) -> list[str]:
        return distinct(lambda: rng.choice(self.places), n)

    def told(self, n: int, rng: random.Random) -> list[str]:
        return rng.sample(self.numbers, n)

    def coded(self, n: int, rng: random.Random) -> list[str]:
        return rng.sample(self.others, min(n, len(self.others)))

    def filler(self, rng: random.Random) -> str:
        return " ".join(rng.choices(self.others, k=6)) + " ."

    def say(self, sentence: str) -> str:
        return sentence

    def page(self, *parts: str) -> str:
        return " ".join(parts)

    def listed(self, items: Iterable[str]) -> str:
        return " ".join(items)

    def vocabulary(self) -> list[str]:
        return sorted({*_plain_words(), *self.places, *self.numbers, *self.others})


def distinct(draw: Callable[[], str], n: int, taken: Iterable[str] = ()) -> list[str]:
    """n different draws that are not among those taken; UserError where there are too few."""
    taken, found = set(taken), {}
    for _ in range(_TRIES * n):
        if len(found) == n:
            break
        if (one := draw()) not in taken:
            found[one] = None
    if len(found) < n:
        raise UserError(
            f"task ruler needs {n} different names and found {len(found)}: raise data.options.words or "
            "data.options.key_words, or lower data.options.length"
        )
    return list(found)


@cache
def _pool() -> tuple[str, ...]:
    """Made-up words in a fixed order, whatever the seed: more of them never change the first ones."""
    pool = [a + b for a in SYLLABLES for b in SYLLABLES]
    stream("ruler", "words").shuffle(pool)
    return tuple(word for word in pool if word not in _plain_words())


@cache
def _plain_words() -> tuple[str, ...]:
    words = {word for form in _FORMS for word in form.split() if "{" not in word}
    return tuple(sorted(words | {*NOUNS, *RELATIONS, DOTS}))


def _made(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choices(SYLLABLES, k=syllables))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
