"""The name of a row, shared by who writes a cache and who reads it, and where in a row targets stand.

A target stored at position t is the teacher's distribution of token t+1. Positions are told by a mask over
the row's tokens, true at t, so its last entry is never true: a mask of labels, which are the tokens t+1, is
one place off and always refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.contract import IGNORE
from quietreasoning.data.padding import Ids

KEY_BYTES = 16


@dataclass(frozen=True)
class Row:
    """A training row of T tokens."""

    key: bytes
    ids: Ids  # [T]
    learned: NDArray[np.bool_]  # [T], true where a target is stored
    read: Ids  # what the teacher reads: the row, perhaps under an instruction of its own; ends as `ids` does

    @property
    def positions(self) -> int:
        return int(self.learned.sum())


def row_key(ids: Any, learned: Any) -> bytes:
    """16 bytes that belong to these token ids [T] and these learned positions [T] alone.

    learned: true at t where the distribution of token t+1 is a target. ValueError where none is, where the
    last position is one (no token follows it; a mask of labels must go through `predicting` first), or where
    an id is negative, as padding is.
    """
    ids, learned = np.asarray(ids), np.asarray(learned).astype(bool)
    if ids.shape != learned.shape or ids.ndim != 1 or not learned.any():
        raise ValueError(
            f"ids {ids.shape} and learned {learned.shape} must be one row, with a position learned"
        )
    if learned[-1]:
        raise ValueError("the last position predicts no token: give positions that predict, not their labels")
    if ids.min() < 0:
        raise ValueError(f"id {ids.min()} is padding; a row is its tokens alone")
    text = len(ids).to_bytes(8, "little") + ids.astype("<u4").tobytes() + np.packbits(learned).tobytes()
    return hashlib.blake2b(text, digest_size=KEY_BYTES, person=b"quiet-teacher").digest()


def row_keys(ids_BT: Tensor, learned_BT: Tensor) -> list[bytes]:
    """Key of each row of a batch; ids are padded with IGNORE on either side, where nothing is learned."""
    ids_BT, learned_BT = ids_BT.cpu().numpy(), learned_BT.cpu().numpy()
    real_BT = ids_BT != IGNORE
    rows = zip(ids_BT, learned_BT, real_BT, strict=True)
    return [row_key(ids[real], learned[real]) for ids, learned, real in rows]


def predicting(labelled_BT: Tensor) -> Tensor:
    """Where the next token is a label [B, T], from where the labels themselves stand [B, T]."""
    return torch.cat([labelled_BT[:, 1:], torch.zeros_like(labelled_BT[:, :1])], 1)


def uniforms(seed: int, row: Row, draws: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) [P, draws] that belong to this row alone, in any batch and on any rank."""
    key = hashlib.blake2b(f"{seed}/".encode() + row.key, digest_size=16).digest()
    philox = np.random.Philox(key=np.frombuffer(key, dtype=np.uint64))
    return np.random.Generator(philox).random((row.positions, draws))


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 over all rows in their order."""
    return hashlib.sha256(b"".join(row.key + row.read.astype("<u4").tobytes() for row in rows)).hexdigest()
