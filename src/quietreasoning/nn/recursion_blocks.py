"""The small network of the recursive reasoner: its layers in two styles, with two ways to mix positions.

Shapes: B rows, P positions that are updated, L context positions, D width, H heads, C = D / H.

paper: the blocks of TRM (arXiv 2510.04871): norm(h + f(h)) without gain, SwiGLU, no bias.
plain: h + f(norm(h)) with gain, GELU of `expansion` widths, biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.nn.trunk import Piece, rotate


class Given(NamedTuple):
    """What stays as it is while a row thinks; every field has one entry a row."""

    x_BPD: Tensor
    valid_BP: Tensor | None  # False at padding; None: every position is real
    rope: Piece | None  # cosines and sines of the P positions, [B, 1, P, C] each
    context: tuple[Piece, ...] = ()  # a layer's keys and values of the context, [B, H, L, C] each
    context_valid_BL: Tensor | None = None

    def rows(self, index_R: Tensor) -> Given:
        """The same for some rows."""

        def pick(part: object) -> object:
            if isinstance(part, Tensor):
                return part[index_R]
            return tuple(map(pick, part)) if isinstance(part, tuple) else part

        return Given(*map(pick, self))


class Attention(nn.Module):
    """Every position reads every real position."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, h_BPD: Tensor, given: Given) -> Tensor:
        q, k, v = self.qkv(h_BPD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if given.rope is not None:
            q, k = rotate(q, *given.rope), rotate(k, *given.rope)
        return self.out(attend(q, k, v, given.valid_BP))


class PositionMLP(nn.Module):
    """Positions mix through a feed-forward net along their axis, alike for every channel; their number is
    fixed. Padding enters as zero."""

    def __init__(self, feed: nn.Module):
        super().__init__()
        self.feed = feed

    def forward(self, h_BPD: Tensor, given: Given) -> Tensor:
        if given.valid_BP is not None:
            h_BPD = h_BPD.masked_fill(~given.valid_BP[..., None], 0.0)
        return self.feed(h_BPD.mT).mT


class ContextAttention(nn.Module):
    """The updated positions read a fixed context, whose keys and values are made once."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.keys_values = nn.Linear(width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def read(self, context_BLD: Tensor, rope: Piece | None) -> Piece:
        keys, values = self.keys_values(context_BLD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (keys if rope is None else rotate(keys, *rope)), values

    def forward(self, h_BPD: Tensor, piece: Piece, given: Given) -> Tensor:
        query = self.query(h_BPD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if given.rope is not None:
            query = rotate(query, *given.rope)
        return self.out(attend(query, *piece, given.context_valid_BL))


class SwiGLU(nn.Module):
    """W (SiLU(G h) * U h) (arXiv 2002.05202), as large as a plain net of `expansion` widths, up to 8."""

    def __init__(self, width: int, expansion: float):
        super().__init__()
        inner = 8 * -(-round(expansion * width * 2 / 3) // 8)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GELU(nn.Module):
    """W2 GELU(W1 h) with biases."""

    def __init__(self, width: int, expansion: float):
        super().__init__()
        self.up = nn.Linear(width, round(expansion * width))
        self.down = nn.Linear(round(expansion * width), width)

    def forward(self, h: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(h)))


class PostNorm(nn.Module):
    """norm(h + f(h)): what comes out has an RMS of one."""

    def __init__(self, width: int, eps: float, inner: nn.Module):
        super().__init__()
        self.norm, self.inner = nn.RMSNorm(width, eps=eps, elementwise_affine=False), inner

    def forward(self, h_BPD: Tensor, *given: object) -> Tensor:
        return self.norm(h_BPD + self.inner(h_BPD, *given))


class PreNorm(nn.Module):
    """h + f(norm(h))."""

    def __init__(self, width: int, eps: float, inner: nn.Module):
        super().__init__()
        self.norm, self.inner = nn.RMSNorm(width, eps=eps), inner

    def forward(self, h_BPD: Tensor, *given: object) -> Tensor:
        return h_BPD + self.inner(self.norm(h_BPD), *given)


class Style(NamedTuple):
    """How a layer is put together."""

    residual: Callable[[int, float, nn.Module], nn.Module]
    feed: Callable[[int, float], nn.Module]
    bias: bool
    gain: bool  # of the norms around y and z


STYLES = {"paper": Style(PostNorm, SwiGLU, False, False), "plain": Style(PreNorm, GELU, True, True)}


class Layer(nn.Module):
    """Mix positions, read the context where there is one to read, feed forward.

    positions: their fixed number where a net mixes them; None for attention.
    """

    def __init__(
        self,
        style: Style,
        width: int,
        heads: int,
        expansion: float,
        eps: float,
        *,
        positions: int | None,
        reads: bool,
    ):
        super().__init__()
        if positions is None:
            mixer: nn.Module = Attention(width, heads, style.bias)
        else:
            mixer = PositionMLP(style.feed(positions, expansion))
        self.mix = style.residual(width, eps, mixer)
        self.read = style.residual(width, eps, ContextAttention(width, heads, style.bias)) if reads else None
        self.feed = style.residual(width, eps, style.feed(width, expansion))

    def forward(self, h_BPD: Tensor, given: Given, context: Piece | None) -> Tensor:
        h_BPD = self.mix(h_BPD, given)
        if context is not None:
            h_BPD = self.read(h_BPD, context, given)
        return self.feed(h_BPD)


class Network(nn.Module):
    """f, the one small network that is evaluated T (n + 1) times."""

    def __init__(self, layers: list[Layer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, h_BPD: Tensor, given: Given) -> Tensor:
        context = given.context or [None] * len(self.layers)
        for layer, piece in zip(self.layers, context, strict=True):
            h_BPD = layer(h_BPD, given, piece)
        return h_BPD


def attend(q_BHPC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, valid_BL: Tensor | None) -> Tensor:
    """[B, P, D]: attention to the real ones of L keys."""
    mask = None if valid_BL is None else valid_BL[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q_BHPC, k_BHLC, v_BHLC, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def turns(at_BP: Tensor, head_dim: int, base: float) -> Piece:
    """Cosines and sines of positions (arXiv 2104.09864), fp32, [B, 1, P, C] each."""
    half = torch.arange(0, head_dim, 2, device=at_BP.device, dtype=torch.float32) / head_dim
    angles_BPC = at_BP[..., None].float() * torch.cat([base**-half] * 2)
    return angles_BPC.cos()[:, None], angles_BPC.sin()[:, None]
