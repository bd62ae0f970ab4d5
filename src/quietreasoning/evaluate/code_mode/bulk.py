"""Where a summary hands on what tools returned instead of what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from quietreasoning.data.spans.integration import result_leaves, trivial
from quietreasoning.evaluate.rules.base import Mark

_WORD = re.compile(r"\w+(?:[.,]\d+)*")
SHINGLE = 8  # words in a row that make a quotation
Word = tuple[str, int, int]


def bulk_marks(summary: str, results: Iterable[str], asked: str, words: int, values: int) -> tuple[Mark, ...]:
    """Stretches of at least `words` words that stand so in a result, and, where the summary repeats more than
    `values` different values of results in any form, the stretch that holds them.

    What stands in `asked` (question, right answers) is no leak. Values are leaves of results: numbers of two
    digits or more, texts that say something. Encoded or reworded results are not found.
    """
    said, results = _words(summary), list(results)
    return (*_quoted(said, results, asked, words), *_values(said, results, asked, values))


def _words(text: str) -> list[Word]:
    return [(m[0].lower().replace(",", ""), *m.span()) for m in _WORD.finditer(text)]


def _shingles(words: list[Word]) -> Iterator[tuple[str, ...]]:
    plain = [word for word, _, _ in words]
    return (tuple(plain[at : at + SHINGLE]) for at in range(len(plain) - SHINGLE + 1))


def _quoted(said: list[Word], results: list[str], asked: str, least: int) -> Iterator[Mark]:
    if len(said) < max(least, SHINGLE):
        return
    known = {hash(one) for text in results for one in _shingles(_words(text))}
    known -= {hash(one) for one in _shingles(_words(asked))}
    covered = [False] * len(said)
    for at, one in enumerate(_shingles(said)):
        if hash(one) in known:
            covered[at : at + SHINGLE] = [True] * SHINGLE
    start = None
    for at, inside in enumerate([*covered, False]):
        if inside and start is None:
            start = at
        elif not inside and start is not None:
            if at - start >= least:
                yield Mark(said[start][1], said[at - 1][2], f"{at - start} words of a tool's result in a row")
            start = None


def _values(said: list[Word], results: list[str], asked: str, most: int) -> Iterator[Mark]:
    leaves = {
        tuple(word for word, _, _ in _words(value if isinstance(value, str) else json.dumps(value)))
        for text in results
        for _, value in result_leaves(text)
        if not trivial(value)
    }
    leaves = {leaf for leaf in leaves if 0 < len(leaf) < SHINGLE} - {*_runs(_words(asked))}
    sizes = sorted({len(leaf) for leaf in leaves})
    places: dict[tuple[str, ...], tuple[int, int]] = {}
    plain = [word for word, _, _ in said]
    for at in range(len(plain)):
        for size in sizes:
            one = tuple(plain[at : at + size])
            if len(one) == size and one in leaves:
                places.setdefault(one, (said[at][1], said[at + size - 1][2]))
    if len(places) > most:
        start = min(place[0] for place in places.values())
        end = max(place[1] for place in places.values())
        yield Mark(start, end, f"{len(places)} values of tools' results, {most} allowed")


def _runs(words: list[Word]) -> Iterator[tuple[str, ...]]:
    plain = [word for word, _, _ in words]
    return (tuple(plain[at : at + size]) for size in range(1, SHINGLE) for at in range(len(plain)))
