"""The scan of a Mamba-2 layer in chunks of matrix products (SSD, arXiv 2405.21060, sections 6 and 7).

    h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T        y_t = h_t c_t

Shapes: R rows, T tokens, C chunks of Q tokens, H heads, P channels of a head, N state size. Inside a chunk,
with cum_q the sum of dt a up to q and u = dt x,

    y_q = sum_{k <= q} (c_q . b_k) exp(cum_q - cum_k) u_k + exp(cum_q) h_0 c_q
    h_1 = exp(cum_Q) h_0 + sum_k exp(cum_Q - cum_k) u_k b_k^T

The decays are fp32 or wider whatever the products are in. Every exponent is at most 0: nothing overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# exp(-20) is below what fp32 resolves beside 1; a bounded sum of exponents keeps its small terms exact
FASTEST_DECAY = -20.0
FORGOTTEN = -60.0  # nothing is left of a state; without this bound denormals slow a CPU down
CACHE_ELEMENTS = 1 << 18  # a CPU walks over blocks of about this many elements: what lies between stays small


def ssd(
    x_RTHP: Tensor,
    dt_RTH: Tensor,
    a_H: Tensor,
    b_RTN: Tensor,
    c_RTN: Tensor,
    *,
    chunk: int,
    h_RHPN: Tensor | None = None,
    kernel: Callable[..., Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs y [R, T, H, P] and the state [R, H, P, N] after the last token; both fp32 or wider.

    dt >= 0 (0: the token neither decays nor feeds the state), a < 0, b and c are shared by the heads,
    h: the state before the first token, zero if not given. Shapes depend on the arguments' shapes alone.
    kernel: `mamba_chunk_scan_combined` of mamba_ssm, called in the place of this file on CUDA.
    """
    rows, tokens, heads, channels = x_RTHP.shape
    if chunk < 1 or tokens < 1:
        raise ValueError(f"chunk={chunk} and tokens={tokens} must be at least 1")
    exact = torch.promote_types(dt_RTH.dtype, torch.float32)
    if h_RHPN is None:
        h_RHPN = torch.zeros(rows, heads, channels, b_RTN.shape[-1], dtype=exact, device=x_RTHP.device)
    h_RHPN, dt_RTH, a_H = h_RHPN.to(exact), dt_RTH.to(exact), a_H.to(exact)
    if tokens == 1:
        y_RHP, h_RHPN = step(x_RTHP[:, 0], dt_RTH[:, 0], a_H, b_RTN[:, 0], c_RTN[:, 0], h_RHPN)
        return y_RHP[:, None], h_RHPN
    kind = x_RTHP.device.type
    work = torch.promote_types(x_RTHP.dtype, b_RTN.dtype)
    if work == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        work = torch.get_autocast_dtype(kind)
    if kernel is not None and x_RTHP.is_cuda:
        x_RTHP, b_RTGN, c_RTGN = x_RTHP.to(work), b_RTN.to(work)[:, :, None], c_RTN.to(work)[:, :, None]
        y_RTHP, h_RHPN = kernel(
            x_RTHP, dt_RTH, a_H, b_RTGN, c_RTGN, chunk, initial_states=h_RHPN, return_final_states=True
        )
        return y_RTHP.to(exact), h_RHPN.to(exact)
    size = min(chunk, tokens)
    missing = -tokens % size  # padding has dt = 0
    padded = ((x_RTHP, 4), (dt_RTH, 2), (b_RTN, 2), (c_RTN, 2))
    x, dt, b, c = (
        (F.pad(part, (0,) * last + (0, missing)) if missing else part).unflatten(1, (-1, size))
        for part, last in padded
    )
    cum = (dt * a_H).clamp(min=FASTEST_DECAY).cumsum(2)
    y, h_RNHP = _Scan.apply(x, dt, cum, b.to(work), c.to(work), h_RHPN.permute(0, 3, 1, 2), work)
    return y.flatten(1, 2)[:, :tokens], h_RNHP.permute(0, 2, 3, 1)


