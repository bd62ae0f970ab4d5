"""A text of a given number of words, with needles at given depths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from quietreasoning.config import UserError
from quietreasoning.data.tasks.ruler.wording import Wording


class Page(NamedTuple):
    """What a prompt has to keep to."""

    wording: Wording
    length: int  # words
    depth: float | None

    def room(self, kind: str, *fixed: str) -> int:
        """Words left for filling beside what must be there; UserError where that is too long already."""
        left = self.length - sum(map(count, fixed))
        if left < 0:
            raise UserError(
                f"task ruler: {kind} needs {self.length - left} words or more, data.options.length has "
                f"{self.length}; raise it"
            )
        return left


class Written(NamedTuple):
    """A problem in words."""

    prompt: str
    references: tuple[str, ...]
    needles: tuple[str, ...] = ()  # the sentences that tell them, as they stand in the prompt
    steps: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    guesses: Mapping[str, str] = {}  # rule that does not look for the needle -> its answer


def count(text: str) -> int:
    return len(text.split())


def fill(sentences: Iterator[str], room: int) -> list[str]:
    """As many sentences as fit into `room` words."""
    found: list[str] = []
    for sentence in sentences:
        room -= count(sentence)
        if room < 0:
            break
        found.append(sentence)
    return found


def place(filling: Sequence[str], needles: Iterable[tuple[float, str]]) -> list[str]:
    """The filling with each needle behind its share of it; needles at one place keep their order."""
    at = [(round(depth * len(filling)), needle) for depth, needle in needles]
    found: list[str] = []
    for i in range(len(filling) + 1):
        found += [needle for where, needle in at if where == i]
        found += filling[i : i + 1]
    return found
