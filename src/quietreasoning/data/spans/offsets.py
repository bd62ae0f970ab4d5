"""A text to tokens once, each with the characters it stands for.

A fast tokenizer gives them itself. A slow one is followed by decoding longer and longer prefixes, which
costs the square of the length; where its tokens do not decode to the text it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quietreasoning.config import UserError

Offsets = list[tuple[int, int]]
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what an unfinished UTF-8 character decodes to


def tokenise(tokenizer: Any, text: str) -> tuple[list[int], Offsets]:
    """Ids of a text without special tokens of the tokenizer's own, and (start, end) of each in characters.

    Tokens that share one character (its UTF-8 bytes) all stand for it. A token that stands for white space
    which its tokenizer keeps out of the offsets gets that white space. UserError where a slow tokenizer
    cannot be followed.
    """
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids, decoded_offsets(tokenizer, ids, text)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], widened(found["offset_mapping"], text)


def widened(offsets: Sequence[tuple[int, int]], text: str) -> Offsets:
    """Offsets in which an empty token after white space stands for that white space."""
    wide, last = [], 0
    for start, end in offsets:
        if start == end and last < start and text[last:start].isspace():
            start = last
        wide.append((start, end))
        last = max(last, end)
    return wide


def decoded_offsets(tokenizer: Any, ids: Sequence[int], text: str) -> Offsets:
    """What each id adds to the decoded text; white space that the tokenizer swallows belongs to none.

    UserError where the ids do not decode to `text`, white space aside.
    """
    done, at = "", 0  # decoded so far, and where that ends in the text
    found: list[tuple[int, int] | None] = []  # None: a part of the character that a later id completes
    for count in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        place = _follow(text, at, whole, done)
        if place is None:  # the bytes of a character are not all there yet
            whole = whole.rstrip(_BROKEN)
            place = _follow(text, at, whole, done)
        if place is None or (count == len(ids) and text[place[1] :].strip()):
            raise UserError(
                f"tokenizer {type(tokenizer).__name__} has no offsets, and its first {count} tokens decode "
                f"to {whole[-20:]!r}, not to the text; use one with a fast form (tokenizer.json)"
            )
        found.append(place if len(whole) > len(done) else None)
        done, at = whole, place[1]
    offsets, later = [], (at, at)
    for place in reversed(found):
        later = place or later
        offsets.append(later)
    return offsets[::-1]


def _follow(text: str, at: int, whole: str, done: str) -> tuple[int, int] | None:
    """Where what `whole` adds to `done` stands in the text from `at`; None where it does not."""
    if not whole.startswith(done):
        return None
    start = None
    for char in whole[len(done) :]:
        while at < len(text) and text[at] != char and text[at].isspace():
            at += 1
        if text[at : at + 1] != char:
            return None
        start = at if start is None else start
        at += 1
    return (at if start is None else start), at
