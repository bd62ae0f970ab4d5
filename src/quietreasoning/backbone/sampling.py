"""Writing tokens after a cache: the most likely ones, or drawn at a temperature. No top-k, no top-p.

What a row draws is decided by its own uniform numbers, never by a generator that rows share, so neither its
neighbours nor the order of the batches change it. Shapes: B rows, D width, V vocabulary, N new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quietreasoning.backbone.model import Backbone, Past, last_hidden, role_of
from quietreasoning.contract import IGNORE, Permit, Role


@torch.no_grad()
def sample(
    backbone: Backbone,
    past: Past,
    hidden_BD: Tensor,
    *,
    max_new_tokens: int,
    eos: int,
    temperature: float = 0.0,
    uniforms_BN: Tensor | None = None,
    stop: Sequence[int] = (),
    permit: Permit | None = None,
) -> list[list[int]]:
    """The tokens that follow `past`, a row each, until end of sequence, `stop` or the limit.

    A row keeps its end of sequence and its `stop`, so `row[-1] != eos` tells that the limit cut it.
    temperature: 0 takes the most likely token; else token v has the probability softmax(logits / temperature)
    and `uniforms_BN`, numbers in [0, 1) on any device, one a row and token, draws it by its place in the
    cumulative distribution. The same numbers give the same row in any batch, but for a number within rounding
    of the edge between two tokens: padding changes the last bits of a state.
    stop: a sequence of tokens that ends a row.
    permit: what may come next in a row that is not over, see contract.py.

    hidden_BD is the state that predicts the first token; `past` grows in place (fork it to keep it). A row
    that has ended feeds padding, which no other row sees. ValueError where numbers are missing or too few.
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must not be negative")
    if temperature > 0 and (uniforms_BN is None or uniforms_BN.shape[1] < max_new_tokens):
        raise ValueError(f"temperature={temperature} needs uniforms_BN with {max_new_tokens} numbers a row")
    rows: list[list[int]] = [[] for _ in range(len(hidden_BD))]
    open_B = torch.ones(len(hidden_BD), dtype=torch.bool, device=hidden_BD.device)
    for i in range(max_new_tokens):
        logits_BV = backbone.logits(hidden_BD)
        if permit is not None:
            logits_BV = permitted(logits_BV, permit, rows, open_B.tolist(), eos)
        if temperature > 0:
            token_B = draw(logits_BV, temperature, uniforms_BN[:, i])
        else:
            token_B = logits_BV.argmax(-1)
        was_open = open_B.tolist()
        open_B &= token_B != eos
        for row, (token, is_open) in enumerate(zip(token_B.tolist(), was_open, strict=True)):
            if is_open:
                rows[row].append(token)
                if stop and tuple(rows[row][-len(stop) :]) == tuple(stop):
                    open_B[row] = False
        if i + 1 == max_new_tokens or not open_B.any():
            break
        token_B1 = token_B.masked_fill(~open_B, IGNORE)[:, None]
        states = backbone(token_B1, role_of(token_B1, Role.STEP), past)
        hidden_BD, past = last_hidden(states), states.past
    return rows


def permitted(
    logits_BV: Tensor, permit: Permit, rows: Sequence[Sequence[int]], is_open: Sequence[bool], eos: int
) -> Tensor:
    """The logits of open rows as a permit leaves them; where a row may write nothing, -inf at all but `eos`.

    rows: what each has written so far. ValueError where a permit speaks of another number of tokens than V.
    """
    changed_BV = logits_BV.clone()
    for row, tokens in enumerate(rows):
        said_V = permit(row, tokens, logits_BV[row]) if is_open[row] else None
        if said_V is None:
            continue
        if said_V.shape != logits_BV.shape[1:]:
            raise ValueError(
                f"a permit for {tuple(said_V.shape)} tokens does not fit the model's {logits_BV.shape[1]}"
            )
        said_V = said_V.to(logits_BV.device)
        allowed_V = said_V if said_V.dtype == torch.bool else said_V > -torch.inf
        if not allowed_V.any():
            allowed_V = torch.zeros_like(allowed_V)
            allowed_V[eos] = True
        elif said_V.dtype != torch.bool:
            changed_BV[row] += said_V
        changed_BV[row].masked_fill_(~allowed_V, -torch.inf)
    return changed_BV


def draw(logits_BV: Tensor, temperature: float, uniform_B: Tensor) -> Tensor:
    """The token [B] in whose share of softmax(logits / temperature) each uniform number of [0, 1) falls.

    In float64: over a large vocabulary float32 sums would lose the unlikely tokens.
    """
    shares_BV = (logits_BV.double() / temperature).softmax(-1).cumsum(-1)
    point_B1 = uniform_B.to(shares_BV)[:, None] * shares_BV[:, -1:]
    found_B1 = torch.searchsorted(shares_BV, point_B1, right=True)  # never a token without a share
    return found_B1[:, 0].clamp(max=logits_BV.shape[-1] - 1)
