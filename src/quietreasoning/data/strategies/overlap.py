"""Which evaluation questions stand in training text, by runs of n words in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def overlapping(train: Iterable[str], held: Sequence[str], n: int = 13) -> list[int]:
    """Indices of held-out texts that share n words in a row with any training text, case and marks aside.

    A text of fewer than n words counts where the whole of it stands in a training text of at most n words.
    """
    seen: set[tuple[str, ...]] = set()
    for text in train:
        seen |= _grams(text, n)
    return [i for i, text in enumerate(held) if _grams(text, n) & seen]


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()
