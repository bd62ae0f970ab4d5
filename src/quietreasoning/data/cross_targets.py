"""Prompts and answers as a teacher and a student with different tokenizers read them, and which rows of
their logits are about the same characters: what `losses/cross_vocabulary.py` asks for.

Shapes: B texts, T and S tokens of the longest, C chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.alignment import Coverage, Tokens, align
from quietreasoning.data.padding import pad_right
from quietreasoning.data.token_text import id_map, same_roles
from quietreasoning.losses.cross_vocabulary import Chunks, SharedIds

LEAST = 0.3  # share of chunks that must be the same token in both vocabularies


@dataclass(frozen=True)
class CrossTargets:
    """ids are padded on the right with IGNORE. Rows of chunks count logits [B, T, V] flattened to [B * T, V],
    and [B * S, U] of the student."""

    taught_BT: Tensor
    student_BS: Tensor
    chunks: Chunks
    coverage: Coverage


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

    def targets(
        self,
        pairs: Sequence[tuple[str, str]],
        least: float = LEAST,
        sampled: Sequence[Sequence[int]] | None = None,
    ) -> CrossTargets:
        """(prompt, answer) -> ids of both and chunks of the answers, each with its end of sequence.

        Prompt and answer are encoded one by one, each tokenizer with its own begin of sequence. sampled: the
        student's ids of the answers, where it wrote them itself; without end of sequence. UserError where
        fewer than `least` of all chunks are the same token, with what to do instead, and where sampled ids
        do not decode to their answer.
        """
        sides = (self.teacher, self.student)
        rows: tuple[list, list] = ([], [])
        found, starts, coverage = [], [], Coverage()
        for row, (prompt, answer) in enumerate(pairs):
            before = [_prompt(tokenizer, prompt) for tokenizer in sides]
            given = (None, sampled[row] if sampled is not None else None)
            written = [
                Tokens.of(tokenizer, answer, ids, after=[tokenizer.eos_token])
                for tokenizer, ids in zip(sides, given, strict=True)
            ]
            alignment = align(*written, self.student_of_V)
            coverage += alignment.coverage
            found.append(alignment)
            starts.append([len(ids) for ids in before])
            for side in (0, 1):
                rows[side].append(np.array([*before[side], *written[side].ids], np.int32))
        coverage.require(least)
        taught_BT, student_BS = pad_right(rows[0]), pad_right(rows[1])
        chunks = Chunks(
            _rows([a.taught_C2 for a in found], [s[0] for s in starts], taught_BT.shape[1]),
            _rows([a.student_C2 for a in found], [s[1] for s in starts], student_BS.shape[1]),
            _next(taught_BT),
            _next(student_BS),
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


def _rows(ranges: Sequence[NDArray[np.int64]], starts: Sequence[int], width: int) -> Tensor:
    """[first, end) of the answer's tokens -> rows of flattened logits that predict them [C, K]."""
    offsets = [b * width + start - 1 for b, start in enumerate(starts)]
    whole_C2 = np.concatenate([r + o for r, o in zip(ranges, offsets, strict=True)]) if ranges else None
    if whole_C2 is None or not len(whole_C2):
        return torch.full((0, 1), -1)
    count_C1 = np.diff(whole_C2)
    place_K = np.arange(count_C1.max())
    rows_CK = np.where(place_K < count_C1, whole_C2[:, :1] + place_K, -1)
    return torch.from_numpy(rows_CK)


def _next(ids_BT: Tensor) -> Tensor:
    """The id after each, flattened; 0 after the last and where there is padding, which no chunk reads."""
    following_BT = torch.cat([ids_BT[:, 1:], torch.full_like(ids_BT[:, :1], IGNORE)], 1)
    return following_BT.clamp(min=0).flatten()
