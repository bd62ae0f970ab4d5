"""One forward of the teacher over a batch of rows, and what is kept at each of their learned positions.

Shapes: T tokens, D width, V vocabulary, P learned positions of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.data.padding import pad_right
from quietreasoning.data.teacher_cache.keys import Row, uniforms
from quietreasoning.data.teacher_cache.targets import Keep, Targets, chunks, joined, targets_of


@dataclass(frozen=True)
class Reader:
    """Reads rows in one teacher-forced forward, and keeps what the teacher says at their learned positions.

    vocabulary: rows of the head beyond it are no tokens and get no probability.
    """

    backbone: Backbone
    vocabulary: int
    keep: Keep

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row]) -> list[Targets]:
        """Targets of each row; UserError where the teacher says what is no number."""
        device = next(self.backbone.parameters()).device
        ids_BT = pad_right([row.read for row in rows]).to(device)
        hidden_BTD = self.backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD
        return [self._of(row, hidden_BTD[i], ids_BT[i]) for i, row in enumerate(rows)]

    def _of(self, row: Row, hidden_TD: Tensor, ids_T: Tensor) -> Targets:
        # where the teacher reads more before the row, its positions stand so much later
        at_P = torch.from_numpy(np.flatnonzero(row.learned)) + len(row.read) - len(row.ids)
        hidden_PD, next_P = hidden_TD[at_P.to(hidden_TD.device)], ids_T[at_P.to(ids_T.device) + 1]
        drawn = self.keep.draws and uniforms(self.keep.seed, row, self.keep.draws)
        parts = []
        for part in chunks(len(hidden_PD), self.vocabulary):
            logits_PV = self.backbone.logits(hidden_PD[part])[:, : self.vocabulary]
            try:
                parts.append(
                    targets_of(logits_PV, next_P[part], self.keep, None if drawn is None else drawn[part])
                )
            except ValueError as error:
                raise UserError(
                    f"row {row.key.hex()}: the teacher's {error}. Give --dtype float32, or another teacher."
                ) from error
        return joined(parts)
