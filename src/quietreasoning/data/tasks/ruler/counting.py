"""Words to count: the common ones, and the most frequent ones (arXiv 2404.06654).

Departures: the list of common words bears no numbers, and no worked example stands before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain, pairwise, repeat
from typing import NamedTuple

from quietreasoning.config import UserError
from quietreasoning.data.tasks.ruler.layout import Page, Written
from quietreasoning.data.tasks.ruler.wording import ASK, COMMON, DOTS, FREQUENT, Wording


class Common(NamedTuple):
    """Some words stand there often, all others a few times."""

    words: int
    times: int
    rare_times: int

    def draw(self, wording: Wording, rng: random.Random) -> tuple[str, ...]:
        return tuple(_coded(wording, self.words, rng))

    def canonical(self, common: tuple[str, ...]) -> str:
        return " ".join(sorted(common))

    def write(self, common: tuple[str, ...], page: Page, rng: random.Random) -> Written:
        wording = page.wording
        intro, question = wording.say(COMMON), wording.say(ASK["cwe"].format(n=self.words))
        often = list(chain.from_iterable(repeat(word, self.times) for word in common))
        room = page.room("cwe", intro, question, *often, *["rare"] * self.rare_times)
        n = room // self.rare_times + 1
        rare = [word for word in _coded(wording, n + self.words, rng) if word not in common][:n]
        text = often + rare * self.rare_times
        rng.shuffle(text)
        return _written(wording, intro, text, question, tuple(w for w in dict.fromkeys(text) if w in common))


class Frequent(NamedTuple):
    """The word of rank k stands there c / k^alpha times, rounded down; rank 1 are dots, to be left out."""

    words: int
    alpha: float

    def draw(self, wording: Wording, rng: random.Random) -> tuple[str, ...]:
        return tuple(_coded(wording, self.words, rng))

    def canonical(self, frequent: tuple[str, ...]) -> str:
        return " ".join(sorted(frequent))

    def write(self, frequent: tuple[str, ...], page: Page, rng: random.Random) -> Written:
        wording = page.wording
        intro, question = wording.say(FREQUENT), wording.say(ASK["fwe"].format(n=self.words))
        counts = self._counts(page.room("fwe", intro, question))
        asked = counts[1 : self.words + 2]  # and the next one
        if len(asked) < self.words or any(a <= b for a, b in pairwise(asked)):
            raise UserError(
                f"task ruler: in {page.length} words the {self.words} most frequent are no more frequent "
                "than the next; raise data.options.length, or lower data.options.frequent"
            )
        others = [word for word in wording.coded(len(counts) + self.words, rng) if word not in frequent]
        ranked = zip((DOTS, *frequent, *others), counts, strict=False)
        text = list(chain.from_iterable(repeat(word, times) for word, times in ranked))
        rng.shuffle(text)
        return _written(wording, intro, text, question, frequent)

    def _counts(self, room: int) -> list[int]:
        """Of each rank that is not left with none, for the largest c whose counts sum to at most `room`."""
        low, high = 0.0, room + 1.0
        for _ in range(60):
            c = (low + high) / 2
            low, high = (c, high) if sum(self._at(c)) <= room else (low, c)
        return self._at(low)

    def _at(self, c: float) -> list[int]:
        return [int(c * rank**-self.alpha) for rank in range(1, int(c ** (1 / self.alpha)) + 1)]


def _coded(wording: Wording, n: int, rng: random.Random) -> list[str]:
    found = wording.coded(n, rng)
    if len(found) < n:
        raise UserError(
            f"task ruler counts {n} different words here and has {len(found)}: raise data.options.words, or "
            "lower data.options.length"
        )
    return found


def _written(
    wording: Wording, intro: str, text: Iterable[str], question: str, references: tuple[str, ...]
) -> Written:
    text = list(text)
    first = list(dict.fromkeys(word for word in text if word != DOTS))[: len(references)]
    guesses = {"first-words": wording.listed(first)}
    return Written(wording.page(intro, " ".join(text), question), references, guesses=guesses)
