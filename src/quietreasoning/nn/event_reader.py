"""Gated cross-attention from the states that an answer is written from to the tokens of retrieved events.

    h' = h + tanh(g) W_o sum_i a_i W_v e(x_{i+1}),   a = softmax(q(h) . k(h_i) / sqrt(d) + s, null)

The key of a place is the state before a token, which says where the text is, and its value the embedding
of the token that stands there, which says what to write: a kNN-LM (arXiv 1911.00172) over a handful of
texts, with keys that are learned. Cross-attention to what was retrieved is RETRO's (arXiv 2112.04426) and
that of Memorizing Transformers (arXiv 2203.08913), the closed gate Flamingo's (arXiv 2204.14198, section
2.2). A learned null key without a value takes the attention of whoever finds nothing. s, log p(event |
query), is what lets a gradient reach the query (arXiv 2002.08909 and 2005.11401 weigh whole documents so).

Shapes: B rows, T states of an answer, S places in the events of a row, K events, D width, H heads, C = D / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EventReader(nn.Module):
    """States that have read what was retrieved. Maps begin as the identity; gate and null key at 0."""

    def __init__(self, width: int, heads: int = 1):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide the width {width}")
        self.heads = heads
        for name in ("query", "key", "value", "out"):
            linear = nn.Linear(width, width, bias=False)
            nn.init.eye_(linear.weight)
            self.add_module(name, linear)
        self.null_HC = nn.Parameter(torch.zeros(heads, width // heads))
        self.gate = nn.Parameter(torch.zeros(1))  # sharding wants no scalars

    def forward(
        self, hidden_BTD: Tensor, before_BSD: Tensor, token_BSD: Tensor, score_BS: Tensor, real_BS: Tensor
    ) -> Tensor:
        """hidden with what was read, in its precision; bit for bit hidden where nothing is real.

        before: the state before each place; token: the embedding of what stands there; score: of its event.
        """
        some_B = real_BS.any(1)
        if not some_B.any():
            return hidden_BTD
        attention_BHTS = self.attention(hidden_BTD, before_BSD, score_BS, real_BS)
        value_BHSC = self._heads(self.value(self._unit(token_BSD)))
        read_BTD = (attention_BHTS @ value_BHSC).transpose(1, 2).flatten(2)
        added_BTD = torch.tanh(self.gate) * self.out(read_BTD)
        fused_BTD = hidden_BTD + added_BTD.to(hidden_BTD.dtype)
        return torch.where(some_B[:, None, None], fused_BTD, hidden_BTD)

    def attention(self, hidden_BTD: Tensor, before_BSD: Tensor, score_BS: Tensor, real_BS: Tensor) -> Tensor:
        """[B, H, T, S]: what each place gets; the rest up to 1 is the null key's."""
        query_BHTC = self._heads(self.query(self._unit(hidden_BTD)))
        key_BHSC = self._heads(self.key(self._unit(before_BSD)))
        scale = 1 / math.sqrt(query_BHTC.shape[-1])
        logits_BHTS = scale * query_BHTC @ key_BHSC.transpose(2, 3) + score_BS[:, None, None]
        logits_BHTS = logits_BHTS.masked_fill(~real_BS[:, None, None], -torch.inf)
        null_BHT1 = scale * (query_BHTC * self.null_HC[:, None]).sum(-1, keepdim=True)
        return torch.cat([logits_BHTS, null_BHT1], -1).softmax(-1)[..., :-1]

    def _unit(self, states: Tensor) -> Tensor:
        return F.rms_norm(states.to(self.gate.dtype), states.shape[-1:], eps=1e-6)

    def _heads(self, states_BND: Tensor) -> Tensor:
        return states_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class QueryMap(nn.Module):
    """What a store is asked: a linear map of the query, the identity at first, and how much nearness counts.

    Vectors in the store never change, so that only the query learns (arXiv 2002.08909 makes them anew).
    """

    def __init__(self, width: int, scale: float = 10.0):
        super().__init__()
        self.map = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.map.weight)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(scale)))

    def forward(self, query_BD: Tensor) -> Tensor:
        return self.map(query_BD.to(self.map.weight.dtype))

    def log_shares(self, asked_BD: Tensor, vectors_BKD: Tensor, real_BK: Tensor) -> Tensor:
        """log p(event | query) [B, K] among what was found; -inf where nothing is."""
        return log_shares(self.log_scale.exp(), asked_BD, vectors_BKD, real_BK)


def log_shares(scale: Tensor | float, asked_BD: Tensor, vectors_BKD: Tensor, real_BK: Tensor) -> Tensor:
    """log softmax of scale times the inner product [B, K] over what is real."""
    scores_BK = scale * (asked_BD[:, None] * vectors_BKD.to(asked_BD)).sum(-1)
    scores_BK = scores_BK.masked_fill(~real_BK, -torch.inf)
    total_B1 = scores_BK.masked_fill(~real_BK.any(1, keepdim=True), 0.0).logsumexp(1, keepdim=True)
    return scores_BK - total_B1
