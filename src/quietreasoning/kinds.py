"""What the tokens of an answer can be. A file of its own, so that whoever reads text alone needs no torch."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What a stretch of text is, and the class of a token that stands there."""

    OTHER = 0
    TOOL_NAME = 1  # the called name, without quotes
    ARG_KEY = 2  # a key of the arguments at any depth, with its quotes where it has some
    ARG_VALUE = 3  # a leaf value of the arguments, with its quotes; `{}` and `[]` are syntax
    JSON_SYNTAX = 4  # the rest of a call: brackets, marks, tags, the words `name` and `arguments`
    INTEGRATION = 5  # a stretch of an answer that repeats a value of a tool result
    CODE = 6  # the inside of a fenced block
    DIRECT_CALL = 7  # a call made one by one where a program would do
    CLAIM = 8  # a statement that can be checked
    LATENT = 9  # a placeholder of a latent thought; never a label


CALL_KINDS = (Kind.TOOL_NAME, Kind.ARG_KEY, Kind.ARG_VALUE, Kind.JSON_SYNTAX, Kind.DIRECT_CALL)
"""What the tokens of a call are."""
