"""Where the sentences of a text are: `segments(text)`. English, by rules, outside code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

_FENCE = re.compile(r"^[ \t]*(```|~~~)")
_BULLET = re.compile(r"[ \t]*(?:[-*+•>][ \t]+|\d{1,3}[.)][ \t]+|\|)")
_STOP = re.compile(r"(?<![.!?])[.!?]++[\"')\]*]*+(?=\s|$)")
_SHORT = re.compile(r"\b(?:(?i:e\.g|i\.e|dr|mr|mrs|ms|vs|etc|approx|cf|fig|eq|al)|[A-Z])$")


@lru_cache(maxsize=256)
def segments(text: str) -> tuple[tuple[int, int], ...]:
    """(start, end) of sentences, list items and other lines outside code fences, in order."""
    found = []
    for first, last in _blocks(text):
        start = first
        for stop in _STOP.finditer(text, first, last):
            if stop[0] == "." and _SHORT.search(text, max(first, stop.start() - 8), stop.start()):
                continue
            found.append((start, stop.end()))
            start = stop.end()
        found.append((start, last))
    trimmed = (_trim(text, start, end) for start, end in found)
    return tuple((start, end) for start, end in trimmed if start < end)


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Runs of lines that belong together: wrapped lines do; list items, headings and table rows do not."""
    start, at, fence = None, 0, None
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark or fence is not None:
            if start is not None:
                yield start, at
                start = None
            if mark and (fence is None or mark[1] == fence):
                fence = mark[1] if fence is None else None
        elif not line.strip() or line.lstrip().startswith("#") or _BULLET.match(line):
            if start is not None:
                yield start, at
            start = at if line.strip() else None
            if line.lstrip().startswith("#"):
                yield at, at + len(line)
                start = None
        elif start is None:
            start = at
        at += len(line)
    if start is not None:
        yield start, at


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[end - 1].isspace():
        end -= 1
    bullet = _BULLET.match(text, start, end)
    start = bullet.end() if bullet else start
    while start < end and (text[start].isspace() or text[start] in "#>*|"):
        start += 1
    return start, end
