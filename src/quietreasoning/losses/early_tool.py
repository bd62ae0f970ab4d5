"""When a tool is called, and when an answer ends: hazards over the first tokens of an assistant's turn.

h_t = q_t(opener): the probability that a call is opened at the turn's t-th token. The window begins at the
turn's own first token, never at the row's.
Shapes: R rows, T positions of a row, N positions of the window, J tokens of the opener, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quietreasoning.losses.odds import Event, all_of, any_of, said
from quietreasoning.losses.rows import sum_rows

WINDOW = 25


class EarlyTool(NamedTuple):
    called: Tensor  # sum over rows that need a tool of -log P(a call within the window), with gradient
    called_rows: Tensor
    refrained: Tensor  # sum over rows that need none of -log P(no call within the window), with gradient
    refrained_rows: Tensor


def window(values_RT: Tensor, first_R: Tensor, stop_R: Tensor, size: int = WINDOW) -> tuple[Tensor, Tensor]:
    """What predicts the first `size` tokens of a turn: (values [R, N, ...], counted [R, N]).

    values_RT [R, T, ...]: states or logits, those at t predict token t + 1. first_R: where the assistant's
    first token stands; stop_R: where its turn ends, exclusive. ValueError where size < 1. A row whose turn
    begins at 0 has nothing before it that predicts, and counts nowhere.
    """
    if size < 1:
        raise ValueError(f"size={size} is no window; give at least 1")
    offset_N = torch.arange(size, device=first_R.device)
    at_RN = first_R[:, None] + offset_N
    counted_RN = (at_RN < stop_R[:, None]) & (first_R[:, None] > 0) & (at_RN <= values_RT.shape[1])
    row_R1 = torch.arange(len(first_R), device=first_R.device)[:, None]
    return values_RT[row_R1, (at_RN - 1).clamp(0, values_RT.shape[1] - 1)], counted_RN


def opener_event(logits_RNJV: Tensor, opener_J: Tensor) -> Event:
    """That a call is opened at each position of the window [R, N]: the product along the opener's tokens.

    logits_RNJV[r, n, j] predict token j of the opener after the text before position n and the opener's first
    j tokens. With one token (J = 1) these are the row's own logits; with more, the tokens but the first need
    a pass of their own from each position.
    """
    shape = logits_RNJV.shape[:-1]
    return all_of(said(logits_RNJV, opener_J.to(logits_RNJV.device).expand(shape)))


def early_tool(opened_RN: Event, counted_RN: Tensor, tool_R: Tensor) -> EarlyTool:
    """Rows that need a tool: -log(1 - prod(1 - h_t)); rows that need none: -sum log(1 - h_t).

    tool_R: bool. A row with an empty window counts nowhere. Finite, with a gradient, for any finite logits:
    see losses/odds.py.
    """
    some = any_of(opened_RN, counted_RN)
    there_R = counted_RN.any(1)
    called, called_rows = sum_rows(-some.log_p, tool_R & there_R)
    refrained, refrained_rows = sum_rows(-some.log_not, ~tool_R & there_R)
    return EarlyTool(called, called_rows, refrained, refrained_rows)


def overlong(
    log_end_RT: Tensor, reference_R: Tensor, complete_RT: Tensor, counted_RT: Tensor, hinge: float = 0.15
) -> tuple[Tensor, Tensor]:
    """(sum of -log q_t(end) over positions that come too late, how many): a length that has a gradient.

    log_end_RT: log probability that the answer ends at its t-th token, t from 1; reference_R: length that
    would do; complete_RT: the tokens before t hold all required fields; counted_RT: t is in the answer. Too
    late is t > (1 + hinge) * reference, and only where complete: who has not said all is never cut short.
    ValueError where hinge < 0.
    """
    if not 0 <= hinge < float("inf"):
        raise ValueError(f"hinge={hinge} is no slack; give 0 or more")
    t_T = torch.arange(1, log_end_RT.shape[1] + 1, device=log_end_RT.device)
    late_RT = t_T > (1 + hinge) * reference_R[:, None]
    late_RT = late_RT & complete_RT & counted_RT
    return -log_end_RT.masked_fill(~late_RT, 0.0).sum(), late_RT.sum()
