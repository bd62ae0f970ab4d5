"""What a forward of the workspace model can tell about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from quietreasoning.nn.product_key_memory import Read
from quietreasoning.nn.router import Plan
from quietreasoning.nn.slots import Advance
from quietreasoning.workspace.cache import State
from quietreasoning.workspace.layout import Column


class Hits(NamedTuple):
    """What tokens of a run of columns read of the memory."""

    indices_NHK: Tensor
    counted_N: Tensor  # real tokens of chunks whose plan reads it
    query_NHQ: Tensor


@dataclass
class Trace:
    """What losses and log read, one entry a column. Streams as in `row_R`; later columns hold fewer."""

    row_R: Tensor  # the input row of each stream
    columns: list[Column]
    slots: list[Tensor] = field(default_factory=list)  # [R, K, D] that the column's tokens could read
    advances: list[Advance | None] = field(default_factory=list)  # None where the column began with the first
    plans: list[Plan] = field(default_factory=list)
    open_valid: list[Tensor] = field(default_factory=list)  # [R, N] tokens each advance read
    reads: dict[int, list[Hits]] = field(default_factory=dict)  # by block

    def note(self, state: State, advance: Advance | None, read_RN: Tensor | None) -> None:
        """Add one column."""
        self.advances.append(advance)
        self.plans.append(state.plan)
        if state.slots_RKD is not None:
            self.slots.append(state.slots_RKD)
            self.open_valid.append(read_RN)

    def hit(self, block: int, read: Read, counted_QN: Tensor) -> None:
        """Add what was read of the memory after a block."""
        flat = Hits(read.indices_RTHK.flatten(0, 1), counted_QN.flatten(), read.query_RTHQ.flatten(0, 1))
        self.reads.setdefault(block, []).append(flat)

    def hits(self, block: int | None = None) -> tuple[Tensor, Tensor]:
        """Slots of the memory that tokens read after a block, or after all, [1, N, H, K], and which of the
        tokens count [1, N]."""
        found = [hit for number, hits in self.reads.items() if block in (None, number) for hit in hits]
        indices, counted, _ = zip(*found, strict=True)
        return torch.cat(indices)[None], torch.cat(counted)[None]

    def asked(self, block: int) -> tuple[Tensor, Tensor]:
        """Queries of the memory after a block [N, H, Q], and which of them count [N]."""
        return tuple(
            torch.cat([getattr(hit, name) for hit in self.reads[block]])
            for name in ("query_NHQ", "counted_N")
        )


@dataclass
class WorkspaceOutput(BaseModelOutputWithPast):
    """last_hidden_state [B, T, D], past_key_values a WorkspaceCache, hidden_states by block if asked for."""

    trace: Trace | None = None
