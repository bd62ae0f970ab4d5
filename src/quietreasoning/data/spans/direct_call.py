"""Where calls are opened one by one though a program would do: what unlikelihood is to move.

Which rows are eligible is not read here: see evaluate/code_mode/eligible.py, and `SpanFormat.direct_calls`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quietreasoning.data.spans.classes import SURE, painted, token_classes
from quietreasoning.data.spans.encode import SpanRow
from quietreasoning.data.spans.span import Kind, Span


def direct_calls(spans: Sequence[Span], text: str) -> tuple[Span, ...]:
    """The spans of `text` with each call's opener as DIRECT_CALL: the syntax right before a tool's name and
    after what closes the call before it, such as `<tool_call>{"name": "`, or the name itself where there is
    none. The rest of a call stays what it is, since a call that was opened must still be right."""
    names = {span.start for span in spans if span.kind is Kind.TOOL_NAME}
    before = {span.end for span in spans if span.kind is Kind.JSON_SYNTAX}
    found: list[Span] = []
    for span in spans:
        if span.kind is Kind.JSON_SYNTAX and span.end in names:
            start = span.start + max(span.of(text).rfind(closer) for closer in ")]}") + 1
            found += [replace(span, end=start)] if start > span.start else []
            found += [replace(span, start=start, kind=Kind.DIRECT_CALL)] if start < span.end else []
        elif span.kind is Kind.TOOL_NAME and span.start not in before:
            found.append(replace(span, kind=Kind.DIRECT_CALL))
        else:
            found.append(span)
    return tuple(found)


def with_direct_calls(row: SpanRow, min_confidence: float = SURE) -> SpanRow:
    """An eligible row with its openers reclassified; ids and labels stay. min_confidence: the encoder's."""
    spans = direct_calls(row.spans, row.text)
    kinds_C = painted(spans, len(row.text), min_confidence)
    return replace(row, spans=spans, classes_T=token_classes(row.offsets, kinds_C))
