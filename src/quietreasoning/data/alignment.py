"""One text in two tokenisations: the smallest stretches whose borders are borders of both.

A border lies behind a token where no later token reaches back before it, so bytes of one character are
never parted. Characters between tokens (white space that a tokenizer drops) belong to the token that follows.
Tokens of no characters (begin and end of sequence, marks of a template) are never guessed: one is aligned
with its counterpart, by the map of ids that the caller makes. Shapes: C chunks, V ids of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quietreasoning.config import UserError
from quietreasoning.data.spans.offsets import Offsets, decoded_offsets, tokenise
from quietreasoning.data.token_text import special_ids

_Range = tuple[int, int]


@dataclass(frozen=True)
class Tokens:
    """A text as one tokenizer writes it. marks: places of tokens that stand for no characters on purpose;
    unknown: places of tokens that do not say which characters they stand for."""

    text: str
    ids: tuple[int, ...]
    offsets: Offsets
    marks: frozenset[int] = frozenset()
    unknown: frozenset[int] = frozenset()
    names: tuple[str, ...] = ()  # of the tokens, for complaints

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        text: str,
        ids: Sequence[int] | None = None,
        *,
        before: Sequence[str] = (),
        after: Sequence[str] = (),
    ) -> Tokens:
        """A text between special tokens, given by name. ids: as it was sampled, followed by decoding; None:
        as the tokenizer writes it. UserError for a name that the tokenizer lacks, where a tokenizer without
        offsets cannot be followed, and where ids decode to another text."""
        if ids is None:
            ids, offsets = tokenise(tokenizer, text)
        else:
            offsets = decoded_offsets(tokenizer, ids, text)
        start, end = ([_id(tokenizer, name) for name in names] for names in (before, after))
        whole = (*start, *ids, *end)
        places = [(0, 0)] * len(start) + list(offsets) + [(len(text), len(text))] * len(end)
        special, unk = special_ids(tokenizer), tokenizer.unk_token_id
        empty = {i for i, (first, last) in enumerate(places) if first == last and whole[i] in special}
        unknown = {i for i, id in enumerate(whole) if id == unk and i not in empty}
        names = tuple(tokenizer.convert_ids_to_tokens(list(whole)))
        return cls(text, whole, places, frozenset(empty), frozenset(unknown), names)


def _id(tokenizer: Any, name: str) -> int:
    id = tokenizer.convert_tokens_to_ids(name)
    if id is None or tokenizer.convert_ids_to_tokens(id) != name:  # an unknown name has the id of <unk>
        raise UserError(f"the tokenizer has no token {name!r}; name a special token that it has")
    return id


@dataclass(frozen=True)
class Coverage:
    """How much of a text two tokenisations have in common; adds up over texts."""

    chunks: int = 0
    single: int = 0  # chunks that are one token on both sides
    same: int = 0  # of these, that stand for the same in both vocabularies
    characters: int = 0  # of the text
    covered: int = 0  # in chunks
    shared: int = 0  # in chunks that are the same token

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(*(a + b for a, b in zip(self.numbers(), other.numbers(), strict=True)))

    def numbers(self) -> tuple[int, ...]:
        return self.chunks, self.single, self.same, self.characters, self.covered, self.shared

    @property
    def same_share(self) -> float:
        """Share of chunks that are one token on both sides, and the same one."""
        return self.same / self.chunks if self.chunks else 0.0

    @property
    def covered_share(self) -> float:
        """Share of the characters that are in a chunk."""
        return self.covered / self.characters if self.characters else 1.0

    def __str__(self) -> str:
        return (
            f"{self.same_share:.1%} of {self.chunks} chunks are the same token in both vocabularies, "
            f"{self.covered_share:.1%} of {self.characters} characters are in chunks"
        )

    def require(self, least: float) -> None:
        """UserError where less than `least` of the chunks are the same token: too little to compare."""
        if self.same_share < least:
            raise UserError(
                f"the two tokenizers have too little in common: {self}; asked for are {least:.0%} of the "
                "chunks. Train on what the teacher writes instead (sequence-level distillation: its answers "
                "as gold answers of method cot or plain), choose a teacher with a nearer tokenizer, or give "
                "the student the teacher's with quiet migrate FOLDER OUT --tokenizer TEACHER."
            )


class Alignment(NamedTuple):
    """C chunks in the order of the text: [first, end) of their tokens on both sides and of their characters,
    and whether they are the same token in both."""

    taught_C2: NDArray[np.int64]
    student_C2: NDArray[np.int64]
    characters_C2: NDArray[np.int64]
    same_C: NDArray[np.bool_]
    coverage: Coverage


def align(taught: Tokens, student: Tokens, student_of_V: NDArray[np.int64]) -> Alignment:
    """Both must be of the same text. student_of_V: id of the teacher -> the student's that stands for the
    same, or -1 (`token_text.id_map`).

    Chunks with unknown tokens are left out, as are tokens behind the last common border. Special tokens
    without a counterpart, and their order, are refused with a UserError that says how to map or drop them.
    """
    if taught.text != student.text:
        raise ValueError("two tokenisations of different texts have no common borders")
    pairs = _paired(taught, student, student_of_V)
    chunks: list[tuple[_Range, _Range, _Range]] = []
    for run, (a, b) in enumerate([*pairs, (len(taught.ids), len(student.ids))]):
        first = (pairs[run - 1][0] + 1, pairs[run - 1][1] + 1) if run else (0, 0)
        chunks += _run(taught, student, (first[0], a), (first[1], b), student_of_V)
        if run < len(pairs):
            place = taught.offsets[a]
            chunks.append(((a, a + 1), (b, b + 1), place))
    chunks = [c for c in chunks if not (_holds(taught.unknown, c[0]) or _holds(student.unknown, c[1]))]
    return _summed(taught, student, student_of_V, chunks)


def _paired(taught: Tokens, student: Tokens, student_of_V: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Places of the special tokens of no characters, each with its counterpart."""
    mine, other = sorted(taught.marks), sorted(student.marks)
    for a, b in zip(mine, other, strict=False):
        if student_of_V[taught.ids[a]] != student.ids[b]:
            raise UserError(_unpaired(_name(taught, a), _name(student, b)))
    if len(mine) != len(other):
        longer, places, side = (taught, mine, 0) if len(mine) > len(other) else (student, other, 1)
        extra = _name(longer, places[min(len(mine), len(other))])
        raise UserError(_unpaired(*((extra, None) if side == 0 else (None, extra))))
    return list(zip(mine, other, strict=True))


