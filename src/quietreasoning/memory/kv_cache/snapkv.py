"""SnapKV (arXiv 2404.14469): the last queries of a prompt vote for the keys worth keeping.

Shapes: B rows, H query heads, G key/value heads, S prompt positions, W of them in the observation window,
P = S - W before it, N kept positions of the row that keeps most, R = H / G, M = R W, C head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 1e-6  # 0.29 * 100 is 28.999999999999996
SCORES = 2**20  # attention scores held at a time, or those of one row and key/value head if these are more


class Selection(NamedTuple):
    """Kept positions in ascending order, a row's own first."""

    index_BGN: Tensor
    valid_BN: Tensor | None  # None: every row keeps N


def votes(query_BHWC: Tensor, keys_BGSC: Tensor, valid_BS: Tensor, scaling: float) -> Tensor:
    """Mean attention that the window's queries pay to each position [B, H, S], in fp32 or finer.

    The softmax runs over all keys, causally within the window. A query that is padding counts as zero.
    """
    kind = torch.promote_types(query_BHWC.dtype, torch.float32)
    votes_BHS = query_BHWC.new_empty(*query_BHWC.shape[:2], keys_BGSC.shape[2], dtype=kind)
    votes_BGRS = votes_BHS.unflatten(1, (keys_BGSC.shape[1], -1))
    query_BGRWC = query_BHWC.unflatten(1, votes_BGRS.shape[1:3])
    for at in _pieces(query_BGRWC, keys_BGSC.shape[2]):
        votes_BGRS[at] = _votes(query_BGRWC[at], keys_BGSC[at], valid_BS[at[0]], scaling)
    return votes_BHS


