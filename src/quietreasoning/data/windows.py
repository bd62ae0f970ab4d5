"""Documents to rows of running text: windows of tokens, in order, every token in exactly one.

A document is its tokens and one end of sequence. The first token of a window follows nothing, so it
is never predicted; no window is so short that it predicts nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from quietreasoning.config import UserError
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.padding import Ids

_CHUNK = 256


def windows(
    documents: Sequence[Example],
    encoder: Encoder,
    size: int | None,
    *,
    join: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Rows of `size` tokens; None takes what the encoder's limits allow. `check` may raise to stop.

    The last row of a document (of all documents where join=True) is shorter.
    """
    size = window_size(encoder, size)
    encoded: list[Ids] = []
    for first in range(0, len(documents), _CHUNK):
        check()
        encoded += encoder.document_ids(documents[first : first + _CHUNK])
    names = [document.id for document in documents]
    if join:
        names, encoded = names[:1], [np.concatenate(encoded)]
    return [
        Example(
            id=f"{name}+{first}",
            prompt="",
            steps=(),
            results=(),
            answer="",
            meta={"document": name},
            ids=ids[first:last],
        )
        for name, ids in zip(names, encoded, strict=True)
        for first, last in cuts(len(ids), size)
    ]


def window_size(encoder: Encoder, size: int | None) -> int:
    """UserError where a window is larger than a limit."""
    limits = {"data.max_prompt_tokens": encoder.max_prompt_tokens, "the model's context": encoder.context}
    known = {name: limit for name, limit in limits.items() if limit is not None}
    if size is None:
        if not known:
            raise ValueError("a window needs a size where the encoder has no limit")
        return min(known.values())
    for name, limit in known.items():
        if size > limit:
            raise UserError(f"data.options.window={size}: {name} is {limit}; use a smaller one, or null")
    return size


def cuts(length: int, size: int) -> list[tuple[int, int]]:
    """(first, last) of each window. A single token left over takes one from the window before it."""
    edges = [*range(0, length, size), length]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        edges[-2] -= 1
    return list(itertools.pairwise(edges))


def spread(rows: Sequence[Example], n: int | None) -> Sequence[Example]:
    """n rows, evenly over all of them, so that few rows still come from many documents."""
    if n is None or n >= len(rows):
        return rows
    return [rows[i * len(rows) // n] for i in range(n)]