def _unpaired(mine: str | None, other: str | None) -> str:
    """What to do with a special token that has no counterpart."""
    if mine is not None and other is not None:
        return (
            f"the teacher's special token {mine!r} stands where the student has {other!r}, and nothing says "
            f"that they correspond; give specials={{{mine!r}: {other!r}}}, or write neither"
        )
    side = f"the teacher's special token {mine!r}" if other is None else f"the student's {other!r}"
    return f"{side} has no counterpart in the other row; write one in both, or in neither"


def _run(
    taught: Tokens, student: Tokens, mine: _Range, other: _Range, student_of_V: NDArray[np.int64]
) -> list[tuple[_Range, _Range, _Range]]:
    """Chunks of a stretch without special tokens."""
    borders = _borders(taught.offsets, mine), _borders(student.offsets, other)
    chunks, (a, b), at = [], (mine[0], other[0]), _begin(taught, student, mine, other)
    for end in sorted(borders[0].keys() & borders[1].keys()):
        stop = borders[0][end], borders[1][end]
        # inside one character both may go on with the same bytes: those tokens are chunks of their own
        while stop[0] - a > 1 and stop[1] - b > 1 and student_of_V[taught.ids[a]] == student.ids[b]:
            chunks.append(((a, a + 1), (b, b + 1), (at, at)))
            a, b = a + 1, b + 1
        chunks.append(((a, stop[0]), (b, stop[1]), (at, end)))
        (a, b), at = stop, end
    return chunks


def _borders(offsets: Offsets, run: _Range) -> dict[int, int]:
    """Character -> how many tokens end there, for each border of a run; of several the first, so that a
    token of no characters belongs to what follows."""
    found: dict[int, int] = {}
    least, starts = None, []  # the first character of all later tokens, from the right
    for place in range(run[1] - 1, run[0] - 1, -1):
        starts.append(least)
        least = offsets[place][0] if least is None else min(least, offsets[place][0])
    reached = 0
    for place, later in zip(range(*run), reversed(starts), strict=True):
        reached = max(reached, offsets[place][1])
        if (later is None or reached <= later) and offsets[place][1] > offsets[place][0]:
            found.setdefault(reached, place + 1)
    return found


def _begin(taught: Tokens, student: Tokens, mine: _Range, other: _Range) -> int:
    """Where the text of a run begins: where the one before it ended."""
    if not mine[0] or not other[0]:
        return 0
    return max(taught.offsets[mine[0] - 1][1], student.offsets[other[0] - 1][1])


def _holds(places: frozenset[int], run: _Range) -> bool:
    return any(place in places for place in range(*run))


def _name(tokens: Tokens, place: int) -> str:
    return tokens.names[place] if tokens.names else str(tokens.ids[place])


def _summed(
    taught: Tokens,
    student: Tokens,
    student_of_V: NDArray[np.int64],
    chunks: Sequence[tuple[_Range, _Range, _Range]],
) -> Alignment:
    columns = np.array(chunks, np.int64).reshape(len(chunks), 3, 2)
    taught_C2, student_C2, characters_C2 = columns[:, 0], columns[:, 1], columns[:, 2]
    single_C = (np.diff(taught_C2)[:, 0] == 1) & (np.diff(student_C2)[:, 0] == 1)
    same_C = single_C.copy()
    same_C[single_C] = [
        student_of_V[taught.ids[a]] == student.ids[b]
        for a, b in zip(taught_C2[single_C, 0], student_C2[single_C, 0], strict=True)
    ]
    lengths_C = np.diff(characters_C2)[:, 0]
    coverage = Coverage(
        len(chunks),
        int(single_C.sum()),
        int(same_C.sum()),
        len(taught.text),
        int(lengths_C.sum()),
        int(lengths_C[same_C].sum()),
    )
    return Alignment(taught_C2, student_C2, characters_C2, same_C, coverage)
