"""What a forward of the workspace model can tell about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from quietreasoning.nn.router import Plan
from quietreasoning.nn.slots import Advance
from quietreasoning.workspace.cache import State
from quietreasoning.workspace.layout import Column


@dataclass
class Trace:
    """What losses and log read, one entry a column. Streams as in `row_R`; later columns hold fewer."""

    row_R: Tensor  # the input row of each stream
    columns: list[Column]
    slots: list[Tensor] = field(default_factory=list)  # [R, K, D] that the column's tokens could read
    advances: list[Advance | None] = field(default_factory=list)  # None where the column began with the first
    plans: list[Plan] = field(default_factory=list)
    open_valid: list[Tensor] = field(default_factory=list)  # [R, N] tokens each advance read
    reads: list[dict[int, Any]] = field(default_factory=list)  # product-key reads by block

    def note(self, state: State, advance: Advance | None, read_RN: Tensor | None, reads: dict) -> None:
        """Add one column."""
        self.advances.append(advance)
        self.plans.append(state.plan)
        self.reads.append(reads)
        if state.slots_RKD is not None:
            self.slots.append(state.slots_RKD)
            self.open_valid.append(read_RN)

    def hits(self) -> tuple[Tensor, Tensor]:
        """Slots of the memory that all tokens read, [1, N, H, K], and which tokens count [1, N]."""
        found = [
            (read.indices_RTHK.flatten(0, 1), (column.valid_RN & (plan.pkm_R > 0)[:, None]).flatten())
            for column, plan, reads in zip(self.columns, self.plans, self.reads, strict=True)
            for read in reads.values()
        ]
        indices, counted = zip(*found, strict=True)
        return torch.cat(indices)[None], torch.cat(counted)[None]


@dataclass
class WorkspaceOutput(BaseModelOutputWithPast):
    """last_hidden_state [B, T, D], past_key_values a WorkspaceCache, hidden_states by block if asked for."""

    trace: Trace | None = None
