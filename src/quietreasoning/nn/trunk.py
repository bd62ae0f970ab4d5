"""A Llama-shaped block that reads a sequence chunk by chunk: earlier keys and values are handed in as pieces.

Shapes: R rows, T new positions, S old plus new positions, D width, H heads, G key/value heads, C head width,
Q = R x chunks, N tokens of a chunk: where a choice or slots hold for a chunk, chunks are rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.nn.adapters import AdapterBank, AdapterFusion, Choice, Held, IA3Bank

Piece = tuple[Tensor, Tensor]  # keys and values of one chunk, [R, G, T, C] each


class HeldChoice(NamedTuple):
    """A choice that stays for a while, worked out for every projection of a block."""

    qkv: Held
    out: Held
    gate_up: Held
    down: Held


class BlockAdapters(nn.Module):
    """LoRA banks on the four projections of a block and IA3 on keys, values and the feed-forward width.

    The projections q, k, v share one down-projection, and so do gate and up: they read the same input.
    """

    def __init__(self, block: Block, adapters: int, rank: int, alpha: float, *, ia3: bool, fusion: bool):
        super().__init__()

        def bank(linear: nn.Linear) -> AdapterBank:
            return AdapterBank(linear.in_features, linear.out_features, adapters, rank, alpha)

        self.qkv, self.out = bank(block.qkv), bank(block.out)
        self.gate_up, self.down = bank(block.gate_up), bank(block.down)
        self.keys = IA3Bank(block.kv_heads * block.head_dim, adapters) if ia3 else None
        self.values = IA3Bank(block.kv_heads * block.head_dim, adapters) if ia3 else None
        self.hidden = IA3Bank(block.down.in_features, adapters) if ia3 else None
        self.fusion = AdapterFusion(block.down.in_features, block.down.out_features, 64) if fusion else None

    def hold(self, choice: Choice) -> HeldChoice | None:
        """For tokens that come one by one. A fusion weighs every token anew: None."""
        if self.fusion is not None:
            return None
        inner = outer = None
        if self.keys is not None:
            kv_R1W = torch.cat([self.keys(choice), self.values(choice)], -1)
            inner = F.pad(kv_R1W, (self.qkv.out_features - kv_R1W.shape[-1], 0), value=1.0)
            outer = F.pad(self.hidden(choice), (self.down.in_features, 0), value=1.0)
        pairs = (self.qkv, inner), (self.out, None), (self.gate_up, outer), (self.down, None)
        return HeldChoice(*(bank.hold(choice, scale) for bank, scale in pairs))


class Block(nn.Module):
    """Pre-norm attention and SwiGLU (arXiv 1910.07467, 2104.09864, 2002.05202), no dropout.

    q, k, v are one matrix, and so are gate and up: fewer, larger products.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        mlp: int,
        *,
        eps: float = 1e-6,
        bias: bool = False,
        out_bias: bool = False,
        qk_norm: bool = False,
        rotary: bool = True,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.rotary = heads, kv_heads, head_dim, rotary
        self.attention_norm = nn.RMSNorm(width, eps=eps)
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, width, bias=out_bias)
        self.query_norm = nn.RMSNorm(head_dim, eps=eps) if qk_norm else None
        self.key_norm = nn.RMSNorm(head_dim, eps=eps) if qk_norm else None
        self.mlp_norm = nn.RMSNorm(width, eps=eps)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)
        self.adapters: BlockAdapters | None = None

    def add_adapters(self, adapters: int, rank: int, alpha: float, *, ia3: bool, fusion: bool) -> None:
        self.adapters = BlockAdapters(self, adapters, rank, alpha, ia3=ia3, fusion=fusion)

    def forward(
        self,
        x_RTD: Tensor,
        rope: Piece,
        past: tuple[Piece, ...],
        mask_R1TS: Tensor | None,
        choice: Choice | HeldChoice | None = None,
        whole: bool = False,
    ) -> tuple[Tensor, Piece]:
        """The stream after this block, and the new keys and values (with `whole`: the old ones before them).

        rope: cosines and sines [R, 1, T, C]. mask: True where a key may be seen; None is causal
        without past. choice: which adapters each row uses, or each of a row's equally long chunks; None uses
        none and costs nothing.
        """
        attended, new, joined = self.attend(self.attention_norm(x_RTD), rope, past, mask_R1TS, choice)
        x_RTD = x_RTD + attended
        return x_RTD + self.feed_forward(self.mlp_norm(x_RTD), choice), joined if whole else new

    def attend(
        self,
        x_RTD: Tensor,
        rope: Piece,
        past: tuple[Piece, ...],
        mask: Tensor | None,
        choice: Choice | HeldChoice | None,
    ) -> tuple[Tensor, Piece, Piece]:
        rows, new = x_RTD.shape[:2]
        x_QND = by_chunk(x_RTD, choice)
        qkv = self.project("qkv", x_QND, choice)
        kv_width = self.kv_heads * self.head_dim
        q, k, v = qkv.split([self.heads * self.head_dim, kv_width, kv_width], dim=-1)
        own = self.adapters if isinstance(choice, Choice) else None
        if own is not None and own.keys is not None:
            k, v = k * own.keys(choice).to(k.dtype), v * own.values(choice).to(v.dtype)
        q = q.reshape(rows, new, self.heads, self.head_dim).transpose(1, 2)
        k = k.reshape(rows, new, self.kv_heads, self.head_dim).transpose(1, 2)
        v = v.reshape(rows, new, self.kv_heads, self.head_dim).transpose(1, 2)
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary:
            q, k = rotate(q, *rope), rotate(k, *rope)
        k = k.to(v.dtype)
        keys = torch.cat([*(piece[0] for piece in past), k], 2) if past else k
        values = torch.cat([*(piece[1] for piece in past), v], 2) if past else v
        mixed = F.scaled_dot_product_attention(
            q.to(v.dtype),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and new > 1,
            enable_gqa=self.heads != self.kv_heads,
        )
        mixed = mixed.transpose(1, 2).reshape(*x_QND.shape[:2], -1)
        out = self.project("out", mixed, choice)
        return out.view(rows, new, -1), (k, v), (keys, values)

    def feed_forward(self, x_RTD: Tensor, choice: Choice | HeldChoice | None) -> Tensor:
        gate, up = self.project("gate_up", by_chunk(x_RTD, choice), choice).chunk(2, dim=-1)
        hidden = F.silu(gate) * up
        own = self.adapters if isinstance(choice, Choice) else None
        if own is not None and own.hidden is not None:
            hidden = hidden * own.hidden(choice).to(hidden.dtype)
        fusion = None if own is None else own.fusion
        return self.project("down", hidden, choice, fusion).view_as(x_RTD)

    def project(
        self, name: str, x: Tensor, choice: Choice | HeldChoice | None, fusion: AdapterFusion | None = None
    ) -> Tensor:
        """A linear layer of this block with what adapters add to it."""
        linear = getattr(self, name)
        if choice is None:
            return linear(x)
        if isinstance(choice, HeldChoice):
            return getattr(choice, name)(x, linear)
        return getattr(self.adapters, name)(x, choice, fusion, linear)


