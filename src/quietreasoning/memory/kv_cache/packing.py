"""Integers of 2, 4 and 8 bits in bytes, and the affine codes that fill them.

Shapes: any leading dimensions, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """x is about low + step * code."""

    codes: Tensor  # uint8, not packed
    low: Tensor
    step: Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below 2^bits [..., C] -> bytes [..., C * bits / 8]; a byte holds channels C/parts apart, so
    that unpacking writes whole runs of channels."""
    parts = codes.chunk(8 // bits, dim=-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], 1):
        packed |= part << (bits * place)
    return packed


def unpack_into(packed: Tensor, bits: int, out: Tensor) -> None:
    """The codes, as `out`'s numbers, into `out` [..., C]."""
    width, last = packed.shape[-1], 8 // bits - 1
    for place in range(last + 1):
        part = packed >> (bits * place) if place else packed
        out[..., place * width : (place + 1) * width].copy_(part & (2**bits - 1) if place < last else part)


def affine(x: Tensor, bits: int, dim: int, valid: Tensor | None = None) -> Affine:
    """Codes with the least and the greatest value along `dim` as their ends; `dim` is kept, of size 1.

    valid: broadcasts to x; what is False shapes no range. Codes are taken with the scales as they are
    stored, so that half precision costs no more than its own rounding.
    """
    if valid is None:
        low, high = x.aminmax(dim=dim, keepdim=True)
    else:
        low = x.masked_fill(~valid, torch.inf).amin(dim, keepdim=True)
        high = x.masked_fill(~valid, -torch.inf).amax(dim, keepdim=True)
        empty = low > high
        low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
    step = (high - low) / (2**bits - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    codes = ((x - low) / step).round().clamp(0, 2**bits - 1)
    return Affine(codes.to(torch.uint8), low, step)


def symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and one scale for the last dimension: max|x| / 127."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale
