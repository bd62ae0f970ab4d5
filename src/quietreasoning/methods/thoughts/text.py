"""What is read, which of its tokens are learned, and where the model may stop to think."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quietreasoning.backbone import role_of
from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.methods.sequence import visible_part


class Text(NamedTuple):
    """Rows of text, columns padded with IGNORE on both sides. Shapes: B rows, T columns."""

    ids_BT: Tensor
    role_BT: Tensor
    label_BT: Tensor  # the token after each column where it is learned, else IGNORE
    length_BT: Tensor  # tokens that decide how long a thought may be: the question's, or those so far

    @property
    def anchors_BT(self) -> Tensor:
        """Columns that may think: those that predict what is learned."""
        return self.label_BT != IGNORE


def text_of(batch: Batch, markers: Markers, *, visible: bool) -> Text:
    """Question, steps if `visible`, answer prefix, answer, learned but for the question; or running text."""
    prompt_BP = batch.prompt_BP
    role_BP = role_of(prompt_BP, Role.PROMPT)
    so_far_BP = (prompt_BP != IGNORE).cumsum(1)
    if not (batch.answer_BA != IGNORE).any():
        return Text(prompt_BP, role_BP, labels_of(prompt_BP, prompt_BP), so_far_BP)
    behind = visible_part(batch, markers, 0 if visible else None)
    ids_BT = torch.cat([prompt_BP, behind.ids_BT], 1)
    learned_BT = torch.cat([torch.full_like(prompt_BP, IGNORE), behind.ids_BT], 1)
    length_BT = so_far_BP[:, -1:].expand_as(ids_BT)
    return Text(ids_BT, torch.cat([role_BP, behind.role_BT], 1), labels_of(ids_BT, learned_BT), length_BT)


def labels_of(ids_BT: Tensor, learned_BT: Tensor) -> Tensor:
    """What is learned one column on; IGNORE at the end and at padding."""
    next_BT = torch.cat([learned_BT[:, 1:], torch.full_like(learned_BT[:, :1], IGNORE)], 1)
    return next_BT.masked_fill(ids_BT == IGNORE, IGNORE)


def count_labels(batch: Batch, markers: Markers, *, visible: bool) -> int:
    text = text_of(batch, markers, visible=visible)
    return int((text.label_BT != IGNORE).sum())
