"""Where a text holds fenced code."""

from __future__ import annotations

from quietreasoning.data.spans.span import Kind, Span

FENCES = ("```", "~~~")


def code_spans(text: str) -> tuple[Span, ...]:
    """CODE spans: the lines between a fence and the next one of its kind, without either; an unclosed fence
    holds to the end. Empty blocks give none."""
    spans, at, fence, inside = [], 0, "", 0
    for line in text.splitlines(keepends=True):
        mark = line.strip()[:3]
        if not fence and mark in FENCES:
            fence, inside = mark, at + len(line)
        elif fence and line.strip() == fence:
            if at > inside:
                spans.append(Span(inside, at, Kind.CODE, "fence"))
            fence = ""
        at += len(line)
    if fence and at > inside:
        spans.append(Span(inside, at, Kind.CODE, "open fence"))
    return tuple(spans)
