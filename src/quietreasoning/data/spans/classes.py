"""From spans of characters to classes of tokens, and which tokens are learned.

The border rule: a token has the class of most of its characters. A tie goes to the value, then to what is
rarer, in the order of PRIORITY. Where spans overlap, the shorter one holds the characters, then the surer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from quietreasoning.data.spans.span import Kind, Span

PRIORITY = (
    Kind.LATENT,
    Kind.ARG_VALUE,
    Kind.TOOL_NAME,
    Kind.INTEGRATION,
    Kind.CLAIM,
    Kind.DIRECT_CALL,
    Kind.CODE,
    Kind.ARG_KEY,
    Kind.JSON_SYNTAX,
    Kind.OTHER,
)
SURE = 0.5  # spans of less confidence give no class
_RANK = np.array([len(PRIORITY) - PRIORITY.index(kind) for kind in Kind])


def painted(spans: Iterable[Span], length: int, min_confidence: float = SURE) -> NDArray[np.int64]:
    """kinds_C: the kind of each of `length` characters."""
    kinds_C = np.zeros(length, dtype=np.int64)
    sure = [span for span in spans if span.confidence >= min_confidence]
    for span in sorted(sure, key=lambda span: (span.start - span.end, span.confidence)):
        kinds_C[span.start : span.end] = span.kind
    return kinds_C


def token_classes(offsets: Sequence[tuple[int, int]], kinds_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """classes_T of tokens that stand for characters start to end; OTHER where a token has none."""
    classes_T = np.zeros(len(offsets), dtype=np.int64)
    for token, (start, end) in enumerate(offsets):
        if end > start:
            counts = np.bincount(kinds_C[start:end], minlength=len(Kind))
            classes_T[token] = np.argmax(counts * (len(Kind) + 1) + _RANK * (counts > 0))
    return classes_T


def learned_tokens(
    offsets: Sequence[tuple[int, int]], written: Iterable[tuple[int, int]], kinds_C: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """learned_T: tokens that lie wholly in what the assistant wrote and hold no latent placeholder.

    A token that also holds a character of somebody else's text is context.
    """
    written_C = np.zeros(len(kinds_C), dtype=bool)
    for start, end in written:
        written_C[start:end] = True
    written_C &= kinds_C != Kind.LATENT
    return np.array([end > start and bool(written_C[start:end].all()) for start, end in offsets], dtype=bool)


def tokens_of(span: Span, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The positions whose characters overlap the span, in order: their text covers the span's."""
    return [token for token, (start, end) in enumerate(offsets) if start < span.end and end > span.start]
