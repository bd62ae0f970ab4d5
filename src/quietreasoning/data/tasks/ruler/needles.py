"""Needles in a haystack: sentences that tell a number or code of a key, eight kinds (arXiv 2404.06654)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

from quietreasoning.data.tasks.ruler.layout import Page, Written, fill, place
from quietreasoning.data.tasks.ruler.wording import ASK, NEEDLE, NEEDLES, Wording


class Hidden(NamedTuple):
    asked: tuple[tuple[str, str], ...]  # (key, value), in the order they are asked for
    others: tuple[tuple[str, str], ...]


class Needles(NamedTuple):
    name: str
    haystack: Literal["noise", "essay", "needles"]
    long_key: bool = False
    long_value: bool = False
    keys: int = 1
    values: int = 1  # of the key asked for
    queries: int = 1  # keys that are asked for

    def draw(self, wording: Wording, rng: random.Random) -> Hidden:
        keys = wording.keys(max(self.keys, self.queries), rng, self.long_key)
        asked = keys[: self.queries]
        values = wording.values(len(keys) + self.values - 1, rng, self.long_value)
        if self.values > 1:
            return Hidden(tuple((keys[0], value) for value in values[: self.values]), ())
        pairs = tuple(zip(keys, values, strict=True))
        return Hidden(pairs[: len(asked)], pairs[len(asked) :])

    def canonical(self, hidden: Hidden) -> str:
        # what is asked for, whatever stands around it
        return " ; ".join(sorted(f"{key} = {value}" for key, value in hidden.asked))

    def write(self, hidden: Hidden, page: Page, rng: random.Random) -> Written:
        wording = page.wording
        noun = "code" if self.long_value else "number"
        told = [self.tell(wording, *pair) for pair in (*hidden.asked, *hidden.others)]
        intro = wording.say(NEEDLES.format(noun=noun))
        keys = list(dict.fromkeys(key for key, _ in hidden.asked))
        form = "all" if self.values > 1 else "each" if len(keys) > 1 else "one"
        question = wording.say(ASK[form].format(noun=noun, key=" , ".join(keys)))
        room = page.room(self.name, intro, question, *told)
        filling = fill(self._hay(hidden, page, rng), room)
        depths = [page.depth or 0.0, *(rng.random() for _ in told[1:])]
        text = place(filling, zip(depths, told, strict=True))
        asked = list(hidden.asked)
        if self.values > 1:  # told in any order: the one of the text
            asked.sort(key=lambda pair: text.index(self.tell(wording, *pair)))
        others = len(keys) > 1 or hidden.others or self.haystack == "needles"
        first = next(sentence for sentence in text if sentence in told or self.haystack == "needles")
        return Written(
            prompt=wording.page(intro, " ".join(text), question),
            references=tuple(value for _, value in asked),
            needles=tuple(self.tell(wording, *pair) for pair in hidden.asked),
            guesses={"first-needle": first.removesuffix(".").rpartition(" is ")[2].strip()} if others else {},
        )

    def tell(self, wording: Wording, key: str, value: str) -> str:
        noun = "code" if self.long_value else "number"
        return wording.say(NEEDLE.format(noun=noun, key=key, value=value))

    def _hay(self, hidden: Hidden, page: Page, rng: random.Random) -> Iterator[str]:
        wording = page.wording
        if self.haystack == "noise":
            return wording.noise()
        if self.haystack == "essay":
            return wording.essay(rng)
        return self._more(hidden, page, rng)

    def _more(self, hidden: Hidden, page: Page, rng: random.Random) -> Iterator[str]:
        """Needles of other keys without end; as many keys are drawn as the page can hold."""
        taken = {key for key, _ in hidden.asked}
        wording = page.wording
        words = len(self.tell(wording, *hidden.asked[0]).split())
        n = page.length // words + 1
        keys = wording.keys(n, rng, self.long_key, taken)
        for key, value in zip(keys, wording.values(n, rng, self.long_value), strict=True):
            yield self.tell(wording, key, value)
