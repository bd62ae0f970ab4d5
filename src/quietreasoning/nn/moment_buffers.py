"""Moments as buffers of a module: saved, resumed and moved with it, and added up over ranks.

Shapes: N states of width D; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quietreasoning.nn.moments import Moments
from quietreasoning.nn.row_gather import full_precision

CHUNK = 1024  # positions whose probabilities are held at a time


class DoubleBuffers(nn.Module):
    """Its buffers keep their precision whatever the module is cast to; only the device follows."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for name, buffer in self._buffers.items():
            moved = fn(buffer)
            self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self


class MomentBuffers(DoubleBuffers):
    """`Moments` that live in a state dict; every rank holds those of all ranks."""

    def __init__(self, width: int):
        super().__init__()
        for name, tensor in Moments(width).state_dict().items():
            self.register_buffer(name, tensor)

    @property
    def seen(self) -> int:
        """States counted so far."""
        return int(self.count)

    def moments(self) -> Moments:
        """A copy to compute with."""
        return Moments.load(dict(self.named_buffers()), self.count.device)

    @torch.no_grad()
    def observe(self, states: Tensor, counted: Tensor) -> None:
        """Add the states [..., D] where `counted` [...] is True; all ranks must call it equally often.

        Raises ValueError, and adds nothing, where a counted state is not finite.
        """
        reference_D = self.reference_D if self.placed else None
        seen = Moments(states.shape[-1], reference_D, self.count.device)
        seen.update(states, counted)
        total = self.moments() + seen.over_ranks()
        for name, tensor in total.state_dict().items():
            getattr(self, name).copy_(tensor)


class FisherBuffers(DoubleBuffers):
    """What `fisher_metric` needs of all positions, without keeping any: sums of p and of (E^T p)(E^T p)^T."""

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("chance_V", torch.zeros(vocabulary, dtype=torch.float64))
        self.register_buffer("expected_DD", torch.zeros(width, width, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, logits_of: Callable[[Tensor], Tensor], head_VD: Tensor, states_ND: Tensor) -> None:
        """Add the positions that these states [N, D] predict from; all ranks must call it equally often.

        logits_of: states [n, D] -> logits [n, V].
        """
        parts = [torch.zeros_like(buffer) for buffer in (self.count, self.chance_V, self.expected_DD)]
        for part_ND in states_ND.split(CHUNK):
            chance_NV = logits_of(part_ND).float().softmax(-1)
            with full_precision(chance_NV):
                expected_ND = (chance_NV @ head_VD.float()).double()
            parts[0] += len(part_ND)
            parts[1] += chance_NV.sum(0, dtype=torch.float64)
            parts[2] += expected_ND.T @ expected_ND
        for part in parts:
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(part)
        for buffer, part in zip((self.count, self.chance_V, self.expected_DD), parts, strict=True):
            buffer += part

    def metric_DD(self, head_VD: Tensor) -> Tensor:
        """`fisher_metric` of all positions, float64."""
        if not self.count > 0:
            raise ValueError("no position was seen; observe() some first")
        spread_DD = torch.zeros_like(self.expected_DD)
        for rows_vD, chance_v in zip(head_VD.split(8192), self.chance_V.split(8192), strict=True):
            rows_vD = rows_vD.detach().double()
            spread_DD += (rows_vD.T * chance_v) @ rows_vD
        return (spread_DD - self.expected_DD) / self.count