def _pieces(query_BGRWC: Tensor, count: int) -> Iterator[tuple[slice, int]]:
    """Rows and a key/value head at a time: all scores at once would outweigh what the model itself holds."""
    rows, heads, share, width, _ = query_BGRWC.shape
    step = max(1, SCORES // (share * width * count))
    return ((slice(row, row + step), head) for row in range(0, rows, step) for head in range(heads))


def _votes(query_BRWC: Tensor, keys_BSC: Tensor, valid_BS: Tensor, scaling: float) -> Tensor:
    """[B, R, S] of the R query heads that share a key/value head."""
    (_, share, width, _), total = query_BRWC.shape, keys_BSC.shape[1]
    scores_BRWS = (query_BRWC.flatten(1, 2) @ keys_BSC.mT).unflatten(1, (share, width))
    scores_BRWS = scores_BRWS.to(torch.promote_types(scores_BRWS.dtype, torch.float32)).mul_(scaling)
    ahead_WW = torch.ones(width, width, dtype=torch.bool, device=keys_BSC.device).triu(1)
    scores_BRWS[..., total - width :].masked_fill_(ahead_WW, -torch.inf)
    if bool(valid_BS.all()):
        return scores_BRWS.softmax(-1).mean(2)
    scores_BRWS.masked_fill_(~valid_BS[:, None, None], -torch.inf)
    real_B1W1 = valid_BS[:, None, total - width :, None]
    return scores_BRWS.softmax(-1).masked_fill_(~real_B1W1, 0).mean(2)


def pool(votes_BHS: Tensor, window: int, kernel: int, kv_heads: int) -> Tensor:
    """Scores of the positions before the window [B, G, P]: smoothed along the prompt, averaged over the query
    heads that share a key."""
    before_BHP = votes_BHS[..., : votes_BHS.shape[-1] - window]
    smooth_BHP = F.avg_pool1d(before_BHP, kernel, stride=1, padding=kernel // 2)
    return smooth_BHP.unflatten(1, (kv_heads, -1)).mean(2)


def salience(votes_BHS: Tensor, valid_BS: Tensor, window: int, kv_heads: int) -> Tensor:
    """ZipCache's measure (arXiv 2405.14256, equation 8): attention over the number of queries that could see
    the position [B, G, S]. Without that division early tokens win only by being early."""
    seen_W = torch.arange(window, 0, -1, device=votes_BHS.device)
    seen_S = F.pad(seen_W, (votes_BHS.shape[-1] - window, 0), value=window)
    queries_B1 = valid_BS[:, -window:].sum(1, keepdim=True)
    share_BS = window / torch.minimum(seen_S, queries_B1).clamp(min=1)
    return votes_BHS.unflatten(1, (kv_heads, -1)).mean(2) * share_BS[:, None]


def counts(valid_BS: Tensor, keep_frac: float, window: int, sinks: int) -> Tensor:
    """How many positions before the window each row keeps [B]: a share of its own length, padding apart, at
    least its sinks; rows no longer than window and sinks keep all."""
    length_B = valid_BS.sum(1)
    count_B = (length_B * keep_frac + ROUNDING).long().clamp(min=sinks)
    return torch.where(length_B <= window + sinks, length_B, count_B)


def choose(scores_BGP: Tensor, valid_BS: Tensor, count_B: Tensor, sinks: int) -> Selection:
    """The `count_B` best positions before the window, sinks among them, and the window; never padding.

    Of equal scores the earlier position wins, so that the choice is the same everywhere.
    """
    before = scores_BGP.shape[-1]
    valid_BP = valid_BS[:, :before]
    sink_BP = valid_BP & (valid_BP.cumsum(1) <= sinks)
    kept_BGP = best(scores_BGP.masked_fill(sink_BP[:, None], torch.inf), valid_BP, count_B)
    window_BGW = valid_BS[:, None, before:].expand(-1, kept_BGP.shape[1], -1)
    return positions(torch.cat([kept_BGP, window_BGW], -1))


def best(scores_BGN: Tensor, valid_BN: Tensor, count_B: Tensor) -> Tensor:
    """True at the `count_B` greatest valid scores of each head."""
    ranked_BGN = scores_BGN.masked_fill(~valid_BN[:, None], -torch.inf)
    order_BGN = ranked_BGN.sort(dim=-1, descending=True, stable=True).indices
    first_BGN = (
        torch.arange(ranked_BGN.shape[-1], device=order_BGN.device) < count_B[:, None, None]
    ).expand_as(order_BGN)
    return torch.zeros_like(first_BGN).scatter(-1, order_BGN, first_BGN) & valid_BN[:, None]


def positions(kept_BGS: Tensor) -> Selection:
    """Where `kept` is True; heads of a row keep equally many."""
    count_B = kept_BGS[:, 0].sum(-1)
    most = int(count_B.max())
    index_BGN = (~kept_BGS).byte().sort(dim=-1, stable=True).indices[..., :most]
    valid_BN = torch.arange(most, device=kept_BGS.device) < count_B[:, None]
    return Selection(index_BGN, None if bool(valid_BN.all()) else valid_BN)


def gather(states_BGSC: Tensor, index_BGN: Tensor) -> Tensor:
    """The states at these positions [B, G, N, C]."""
    return states_BGSC.gather(2, index_BGN[..., None].expand(-1, -1, -1, states_BGSC.shape[-1]))


def attended(
    query_BHWC: Tensor, keys_BGNC: Tensor, values_BGNC: Tensor, valid_BN: Tensor | None, scaling: float
) -> Tensor:
    """Attention of the window's queries to all kept tokens [B, H, W, C], in fp32.

    Departure from the model: a query also sees the tokens of the window after it. Both sides of the
    comparison do, so that the order in which a store keeps its tokens does not matter.
    """
    out_BHWC = torch.empty_like(query_BHWC, dtype=torch.float32)
    out_BGRWC = out_BHWC.unflatten(1, (keys_BGNC.shape[1], -1))
    query_BGRWC = query_BHWC.unflatten(1, out_BGRWC.shape[1:3])
    for at in _pieces(query_BGRWC, keys_BGNC.shape[2]):
        scores_BMN = (query_BGRWC[at].flatten(1, 2).float() @ keys_BGNC[at].float().mT).mul_(scaling)
        if valid_BN is not None:
            scores_BMN.masked_fill_(~valid_BN[at[0], None], -torch.inf)
        mixed_BMC = scores_BMN.softmax(-1) @ values_BGNC[at].float()
        out_BGRWC[at] = mixed_BMC.unflatten(1, query_BGRWC.shape[2:4])
    return out_BHWC
