"""The eight thinking tokens as text: `<think>` and `</think>` around a thought, six tags within."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
TAGS = ("<step>", "<reason>", "<mece>", "<falsify>", "<expert>", "<doubt>")
THINKING = (OPEN, CLOSE, *TAGS)
_ANY = re.compile("|".join(map(re.escape, THINKING)))


def untagged(text: str) -> str:
    """The text without thinking tokens."""
    return _ANY.sub(" ", text)
