"""What was looked up often is written into the product-key memory: a few rows learn, all else is frozen.

Which rows: those that the new texts read where it matters for what they say, and that other texts seldom
read, as in "Continual Learning via Sparse Memory Finetuning" (arXiv 2510.15103), whose score is reads times
inverse document frequency. Here a read counts by its weight times the length of the loss's gradient there,
so that positions which the answer does not depend on, padding among them, count nothing.

Departures: addresses stay as they were found (no gradient goes through the weights of a read), and other
texts are rehearsed beside the new ones.

Shapes: R rows of a batch, N reads of them all, M slots that one reads, V value width, S slots of the table, U
rows that learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor, nn

from quietreasoning.config import Settings, UserError
from quietreasoning.nn.product_key_memory import ProductKeyTable
from quietreasoning.nn.row_gather import quantise_rows

Loss = Callable[[], Tensor]
"""The mean loss of one batch, computed with the table."""


class ConsolidationSettings(Settings):
    """What is promoted, how it is taught, and what it may cost."""

    min_hits: int = Field(20, ge=1)
    """Hits that make an entry worth promoting."""
    rows_per_entry: int = Field(32, ge=1)
    """Value rows that may change for each promoted entry."""
    steps: int = Field(60, ge=1)
    """Steps of Adam on these rows."""
    rate: float = Field(0.1, gt=0)
    """Step width, in root mean squares of the table's values that are not zero."""
    batch_size: int = Field(64, ge=1)
    """Promoted texts in a step; beside them stands a batch of the run's own training."""
    learned: float = Field(0.25, ge=0, le=1)
    """Share of what was answered wrongly that must surely be answered rightly. What is promoted is mostly
    what is not known, and some of that becomes right by any change, a bad one as well."""
    held_out: int = Field(1000, ge=1)
    """Questions of the run's own validation split that must not suffer."""
    tolerance: float = Field(0.02, ge=0, lt=1)
    """Loss of accuracy on them that the 95 % interval must exclude."""


