"""Spans of characters and the classes of tokens they give.

Offsets count characters (code points) of one text, from 0, the end exclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from quietreasoning.kinds import Kind


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a text; reason: what found them; confidence: in [0, 1]."""

    start: int
    end: int
    kind: Kind
    reason: str = ""
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a span of {self.start} to {self.end} holds no character")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence {self.confidence} is not in [0, 1]")

    def of(self, text: str) -> str:
        """The characters of `text` that it covers."""
        return text[self.start : self.end]

    def moved(self, by: int) -> Span:
        """The same span in a text that has `by` more characters before it."""
        return replace(self, start=self.start + by, end=self.end + by)

    def overlaps(self, other: Span) -> bool:
        return self.start < other.end and other.start < self.end


def moved(spans: Iterable[Span], by: int) -> tuple[Span, ...]:
    return tuple(span.moved(by) for span in spans)


def gaps(start: int, end: int, inner: Iterable[Span]) -> Iterator[tuple[int, int]]:
    """The stretches of `start` to `end` that none of the inner spans covers, in order."""
    at = start
    for span in sorted(inner, key=lambda span: span.start):
        if span.start > at:
            yield at, min(span.start, end)
        at = max(at, span.end)
    if at < end:
        yield at, end


def filled(start: int, end: int, inner: Iterable[Span], reason: str) -> tuple[Span, ...]:
    """The inner spans in order, and what lies between them as JSON_SYNTAX."""
    inner = tuple(inner)
    rest = (Span(a, b, Kind.JSON_SYNTAX, reason) for a, b in gaps(start, end, inner))
    return tuple(sorted((*inner, *rest), key=lambda span: span.start))