def step(
    x_RHP: Tensor, dt_RH: Tensor, a_H: Tensor, b_RN: Tensor, c_RN: Tensor, h_RHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence: y [R, H, P] and the next state."""
    decay_RH = (dt_RH * a_H).clamp(min=FASTEST_DECAY).exp()
    u_RHP = dt_RH[..., None] * x_RHP
    h_RHPN = torch.addcmul(u_RHP[..., None] * b_RN[:, None, None], h_RHPN, decay_RH[..., None, None])
    return (h_RHPN * c_RN[:, None, None]).sum(-1), h_RHPN


class _Scan(torch.autograd.Function):
    """The chunks of one call, a block of chunks at a time.

    By hand, because what lies between is larger than inputs and outputs and is cheap to compute again: only
    the inputs and the state before each chunk are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, cum: Tensor, b: Tensor, c: Tensor, h: Tensor, work: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """x [R, C, Q, H, P], dt and cum [R, C, Q, H], b and c [R, C, Q, N], h [R, N, H, P] -> y like x, h."""
        y, starts = torch.empty(x.shape, dtype=cum.dtype, device=x.device), []
        for block in _blocks(x):
            part = _Part(x[:, block], dt[:, block], cum[:, block], b[:, block], c[:, block], work)
            fed = part.fold(torch.bmm(part.b.mT, part.wide(part.x * (part.dt * part.tail))))
            start, h = _recur(fed, part.last, h)
            off = part.fold(torch.bmm(part.c, part.wide(start)))
            inside = part.inside(torch.bmm(part.mixed, part.u_heads))
            y[:, block] = torch.addcmul(inside, off, part.head)
            starts += [start] * any(ctx.needs_input_grad)
        ctx.work = work
        ctx.save_for_backward(x, dt, cum, b, c, *starts)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, gh: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, cum, b, c, *starts = ctx.saved_tensors
        grads = [torch.empty_like(part) for part in (x, dt, cum, b, c)]
        for block, start in zip(reversed(list(_blocks(x))), reversed(starts), strict=True):
            part = _Part(x[:, block], dt[:, block], cum[:, block], b[:, block], c[:, block], ctx.work)
            *found, gh = part.backward(gy[:, block], gh, start)
            for grad, value in zip(grads, found, strict=True):
                grad[:, block] = value
        return *grads, gh, None


def _blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the chunks: all at once, but on a CPU as many as its cache holds."""
    rows, chunks, *inner = x.shape
    many = chunks
    if x.device.type == "cpu":
        many = max(1, CACHE_ELEMENTS // (rows * math.prod(inner)))
    return (slice(i, min(i + many, chunks)) for i in range(0, chunks, many))


def _recur(fed: Tensor, decay: Tensor, state: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """state <- decay_j state + fed_j over the chunks j; the states before each of them, and the last."""
    states = []
    for part, last in list(zip(fed.unbind(1), decay.unbind(1), strict=True))[:: -1 if backwards else 1]:
        states.append(state)
        state = torch.addcmul(part, state, last)
    states = states[::-1] if backwards else states
    return torch.stack(states, 1) if len(states) > 1 else states[0][:, None], state


class _Part:
    """Some chunks of a scan: what both passes need. Batches: rows x chunks, or rows x chunks x heads."""

    def __init__(self, x: Tensor, dt: Tensor, cum: Tensor, b: Tensor, c: Tensor, work: torch.dtype):
        self.work, self.x, self.dt = work, x, dt[..., None]
        self.b, self.c = b.flatten(0, 1), c.flatten(0, 1)
        # decays from before the chunk to q, from k to the chunk's end, and over the chunk [R, C, 1, H, 1]
        self.head = cum.clamp(min=FORGOTTEN).exp_()[..., None]
        self.tail = (cum[:, :, -1:] - cum).clamp_(min=FORGOTTEN).exp_()[..., None]
        self.last = self.head[:, :, -1:]
        self.u_heads = self.by_head(x * self.dt)
        cum = cum.transpose(2, 3).contiguous()
        gap = cum[..., :, None] - cum[..., None, :]
        self.decay = gap.clamp_(FORGOTTEN, 0.0).exp_()  # from k to q, [R, C, H, Q, Q]
        # c_q . b_k, 0 for the future
        self.scores = torch.bmm(self.c, self.b.mT).tril_().unflatten(0, x.shape[:2])[:, :, None]
        self.mixed = (self.decay * self.scores).flatten(0, 2).to(work)

    def by_head(self, part: Tensor) -> Tensor:
        """[R, C, Q, H, P] -> [R C H, Q, P]."""
        return part.to(self.work).transpose(2, 3).contiguous().flatten(0, 2)

    def inside(self, part: Tensor) -> Tensor:
        """[R C H, Q, P] -> [R, C, Q, H, P]."""
        rows, chunks, _, heads, _ = self.x.shape
        return part.unflatten(0, (rows, chunks, heads)).transpose(2, 3)

    def wide(self, part: Tensor) -> Tensor:
        """[R, C, ., H, P] -> [R C, ., H P]: all heads in one product."""
        return part.to(self.work).flatten(3, 4).flatten(0, 1)

    def fold(self, part: Tensor) -> Tensor:
        """[R C, ., H P] -> [R, C, ., H, P]."""
        return part.unflatten(2, self.x.shape[3:]).unflatten(0, self.x.shape[:2])

    def backward(self, gy: Tensor, gh: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, dt, cum, b, c and of the state before the first chunk."""
        from_state = gy * self.head
        from_state_wide, start_wide = self.wide(from_state), self.wide(start)
        read = self.fold(torch.bmm(self.c.mT, from_state_wide))
        after, gh = _recur(read, self.last, gh, backwards=True)  # gradient of the state after each chunk
        after_wide, gy_heads = self.wide(after), self.by_head(gy)

        gmixed = self.decay * torch.bmm(gy_heads, self.u_heads.mT).view(self.decay.shape)
        gscores = gmixed.sum(2).flatten(0, 1).tril_().to(self.work)
        ggap = gmixed.mul_(self.scores)
        gfed = self.fold(torch.bmm(self.b, after_wide)) * self.tail
        gtail = (gfed * self.x).sum(4) * self.dt[..., 0]
        gcum = (ggap.sum(4) - ggap.sum(3)).transpose(2, 3) - gtail
        gcum += (from_state * self.fold(torch.bmm(self.c, start_wide))).sum(4)
        gcum[:, :, -1] += gtail.sum(2) + (after * start).sum((2, 4)) * self.last[:, :, 0, :, 0]

        gu = gfed.add_(self.inside(torch.bmm(self.mixed.mT, gy_heads)))
        fed_wide = self.wide(self.x * (self.dt * self.tail))
        gb = torch.bmm(gscores.mT, self.c) + torch.bmm(fed_wide, after_wide.mT)
        gc = torch.bmm(gscores, self.b) + torch.bmm(from_state_wide, start_wide.mT)
        gb, gc = (part.unflatten(0, self.x.shape[:2]) for part in (gb, gc))
        return gu * self.dt, (gu * self.x).sum(4), gcum, gb, gc, gh