@dataclass
class Reads:
    """What a pass read: slots and weights [R, T, M] of each call, the read [R, T, V] and its gradient."""

    calls: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of a batch; a text of several chunks counts several times."""
        return max((len(indices) for indices, *_ in self.calls), default=0)

    def mass(self, slots: int) -> Tensor:
        """How much each slot mattered, [S]: weights times lengths of gradients, added up."""
        mass_S = torch.zeros(slots)
        for indices_RTM, weights_RTM, read_RTV in self.calls:
            masses_RTM = weights_RTM * _gradient(read_RTV).norm(dim=-1, keepdim=True)
            mass_S.index_add_(0, indices_RTM.flatten().cpu(), masses_RTM.flatten().float().cpu())
        return mass_S

    def readers(self, slots: int) -> Tensor:
        """In how many rows of the batch each slot was read where it mattered at all, [S]."""
        count_S = torch.zeros(slots)
        for indices_RTM, _, read_RTV in self.calls:
            own_RTM = (
                indices_RTM + slots * torch.arange(len(indices_RTM), device=indices_RTM.device)[:, None, None]
            )
            once = own_RTM[_gradient(read_RTV).any(-1)].unique() % slots
            count_S += torch.bincount(once.cpu(), minlength=slots)
        return count_S


class Overlay(nn.Module):
    """Changes of a few rows of a table, [U, V], which learn while the table stays as it is."""

    def __init__(self, table: ProductKeyTable, rows_U: Tensor):
        super().__init__()
        self.rows_U = rows_U.sort().values
        device = table.keys.device
        self.change_UV = nn.Parameter(torch.zeros(len(rows_U), table.value_dim, device=device))

    def forward(self, indices_NM: Tensor, weights_NM: Tensor) -> Tensor:
        """What the changes add to reads, [N, V]."""
        rows_U = self.rows_U.to(indices_NM.device)
        at_NM = torch.searchsorted(rows_U, indices_NM).clamp(max=len(rows_U) - 1)
        weights_NM = (weights_NM * (rows_U[at_NM] == indices_NM)).to(self.change_UV.dtype)
        return nn.functional.embedding_bag(at_NM, self.change_UV, per_sample_weights=weights_NM, mode="sum")


@contextmanager
def reading(table: ProductKeyTable, overlay: Overlay | None = None) -> Iterator[Reads]:
    """Inside, reads of the table are noted down, with their gradients, and an overlay is added to them."""
    reads = Reads()

    def gather(indices_RTHK: Tensor, weights_RTHK: Tensor) -> Tensor:
        weights_RTHK = weights_RTHK.detach()
        with torch.no_grad():
            read_RTV = ProductKeyTable.gather(table, indices_RTHK, weights_RTHK)
        if overlay is None:
            read_RTV.requires_grad_()
            reads.calls.append((indices_RTHK.flatten(2), weights_RTHK.flatten(2), read_RTV))
            return read_RTV
        change_NV = overlay(indices_RTHK.flatten(0, 1).flatten(1), weights_RTHK.flatten(0, 1).flatten(1))
        return read_RTV + change_NV.to(read_RTV.dtype).view_as(read_RTV)

    table.gather = gather  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        del table.gather


def choose_rows(table: ProductKeyTable, new: Sequence[Loss], others: Sequence[Loss], most: int) -> Tensor:
    """The rows that shall learn, at most so many, rising.

    new: batches of the texts to learn. others: batches of what the model shall go on knowing. UserError where
    no text to learn reads the table.
    """
    mass_S = torch.zeros(table.slots)
    for loss in new:
        with reading(table) as reads:
            loss().backward()
        mass_S += reads.mass(table.slots)
    if not mass_S.any():
        raise UserError("no promoted text reads the product-key memory; is the feature pkm on in this run?")
    readers_S, texts = torch.zeros(table.slots), 0
    for loss in others:
        with reading(table) as reads:
            loss().backward()
        readers_S += reads.readers(table.slots)
        texts += reads.rows
    score_S = mass_S * ((texts + 1) / (readers_S + 1)).log()
    most = min(most, int((score_S > 0).sum()))
    return score_S.topk(most).indices.sort().values


def teach(
    table: ProductKeyTable,
    rows_U: Tensor,
    new: Sequence[Loss],
    others: Sequence[Loss],
    settings: ConsolidationSettings,
) -> Overlay:
    """Changes of these rows under which the new texts are likelier and the others no less, by Adam (arXiv
    1412.6980). Each step takes a batch of both, in turns."""
    overlay = Overlay(table, rows_U)
    optimizer = torch.optim.Adam(overlay.parameters(), lr=settings.rate * scale_of_values(table))
    with reading(table, overlay):
        for step in range(settings.steps):
            optimizer.zero_grad()
            for losses in (new, others):
                losses[step % len(losses)]().backward()
            optimizer.step()
    if not overlay.change_UV.isfinite().all():
        raise UserError("the changes of the value rows are not finite; lower rate. Nothing was written")
    return overlay


@torch.no_grad()
def apply(table: ProductKeyTable, overlay: Overlay) -> None:
    """Take the changes into the table itself, in memory; other rows keep their bytes."""
    rows_U, change_UV = overlay.rows_U.to(table.keys.device), overlay.change_UV
    if not table.is_int8:
        table.values[rows_U] += change_UV.to(table.values.dtype)
        return
    old_UV = table.values_int8[rows_U].float() * table.scale[rows_U]
    table.values_int8[rows_U], table.scale[rows_U] = quantise_rows(old_UV + change_UV)


@torch.no_grad()
def scale_of_values(table: ProductKeyTable) -> float:
    """Root mean square of the values in rows that are not zero; 1 in a table of zeros."""
    squares, numbers = 0.0, 0
    for first in range(0, table.slots, 1 << 16):
        part = slice(first, first + (1 << 16))
        if table.is_int8:
            values_SV = table.values_int8[part].float() * table.scale[part]
        else:
            values_SV = table.values[part].float()
        used_S = values_SV.any(1)
        squares += float(values_SV.square().sum())
        numbers += int(used_S.sum()) * table.value_dim
    return (squares / numbers) ** 0.5 if numbers else 1.0


def _gradient(read_RTV: Tensor) -> Tensor:
    return torch.zeros_like(read_RTV) if read_RTV.grad is None else read_RTV.grad
