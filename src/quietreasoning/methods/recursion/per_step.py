"""One supervision step of every row: what enters, what is held against it, what is carried on.

Rows keep y, z and their step from one optimizer step to the next, see methods/carried_rows.py. The prompt is
read anew each time, since what prepares it has moved. Shapes: B rows, K slots.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quietreasoning.contract import Batch
from quietreasoning.methods.carried_rows import earliest, renewed
from quietreasoning.nn.recursion import Carry


class Rows(NamedTuple):
    """The rows of one optimizer step."""

    batch: Batch
    step_B: Tensor  # the supervision step that each is about to take, from 1
    state: Carry | None  # None: all of them begin
    begins_B: Tensor


def entered(batch: Batch, carry: dict[str, Any] | None) -> Rows:
    """Rows still thinking, and rows of the batch in place of those that are done."""
    if carry is None:
        begins_B = torch.ones_like(batch.keys_B, dtype=torch.bool)
        return Rows(batch, torch.ones_like(batch.keys_B), None, begins_B)
    done_B = carry["done_B"]
    joined = {
        field.name: renewed(
            done_B,
            getattr(batch, field.name),
            carry[field.name],
            left=field.name in ("prompt_BP", "instructed_BP"),
        )
        for field in fields(Batch)
    }
    step_B = torch.where(done_B, 1, carry["step_B"] + 1)
    return Rows(Batch(**joined), step_B, Carry(carry["y_BKD"], carry["z_BKD"]), done_B)


def at_step(asked: list[Tensor], step_B: Tensor) -> Tensor:
    """Of what is asked for after each of N steps, each row's own: N times [B, ...] -> [B, ...]."""
    return torch.stack(asked)[step_B - 1, torch.arange(len(step_B), device=step_B.device)]


def carried(rows: Rows, state: Carry, halt_B: Tensor, steps: int, learns_to_halt: bool) -> dict[str, Tensor]:
    """What the next optimizer step needs of these rows."""
    done_B = rows.step_B >= steps
    if learns_to_halt:
        done_B = done_B | ((halt_B > 0) & (rows.step_B >= earliest(rows.batch.keys_B, steps)))
    own = {field.name: getattr(rows.batch, field.name) for field in fields(Batch)}
    return own | {"step_B": rows.step_B, "done_B": done_B, "y_BKD": state.y_BPD, "z_BKD": state.z_BPD}
