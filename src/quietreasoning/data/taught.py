"""What a teacher with another tokenizer reads of an example, and where its tokens meet the student's.

It reads the example in the student's format: its own prompt (template, instruction), then steps, answer
prefix and answer with its own end of sequence. Each part is aligned by itself: no chunk reaches beyond it.
Shapes: B rows, T ids of the teacher, C chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.data.alignment import Coverage
from quietreasoning.data.config import Format
from quietreasoning.data.cross_targets import Crossing
from quietreasoning.data.example import Example
from quietreasoning.data.padding import Ids, pad_right
from quietreasoning.data.prompts import Prompts
from quietreasoning.data.tokenizer_files import load_tokenizer

_KEPT = 50_000  # step and answer texts recur


class Taught(NamedTuple):
    """One row. chunks: [first, end) in its ids, and in the student's tokens behind the prompt."""

    ids_T: Ids
    role_T: Ids
    chunks_C4: NDArray[np.int64]
    coverage: Coverage  # of steps and answer


class TaughtReader:
    """From examples to what the teacher of `format.taught` reads."""

    def __init__(self, student: Any, format: Format):
        self.student, self.format = student, format
        self._part = lru_cache(_KEPT)(self._read)

    @cached_property
    def teacher(self) -> Any:
        """Its tokenizer. UserError where none is named."""
        wanted = self.format.taught
        if wanted.tokenizer is None:
            raise UserError(
                "data.format.taught.tokenizer is not set: name the folder or hub id of the teacher's "
                "tokenizer, as a rule that of method.teacher.path"
            )
        return load_tokenizer(wanted.tokenizer, wanted.revision)

    @cached_property
    def crossing(self) -> Crossing:
        return Crossing(self.teacher, self.student, self.format.taught.specials)

    @cached_property
    def prompts(self) -> Prompts:
        try:
            return Prompts(self.teacher, self.format)
        except UserError as error:
            raise UserError(f"data.format.taught.tokenizer={self.format.taught.tokenizer}: {error}") from None

    def rows(self, examples: Sequence[Example]) -> list[Taught]:
        """UserError where special tokens of the text have no counterpart."""
        prompts = self.prompts.ids([example.prompt for example in examples], self.format.instruction)
        return [self._row(example, ids) for example, ids in zip(examples, prompts, strict=True)]

    def _row(self, example: Example, prompt: Ids) -> Taught:
        if not len(prompt):
            raise UserError(f"example {example.id}: its prompt has no tokens in the teacher's tokenizer")
        form = self.format
        texts = [(step + form.step_suffix, Role.STEP) for step in example.steps]
        texts += [(form.answer_prefix, Role.MARKER), (f" {example.answer}", Role.ANSWER)]
        ids, roles, chunks = [prompt], [Role.PROMPT] * len(prompt), [np.zeros((0, 4), np.int64)]
        coverage, done = Coverage(), np.array([len(prompt), 0])
        for text, role in texts:
            part, length, places_C4, told = self._part(text, role == Role.ANSWER)
            ids.append(part)
            roles += [role] * len(part)
            chunks.append(places_C4 + done.repeat(2))
            done += len(part), length
            coverage += told if role != Role.MARKER else Coverage()
        return Taught(np.concatenate(ids), np.array(roles, np.int32), np.concatenate(chunks), coverage)

    def _read(self, text: str, ends: bool) -> tuple[Ids, int, NDArray[np.int64], Coverage]:
        """(the teacher's ids, how many the student has, chunks, coverage) of one part."""
        pair = self.crossing.read(text, ends=ends)
        places_C4 = np.concatenate([pair.alignment.taught_C2, pair.alignment.student_C2], 1)
        ids = np.array(pair.taught.ids, np.int32)
        return ids, len(pair.student.ids), places_C4, pair.alignment.coverage


def taught_fields(rows: Sequence[Taught | None]) -> dict[str, Tensor]:
    """The fields of a Batch for such a teacher; nothing without one."""
    if rows[0] is None:
        return {}
    chunks = [torch.from_numpy(row.chunks_C4) for row in rows]
    return {
        "taught_BT": pad_right([row.ids_T for row in rows]),
        "taught_role_BT": pad_right([row.role_T for row in rows]),
        "chunks_BC4": pad_sequence(chunks, batch_first=True, padding_value=IGNORE),
    }
