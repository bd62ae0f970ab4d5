"""Rows that stay for several optimizer steps, and make place for new ones when they are done.

One supervision step of a recursive reasoner is then one optimizer step (TRM, arXiv 2510.04871): the lane
keeps its rows with their states, and the rows of the next batch enter where a row was done; the others of the
batch are not seen. Shapes: B rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.contract import IGNORE

MASK31 = (1 << 31) - 1
LONG_SHARE = 0.1  # of the rows may not halt before a random step (the paper's)


def renewed(done_B: Tensor, fresh: Tensor, held: Tensor, *, left: bool = False) -> Tensor:
    """The held rows, and the fresh one wherever the held one is done, [B, ...], as wide as the wider of both.

    Padded with IGNORE at the end of every axis; left: at the beginning.
    """
    sizes = [max(pair) for pair in zip(fresh.shape[1:], held.shape[1:], strict=True)]
    fresh, held = (_widened(part, sizes, left) for part in (fresh, held))
    return torch.where(done_B.view(-1, *[1] * len(sizes)), fresh, held)


def _widened(part: Tensor, sizes: list[int], left: bool) -> Tensor:
    missing: list[int] = []
    for size, own in zip(reversed(sizes), reversed(part.shape[1:]), strict=True):
        missing += [size - own, 0] if left else [0, size - own]
    return F.pad(part, missing, value=IGNORE if part.dtype.is_signed else 0) if any(missing) else part


def earliest(keys_B: Tensor, steps: int) -> Tensor:
    """The first step at which a row may halt: 1, or for a tenth of the rows one of 2 to `steps`.

    From the row's key alone, so that lanes and ranks cut rows. A key holds its epoch, so that a problem that
    returns draws anew.
    """
    mixed_B = (keys_B ^ (keys_B >> 32)) & MASK31
    for factor in (0x45D9F3B, 0x119DE1F3):  # odd: nothing is lost
        mixed_B = (mixed_B * factor) & MASK31
        mixed_B = mixed_B ^ (mixed_B >> 16)
    share_B = mixed_B.double() / (MASK31 + 1)
    later_B = 2 + (share_B / LONG_SHARE * max(steps - 1, 0)).long()
    return torch.where(share_B < LONG_SHARE, later_B.clamp(max=steps), 1)
