"""Which sentences of an answer may be checked. Thin: whether a sentence claims anything, and whether it is
true, is the business of evaluate/claims."""

from __future__ import annotations

import re

from quietreasoning.data.spans.sentences import segments
from quietreasoning.data.spans.span import Kind, Span

CHECKABLE, VAGUE = 0.6, 0.3  # confidence: with something to look up, without
LEAST_WORDS = 3
_LOOKED_UP = re.compile(r"\d|`[^`\n]+`|(?<=[\w,;:] )[A-Z]\w")  # a number, code, a name inside the sentence
_WORD = re.compile(r"\w+")


def claim_spans(text: str) -> tuple[Span, ...]:
    """CLAIM spans, in order: sentences of three words or more outside code, questions left out. One that
    holds a number, code or a name gives a class; others are too unsure to give one unless asked."""
    spans = []
    for start, end in segments(text):
        said = text[start:end]
        if said.rstrip("\"')*] ").endswith("?") or len(_WORD.findall(said)) < LEAST_WORDS:
            continue
        found = _LOOKED_UP.search(said)
        reason, confidence = ("sentence with a value", CHECKABLE) if found else ("sentence", VAGUE)
        spans.append(Span(start, end, Kind.CLAIM, reason, confidence))
    return tuple(spans)