class SlotReader(nn.Module):
    """Gated cross-attention from tokens to slots: x + tanh(alpha) Attn(RMSNorm x, slots), alpha = 0 at first.

    The gate of Flamingo (arXiv 2204.14198, section 2.2). Only the gate starts at zero: were the output
    projection zero as well, neither would ever learn.
    """

    def __init__(self, width: int, slot_width: int, heads: int, eps: float = 1e-6):
        super().__init__()
        self.heads = heads
        self.norm, self.slot_norm = nn.RMSNorm(width, eps=eps), nn.RMSNorm(slot_width, eps=eps)
        self.query = nn.Linear(width, slot_width, bias=False)
        self.keys_values = nn.Linear(slot_width, 2 * slot_width, bias=False)
        self.out = nn.Linear(slot_width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))  # sharding wants no scalars

    def read(self, slots_RKD: Tensor) -> Piece:
        """Keys and values of the slots [R, heads, K, C]: once for all tokens of a chunk."""
        pair = self.keys_values(self.slot_norm(slots_RKD))
        keys, values = pair.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(self, x_RTD: Tensor, slots: Piece) -> Tensor:
        """slots: of each row, or of each of a row's equally long chunks."""
        query = (
            self.query(self.norm(x_RTD)).reshape(len(slots[0]), -1, *slots[0].shape[1:4:2]).transpose(1, 2)
        )
        mixed = F.scaled_dot_product_attention(query, slots[0].to(query.dtype), slots[1].to(query.dtype))
        mixed_RTD = mixed.transpose(1, 2).reshape(*x_RTD.shape[:2], -1)
        gate = torch.tanh(self.gate)
        if mixed_RTD.numel() < self.out.weight.numel():
            return x_RTD + gate * self.out(mixed_RTD)
        return x_RTD + F.linear(mixed_RTD, gate * self.out.weight)  # touches less than the stream


def by_chunk(x_RTD: Tensor, choice: Choice | HeldChoice | None) -> Tensor:
    """The same tokens [Q, N, D], a row for each choice."""
    rows = len(choice.indices_RK) if isinstance(choice, Choice) else len(x_RTD)
    return x_RTD if rows == len(x_RTD) else x_RTD.reshape(rows, -1, x_RTD.shape[-1])


def rotate(x_RHTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) in the half-split layout; cos and sin [R, 1, T, C], fp32."""
    first, second = x_RHTC.chunk(2, dim=-1)
    turned = x_RHTC * cos + torch.cat([-second, first], dim=-1) * sin
    return turned.to(x_RHTC.dtype)
