"""Product-key memory: a table of n x n value rows that a token addresses by two short lists of sub-keys.

Large Memory Layers with Product Keys (arXiv 1907.05242), one table for all layers as in Memory Layers at
Scale (arXiv 2412.09764). `ProductKeyTable` holds keys and values, `ProductKeyReader` is what each layer
has of its own.

Shapes: R rows, T tokens, D stream width, H heads, Q query width of a head, n sub-keys of a half,
K slots read by a head, V value width, S = n * n slots, N = R * T.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quietreasoning.nn.row_gather import full_precision, quantise_rows, weighted_int8_rows, weighted_rows
from quietreasoning.nn.whitening import Whitening


class ProductKeyTable(nn.Module):
    """Sub-keys of every head and one table of values for all heads; shared by one to three readers.

    Sub-keys count at unit length: of random ones the longest would win most queries. Values start at zero, so
    that a fresh memory is silent, and what it holds later was written there, with no noise beneath it.
    `rowwise` names the parameters that want a row-wise optimizer. `sparse_grad` may be switched off where
    sparse gradients cannot travel; the gradient is then the same, dense. int8: built in its serving form.
    """

    rowwise = ("values",)

    def __init__(
        self,
        slots: int,
        value_dim: int,
        heads: int,
        key_dim: int,
        topk: int,
        sparse_grad: bool = True,
        int8: bool = False,
    ):
        super().__init__()
        self.side = side_of(slots)
        if key_dim % 2:
            raise ValueError(f"key_dim={key_dim} must be even: each half of a query has its own keys")
        if not 1 <= topk <= self.side:
            raise ValueError(f"topk={topk} must lie between 1 and the {self.side} sub-keys of {slots} slots")
        self.slots, self.value_dim, self.topk, self.sparse_grad = slots, value_dim, topk, sparse_grad
        self.keys = nn.Parameter(torch.empty(heads, 2, self.side, key_dim // 2))
        self.values = None if int8 else nn.Parameter(torch.empty(slots, value_dim))
        self.register_buffer("values_int8", torch.zeros(slots, value_dim, dtype=torch.int8) if int8 else None)
        self.register_buffer("scale", torch.zeros(slots, 1) if int8 else None)
        self.register_buffer("hits", torch.zeros(heads, 2, self.side, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Keys of length about 1; a score (query of RMS 1 times unit key) has deviation 1 a half."""
        nn.init.normal_(self.keys, std=self.keys.shape[-1] ** -0.5)
        if self.values is not None:
            nn.init.zeros_(self.values)
        nn.init.zeros_(self.hits)

    @property
    def is_int8(self) -> bool:
        return self.values is None

    def select(self, query_RTHQ: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
        """The K best of all n * n slots for each head, best first, and softmax(score / temperature) over
        them: (indices, weights), both [R, T, H, K]. In fp32, whatever autocast says.

        A slot's score is the sum of its two sub-keys' scores, so that the best K slots lie among the K x K
        pairs of the best K of each half, and there among those that fewer than K others must beat.
        """
        with full_precision(query_RTHQ):
            halves = query_RTHQ.float().unflatten(-1, (2, -1))
            keys_HCnd = nn.functional.normalize(self.keys.float(), dim=-1)
            scores_RTHCn = torch.einsum("rthcd,hcnd->rthcn", halves, keys_HCnd)
        best_RTHCK, at_RTHCK = scores_RTHCn.topk(self.topk)
        first_P, second_P = pairs(self.topk, scores_RTHCn.device)
        sums_RTHP = best_RTHCK[..., 0, :].index_select(-1, first_P)
        sums_RTHP = sums_RTHP + best_RTHCK[..., 1, :].index_select(-1, second_P)
        top_RTHK, chosen_RTHK = sums_RTHP.topk(self.topk)
        rows_RTHK = at_RTHCK[..., 0, :].gather(-1, first_P[chosen_RTHK])
        columns_RTHK = at_RTHCK[..., 1, :].gather(-1, second_P[chosen_RTHK])
        return rows_RTHK * self.side + columns_RTHK, (top_RTHK / temperature).softmax(-1)

    def gather(self, indices_RTHK: Tensor, weights_RTHK: Tensor) -> Tensor:
        """The weighted sum of the rows of all heads, [R, T, V]."""
        rows, tokens = indices_RTHK.shape[:2]
        indices_NK, weights_NK = (t.reshape(rows * tokens, -1) for t in (indices_RTHK, weights_RTHK))
        if self.is_int8:
            read_NV = weighted_int8_rows(self.values_int8, self.scale, indices_NK, weights_NK)
        else:
            read_NV = weighted_rows(self.values, indices_NK, weights_NK, sparse=self.sparse_grad)
        return read_NV.view(rows, tokens, self.value_dim)

    def quantize_(self) -> None:
        """Turn the values into int8 rows with one scale each, for serving; they train no more."""
        if not self.is_int8:
            self.values_int8, self.scale = quantise_rows(self.values)
            self.values = None

    @torch.no_grad()
    def count(self, indices_RTHK: Tensor, valid_RT: Tensor | None = None) -> None:
        """Add what was read to `hits`; nothing outside training.

        Over ranks the counts are added, so that all hold the same: every rank must call it equally often.
        Call it where a forward runs once: recomputed activations would count twice.
        """
        if not self.training:
            return
        heads = indices_RTHK.shape[2]
        one_RTHK = torch.ones_like(indices_RTHK)
        if valid_RT is not None:
            one_RTHK = one_RTHK * valid_RT[..., None, None]
        one_HM = one_RTHK.permute(2, 0, 1, 3).reshape(heads, -1)
        at_HM = indices_RTHK.permute(2, 0, 1, 3).reshape(heads, -1)
        new_HCn = torch.zeros_like(self.hits)
        new_HCn[:, 0].scatter_add_(1, at_HM.div(self.side, rounding_mode="floor"), one_HM)
        new_HCn[:, 1].scatter_add_(1, at_HM % self.side, one_HM)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(new_HCn)
        self.hits += new_HCn

    @torch.no_grad()
    def reseed(self, seed: int, noise: float = 0.1) -> int:
        """Put sub-keys without a hit beside ones that have hits, drawn by their hits, and start counting
        anew. `noise` is relative to the key. Returns how many were moved; over ranks, all must call it.

        A half in which nothing was ever hit stays as it is. The same seed and hits give the same keys.
        """
        draw = torch.Generator().manual_seed(seed)
        keys_HCnd, hits_HCn = _whole(self.keys).detach().cpu().clone(), self.hits.cpu()
        moved = 0
        for keys_nd, hits_n in zip(keys_HCnd.flatten(0, 1), hits_HCn.flatten(0, 1), strict=True):
            dead = (hits_n == 0).nonzero().flatten()
            if 0 < len(dead) < self.side:
                by_hits = hits_n.double()
                chosen = by_hits.multinomial(len(dead), replacement=True, generator=draw)
                drawn = torch.randn(len(dead), keys_nd.shape[1], generator=draw).to(keys_nd)
                rms = keys_nd[chosen].float().pow(2).mean(1, keepdim=True).sqrt().to(keys_nd)
                keys_nd[dead] = keys_nd[chosen] + noise * rms * drawn
                moved += len(dead)
        if moved:
            self.keys.copy_(_placed_like(keys_HCnd, self.keys))
        self.hits.zero_()
        return moved

    def extra_repr(self) -> str:
        heads, _, side, half = self.keys.shape
        values = f"{self.value_dim} {'int8' if self.is_int8 else 'float'} values"
        return f"{side} x {side} slots of {values}, {heads} heads of 2 x {half}, top {self.topk}"


class Read(NamedTuple):
    """What a reader adds to the stream, and which slots it read at which weight, asking what."""

    out_RTD: Tensor
    indices_RTHK: Tensor
    weights_RTHK: Tensor
    query_RTHQ: Tensor  # before whitening, no gradient


class ProductKeyReader(nn.Module):
    """One layer's way to the table: W_o read(RMSNorm(whiten(W_q x))), x = RMSNorm(stream).

    The read has no gate (2412.09764 has one): a gate that depends on how a fact is worded lets less of what
    one wording wrote through to another. It has no norm either: how sure a slot is stands in its length.
    """

    def __init__(self, width: int, heads: int, key_dim: int, value_dim: int, *, eps: float = 1e-6):
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width, eps=eps)
        self.query = nn.Linear(width, heads * key_dim, bias=False)
        self.whiten = Whitening(heads, key_dim)
        self.query_norm = nn.RMSNorm(key_dim, eps=eps)
        self.out = nn.Linear(value_dim, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for norm in (self.norm, self.query_norm):
            nn.init.ones_(norm.weight)
        nn.init.normal_(self.query.weight, std=self.query.in_features**-0.5)
        nn.init.normal_(self.out.weight, std=0.5 * self.out.in_features**-0.5)

    def forward(
        self,
        x_RTD: Tensor,
        table: ProductKeyTable,
        temperature: Tensor | float = 1.0,
        valid_RT: Tensor | None = None,
    ) -> Read:
        """x: the stream. temperature: a number, or [R or 1, 1, 1, 1]. Tokens that are not valid read zero.

        The caller adds `out_RTD` to the stream, and in training shows `table.count` and `whiten.observe` what
        was read and asked.
        """
        query_RTHQ = self.query(self.norm(x_RTD)).unflatten(-1, (self.heads, -1)).float()
        with full_precision(query_RTHQ):
            white_RTHQ = self.query_norm(self.whiten(query_RTHQ))
        indices_RTHK, weights_RTHK = table.select(white_RTHQ, temperature)
        out_RTD = self.out(table.gather(indices_RTHK, weights_RTHK).to(x_RTD.dtype))
        if valid_RT is not None:
            out_RTD = out_RTD.masked_fill(~valid_RT[..., None], 0.0)
        return Read(out_RTD, indices_RTHK, weights_RTHK, query_RTHQ.detach())


class Usage(NamedTuple):
    """How evenly a set of reads uses the slots. As many reads as slots are needed to see all of them."""

    share: Tensor  # distinct slots read / slots
    entropy: Tensor  # of the reads over slots, in nats
    kl: Tensor  # KL(reads || uniform) = ln(slots) - entropy


@torch.no_grad()
def usage(indices_RTHK: Tensor, slots: int, valid_RT: Tensor | None = None) -> Usage:
    """Usage of the slots by these reads; tokens that are not valid do not count.

    Sorts the reads and never holds a vector as long as the table; no shape depends on the data.
    """
    read = torch.ones_like(indices_RTHK)
    if valid_RT is not None:
        read = read * valid_RT[..., None, None]
    sorted_M, order_M = indices_RTHK.flatten().sort()
    read_M = read.flatten()[order_M]
    new_M = torch.ones_like(sorted_M)
    new_M[1:] = sorted_M[1:] != sorted_M[:-1]
    counts_M = torch.zeros_like(sorted_M).scatter_add_(0, new_M.cumsum(0) - 1, read_M).float()
    share_M = counts_M / counts_M.sum().clamp(min=1.0)
    entropy = -torch.special.xlogy(share_M, share_M).sum()
    return Usage((counts_M > 0).sum() / slots, entropy, math.log(slots) - entropy)


@torch.no_grad()
def relative_rms(
    read_RTD: Tensor, stream_RTD: Tensor, valid_RT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """RMS of what is added over RMS of the stream it is added to: (sum over tokens, tokens)."""
    rms = [t.float().pow(2).mean(-1).sqrt() for t in (read_RTD, stream_RTD)]
    ratio_RT = rms[0] / rms[1].clamp(min=1e-12)
    if valid_RT is None:
        return ratio_RT.sum(), torch.tensor(ratio_RT.numel(), device=ratio_RT.device)
    return (ratio_RT * valid_RT).sum(), valid_RT.sum()


def side_of(slots: int) -> int:
    """n where slots = n * n; ValueError with the nearest squares otherwise."""
    side = math.isqrt(max(slots, 0))
    if slots < 1 or side * side != slots:
        near = f"{side**2} or {(side + 1) ** 2}" if side else "1"
        raise ValueError(f"slots={slots} is no perfect square, as n x n addresses need; nearest: {near}")
    return side


def pairs(topk: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pairs (a, b) of places in two falling lists whose sum can be among the `topk` largest of all
    sums: those with (a + 1) * (b + 1) <= topk, since all pairs before both places are as large."""
    kept = [(a, b) for a in range(topk) for b in range(topk // (a + 1))]
    first, second = zip(*kept, strict=True)
    return torch.tensor(first, device=device), torch.tensor(second, device=device)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if _is_shard(tensor) else tensor


def _placed_like(full: Tensor, like: Tensor) -> Tensor:
    full = full.to(like.device)
    if not _is_shard(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements)


def _is_shard(tensor: Tensor) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor  # slow to import, and one process never shards

    return isinstance(tensor, DTensor)
