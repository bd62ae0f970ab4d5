"""Rows of ids of unequal length to one tensor, padded with IGNORE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.contract import IGNORE

Ids = NDArray[np.int32]


def pad_left(rows: Sequence[Ids]) -> Tensor:
    """Rows of ids to (B, P) int64, IGNORE on the left."""
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max(initial=0))
    return _fill(rows, np.arange(width) >= (width - lengths)[:, None])


def pad_right(rows: Sequence[Ids]) -> Tensor:
    """Rows of ids to (B, T) int64, IGNORE on the right."""
    lengths = np.array([len(row) for row in rows])
    return _fill(rows, np.arange(lengths.max(initial=0)) < lengths[:, None])


def pad_known(rows: Sequence[Ids | None]) -> Tensor | None:
    """As `pad_right`; None for rows that have none of it."""
    return None if rows[0] is None else pad_right([row for row in rows if row is not None])


def pad_steps(rows: Sequence[Ids], lengths: Sequence[Ids], num_steps: int) -> Tensor:
    """Rows of concatenated steps, with one length a step, to (B, K, S) int64, IGNORE on the right."""
    lengths_BK = np.zeros((len(rows), num_steps), dtype=np.int64)
    counts = np.array([len(steps) for steps in lengths])
    if num_steps:
        lengths_BK[np.arange(num_steps) < counts[:, None]] = np.concatenate(lengths)
    return _fill(rows, np.arange(lengths_BK.max(initial=0)) < lengths_BK[:, :, None])


def _fill(rows: Sequence[Ids], mask: NDArray[np.bool_]) -> Tensor:
    """Write the rows' ids, in order, where the mask is true; IGNORE elsewhere."""
    ids = np.full(mask.shape, IGNORE, dtype=np.int64)
    if mask.any():
        ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids)
