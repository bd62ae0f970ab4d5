"""A row read as one text: prompt, steps, answer prefix and answer; of running text the prompt alone.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.backbone import role_of
from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.methods.sequence import visible_part


def whole(batch: Batch, markers: Markers) -> tuple[Tensor, Tensor]:
    """Ids and roles [B, T] of all that the rows hold, without gaps inside a row."""
    role_BP = role_of(batch.prompt_BP, Role.PROMPT)
    if not (batch.answer_BA != IGNORE).any():
        return batch.prompt_BP, role_BP
    visible = visible_part(batch, markers, 0)
    return torch.cat([batch.prompt_BP, visible.ids_BT], 1), torch.cat([role_BP, visible.role_BT], 1)


def next_labels(ids_BT: Tensor) -> Tensor:
    """The token after each [B, T]; IGNORE at the end of a row and at padding."""
    next_BT = torch.cat([ids_BT[:, 1:], torch.full_like(ids_BT[:, :1], IGNORE)], 1)
    return next_BT.masked_fill(ids_BT == IGNORE, IGNORE)
