"""Streaming moments of states: how many, their sum and their Gram matrix, mergeable in any order.

Shapes: N states of width D; B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from quietreasoning.nn.row_gather import full_precision

CHUNK = 8192  # states in one fp32 matrix product


class Moments:
    """n, sum (x - r) and sum (x - r)(x - r)^T in float64, around a fixed reference vector r.

    The states of a language model have a mean far larger than most of their spread: E[x x^T] - mu mu^T of
    fp32 sums would be mostly rounding. Around r, the mean of the first states seen, nothing large cancels,
    so the product of a chunk may be taken in fp32. Sums about one reference are moved to another exactly,
    so moments of any shards, ranks or runs add up. No `nn.Module`: `.to(bfloat16)` must not reach it.
    """

    def __init__(self, width: int, reference_D: Tensor | None = None, device: torch.device | str = "cpu"):
        """reference_D: r; by default the mean of the first chunk. device: of the sums, which need float64."""
        if width < 1:
            raise ValueError(f"width={width}: states have at least 1 number; give the model's hidden size")
        self.width = width
        double = {"dtype": torch.float64, "device": device}
        self.count = torch.zeros((), **double)  # a weighted merge makes it a fraction
        self.sum_D = torch.zeros(width, **double)
        self.gram_DD = torch.zeros(width, width, **double)
        self.reference_D = torch.zeros(width, **double)
        self.placed = reference_D is not None
        if reference_D is not None:
            self.reference_D.copy_(self._fits(reference_D).float())

    @torch.no_grad()
    def update(self, states: Tensor, counted: Tensor | None = None) -> None:
        """Add states [..., D] in any precision, those where `counted` [...] is True, or all.

        What is not counted is never read: it may hold anything. Raises ValueError, and adds nothing, where a
        counted state is not finite.
        """
        states_ND = self._fits(states).reshape(-1, self.width)
        if counted is not None:
            if counted.shape != states.shape[:-1] or counted.dtype != torch.bool:
                raise ValueError(
                    f"counted must be bool of shape {tuple(states.shape[:-1])}, "
                    f"got {counted.dtype} {tuple(counted.shape)}"
                )
            states_ND = states_ND[counted.reshape(-1)]
        if not len(states_ND):
            return
        if not bool(states_ND.isfinite().all()):
            raise ValueError("a counted state is not finite; mask padding, or read the model in float32")
        if not self.placed:
            # rounded to fp32, so that states of that precision are centred without error
            self.reference_D.copy_(states_ND[:CHUNK].double().mean(0).float())
            self.placed = True
        reference_D = self.reference_D.to(states_ND.device, torch.float32)
        for chunk_ND in states_ND.split(CHUNK):
            centred_ND = chunk_ND.float() - reference_D
            with full_precision(centred_ND), _exact_products():
                gram_DD = centred_ND.T @ centred_ND
            self.gram_DD += gram_DD.to(self.gram_DD)
            self.sum_D += centred_ND.sum(0, dtype=torch.float64).to(self.sum_D)
            self.count += len(chunk_ND)

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of states; neither operand changes."""
        return self._combined(other, 1.0, 1.0)

    def blend(self, other: Moments, weight: float) -> Moments:
        """Moments whose means are (1 - weight) of these and `weight` of the other's, however many each saw.

        E[x] and E[x x^T] are averaged so: the covariance includes the distance between both means. The count
        is that of both together. Both sets can be kept, and any weight be tried later.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"weight={weight} is no share; give a number from 0 (these) to 1 (the other)")
        for share, part, name in ((1 - weight, self, "the first"), (weight, other, "the second")):
            if share and not part.count:
                raise ValueError(
                    f"weight={weight}: {name} set has seen no states; read some, or leave it out"
                )
        total = self.count + other.count.to(self.count)
        return self._combined(
            other,
            float((1 - weight) * total / self.count.clamp(min=1)),
            float(weight * total / other.count.to(total).clamp(min=1)),
        )

    def over_ranks(self) -> Moments:
        """Moments of the states of all ranks, on every rank; all must call it, and may have seen none."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.about(self.reference_D)
        total, reference_D = self.count.clone(), self.reference_D * self.count
        for part in (total, reference_D):
            dist.all_reduce(part)
        joined = self.about(reference_D / total.clamp(min=1))
        for part in (joined.count, joined.sum_D, joined.gram_DD):
            dist.all_reduce(part)
        joined.placed = bool(total > 0)
        return joined

    def about(self, reference_D: Tensor) -> Moments:
        """A copy around another reference: s' = s + n d, G' = G + s d^T + d s^T + n d d^T, d = r - r'."""
        moved = Moments(self.width, device=self.count.device)
        moved.placed = self.placed
        moved.reference_D.copy_(self._fits(reference_D).float())
        shift_D = self.reference_D - moved.reference_D
        cross_DD = torch.outer(self.sum_D, shift_D)
        moved.count.copy_(self.count)
        moved.sum_D.copy_(self.sum_D + self.count * shift_D)
        moved.gram_DD.copy_(self.gram_DD + cross_DD + cross_DD.T + self.count * torch.outer(shift_D, shift_D))
        return moved

    def mean_D(self) -> Tensor:
        """E[x], float64."""
        return self.reference_D + self.sum_D / self._seen()

    def covariance_DD(self) -> Tensor:
        """E[(x - mu)(x - mu)^T], float64, symmetric."""
        shift_D = self.sum_D / self._seen()
        return _symmetric(self.gram_DD / self.count - torch.outer(shift_D, shift_D))

    def second_DD(self) -> Tensor:
        """E[x x^T], float64, symmetric: of states that were not centred."""
        mean_D = self.mean_D()
        return _symmetric(self.covariance_DD() + torch.outer(mean_D, mean_D))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that resuming needs: chunks added after loading give the same sums to the bit."""
        state = {name: getattr(self, name).clone() for name in ("count", "sum_D", "gram_DD", "reference_D")}
        return state | {"placed": torch.tensor(self.placed)}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Moments:
        """Moments as `state_dict` gave them."""
        loaded = cls(len(state["sum_D"]), device=device)
        for name in ("count", "sum_D", "gram_DD", "reference_D"):
            getattr(loaded, name).copy_(state[name])
        loaded.placed = bool(state["placed"])
        return loaded

    def _combined(self, other: Moments, mine: float, theirs: float) -> Moments:
        if other.width != self.width:
            raise ValueError(
                f"moments of width {self.width} and {other.width} do not add up; "
                "read both from the same layer of the same model"
            )
        result = self.about(self.reference_D if self.placed else other.reference_D)
        result.placed = self.placed or other.placed
        added = other.about(result.reference_D)
        for name in ("count", "sum_D", "gram_DD"):
            total = getattr(result, name)
            total.mul_(mine).add_(theirs * getattr(added, name).to(total))
        return result

    def _fits(self, states: Tensor) -> Tensor:
        if states.shape[-1] != self.width:
            raise ValueError(
                f"states of width {states.shape[-1]}, moments of width {self.width}; "
                "give both the hidden size of one model"
            )
        return states

    def _seen(self) -> Tensor:
        if not self.count > 0:
            raise ValueError("no states were seen, so they have no mean; update() with some first")
        return self.count


def without_first(valid_BT: Tensor, positions: int = 1) -> Tensor:
    """`valid_BT` but for the first so many real positions of each row, wherever padding stands.

    The first token draws attention that has nowhere to go (arXiv 2309.17453); its state is so large that it
    would outweigh all others in the moments.
    """
    return valid_BT & (valid_BT.cumsum(-1) > positions)


def _symmetric(matrix_DD: Tensor) -> Tensor:
    return (matrix_DD + matrix_DD.T) / 2


@contextmanager
def _exact_products() -> Iterator[None]:
    """fp32 products of fp32 numbers, whatever shorter formats the process allows elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
