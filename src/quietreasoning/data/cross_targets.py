"""Prompts and answers as a teacher and a student with different tokenizers read them, and which rows of
their logits are about the same characters: what `losses/cross_vocabulary.py` asks for.

Shapes: B texts, T and S tokens of the longest, C chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.data.alignment import Alignment, Coverage, Tokens, align
from quietreasoning.data.padding import pad_right
from quietreasoning.data.token_text import id_map, same_roles
from quietreasoning.losses.cross_vocabulary import Chunks, SharedIds, following

LEAST = 0.3  # share of chunks that must be the same token in both vocabularies


@dataclass(frozen=True)
class CrossTargets:
    """ids are padded on the right with IGNORE. Rows of chunks count logits [B, T, V] flattened to [B * T, V],
    and [B * S, U] of the student."""

    taught_BT: Tensor
    student_BS: Tensor
    chunks: Chunks
    coverage: Coverage


class Paired(NamedTuple):
    """One text as both write it."""

    taught: Tokens
    student: Tokens
    alignment: Alignment


class Crossing:
    """What is made once of a teacher's and a student's tokenizer.

    specials: name of a special token of the teacher -> that of the student's, beyond those of the same role
    or name; None: of neither. UserError where no token stands for the same in both.
    """

    def __init__(self, teacher: Any, student: Any, specials: Mapping[str, str | None] | None = None):
        self.teacher, self.student = teacher, student
        named = same_roles(teacher, student, ("bos_token", "eos_token")) | dict(specials or {})
        self.student_of_V = id_map(teacher, student, named)
        if not (self.student_of_V >= 0).any():
            raise UserError(
                "no token of the teacher stands for the same as one of the student; train on what the "
                "teacher writes instead, or give both one tokenizer with quiet migrate"
            )

    def shared(self) -> SharedIds:
        """For the loss."""
        size = max(self.student.get_vocab().values()) + 1
        return SharedIds(torch.from_numpy(self.student_of_V), size)

    def read(self, text: str, sampled: Sequence[int] | None = None, *, ends: bool = False) -> Paired:
        """A text as both write it, with the end of sequence where it `ends`. sampled: the student's ids,
        where it wrote them itself; UserError where they do not decode to the text."""
        sides = (self.teacher, None), (self.student, sampled)
        taught, student = (
            Tokens.of(side, text, ids, after=[side.eos_token] if ends else []) for side, ids in sides
        )
        return Paired(taught, student, align(taught, student, self.student_of_V))

    def targets(
        self,
        pairs: Sequence[tuple[str, str]],
        least: float = LEAST,
        sampled: Sequence[Sequence[int]] | None = None,
    ) -> CrossTargets:
        """(prompt, answer) -> ids of both and chunks of the answers, each with its end of sequence.

        Prompt and answer are encoded one by one, each tokenizer with its own begin of sequence. sampled: the
        student's ids of the answers, without end of sequence. UserError where fewer than `least` of all
        chunks are the same token, with what to do instead, and as `read`.
        """
        rows: tuple[list, list] = ([], [])
        ranges: tuple[list, list] = ([], [])
        coverage = Coverage()
        for row, (prompt, answer) in enumerate(pairs):
            pair = self.read(answer, None if sampled is None else sampled[row], ends=True)
            coverage += pair.alignment.coverage
            sides = (self.teacher, pair.taught), (self.student, pair.student)
            places_2 = pair.alignment.taught_C2, pair.alignment.student_C2
            for side, (tokenizer, written) in enumerate(sides):
                before = _prompt(tokenizer, prompt)
                rows[side].append(np.array([*before, *written.ids], np.int32))
                ranges[side].append(places_2[side] + len(before) - 1)
        coverage.require(least)
        taught_BT, student_BS = pad_right(rows[0]), pad_right(rows[1])
        chunks = Chunks.of(
            _flat(ranges[0], taught_BT.shape[1]),
            _flat(ranges[1], student_BS.shape[1]),
            following(taught_BT),
            following(student_BS),
        )
        return CrossTargets(taught_BT, student_BS, chunks, coverage)


def _prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a prompt, after a begin of sequence where the tokenizer writes one. UserError where none is
    left: the first token of an answer would have nothing to be predicted from."""
    start = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    start = start if start == [tokenizer.bos_token_id] else []
    ids = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"prompt {prompt!r} has no tokens; a prompt needs at least one")
    return ids


def _flat(ranges: Sequence[NDArray[np.int64]], width: int) -> Tensor:
    """[first, end) of the logits in each row -> in all rows one behind the other [C, 2]."""
    moved = [range_C2 + row * width for row, range_C2 in enumerate(ranges)]
    return torch.from_numpy(np.concatenate([np.zeros((0, 2), np.int64), *moved]))
