"""What a workspace model reads of a batch, and the workspace its answer reads.

Shapes: B rows, P prompt tokens, T positions, K slots, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quietreasoning.backbone import role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.methods.sequence import visible_part
from quietreasoning.workspace import Trace


class Sequence(NamedTuple):
    """What the model reads, and what it is to say at each place."""

    ids_BT: Tensor
    role_BT: Tensor
    starts_BT: Tensor | None  # where the answer opens a chunk; None where there is no answer
    labels_BT: Tensor  # the next token, IGNORE where it is not learned


class AtAnswer(NamedTuple):
    """The workspace that the answer reads."""

    slots_BKD: Tensor
    inner_BTD: Tensor | None  # mean slot after each inner step; None without gradients
    halting_BT: Tensor | None  # chance that the inner step is the last; likewise
    logits: dict[str, Tensor]  # of the router, by part [B, outputs]


def lay_out(batch: Batch, markers: Markers, *, everything: bool) -> Sequence:
    """Prompt, answer prefix, answer; text without an answer is read whole. everything: learn the prompt."""
    prompt_BT, role_BT = batch.prompt_BP, role_of(batch.prompt_BP, Role.PROMPT)
    if not (batch.answer_BA != IGNORE).any():
        if not everything:
            raise UserError("method.learn=answer, but these rows have no answer; set method.learn=all")
        return Sequence(prompt_BT, role_BT, None, _next(prompt_BT))
    visible = visible_part(batch, markers, None)
    ids_BT = torch.cat([prompt_BT, visible.ids_BT], 1)
    starts_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    starts_BT[:, prompt_BT.shape[1]] = True
    known_BP = prompt_BT if everything else torch.full_like(prompt_BT, IGNORE)
    labels_BT = _next(ids_BT, torch.cat([known_BP, visible.labels_BT], 1))
    return Sequence(ids_BT, torch.cat([role_BT, visible.role_BT], 1), starts_BT, labels_BT)


def at_answer(trace: Trace, first: int, width: int) -> AtAnswer:
    """The workspace of the chunk that begins at column `first` of the input."""
    rows, slots, inner, halting, logits = [], [], [], [], {}
    for number, column in enumerate(trace.columns):
        begins_R = column.valid_RN[:, 0] & (column.index_RN[:, 0] % width == first)
        rows.append(trace.row_R[: len(begins_R)][begins_R])
        slots.append(trace.slots[number][begins_R])
        update = trace.advances[number]
        if update is not None and update.states_RTKD is not None:
            inner.append(update.states_RTKD.mean(2)[begins_R])
            halting.append(update.halting_RT[begins_R])
        for part, value in trace.plans[number].logits.items():
            logits.setdefault(part, []).append(value[begins_R])
    order_B = torch.cat(rows).argsort()
    return AtAnswer(
        torch.cat(slots)[order_B],
        torch.cat(inner)[order_B] if inner else None,
        torch.cat(halting)[order_B] if inner else None,
        {p: torch.cat(values)[order_B] for p, values in logits.items()},
    )


def _next(ids_BT: Tensor, labels_BT: Tensor | None = None) -> Tensor:
    """Each place's next label; the last has none, nor has padding before the first token."""
    labels_BT = ids_BT if labels_BT is None else labels_BT
    next_BT = torch.cat([labels_BT[:, 1:], torch.full_like(labels_BT[:, :1], IGNORE)], 1)
    return next_BT.masked_fill(ids_BT == IGNORE, IGNORE)
