"""What scorers and rules leave out of account in a text: spacing, a full stop, a code fence."""

from __future__ import annotations

import re
import unicodedata

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def normalise(text: str) -> str:
    """In one Unicode form, single spaces between words, without one full stop at the end."""
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return words[:-1].rstrip() if words.endswith(".") else words


def strip_fence(text: str) -> str:
    """The first fenced code block of a text, or the text."""
    match = FENCE.search(text)
    return match[1] if match else text
