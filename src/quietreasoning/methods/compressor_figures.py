"""What a round trip of states does to the next token, a few positions at a time.

Shapes: B rows, T positions, N states, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.backbone import Backbone
from quietreasoning.contract import IGNORE
from quietreasoning.losses.next_token import next_token

CHUNK = 1024  # positions whose logits are held at a time


def next_token_kl(backbone: Backbone, before_ND: Tensor, after_ND: Tensor) -> Tensor:
    """Sum of KL(before || after) of the distributions that final states predict, in nats, float64."""
    total = torch.zeros((), dtype=torch.float64, device=before_ND.device)
    for before_nD, after_nD in zip(before_ND.split(CHUNK), after_ND.split(CHUNK), strict=True):
        after, before = (backbone.logits(part).float().log_softmax(-1) for part in (after_nD, before_nD))
        total += F.kl_div(after, before, reduction="sum", log_target=True)
    return total


def predicted(backbone: Backbone, hidden_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Summed negative log-likelihood of the labels, how many are the likeliest token, how many there are."""
    hidden_ND, labels_N = hidden_BTD[labels_BT != IGNORE], labels_BT[labels_BT != IGNORE]
    parts = [
        next_token(backbone.logits(part_nD), labels_n)
        for part_nD, labels_n in zip(hidden_ND.split(CHUNK), labels_N.split(CHUNK), strict=True)
    ]
    nll, hits, count = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    return nll, hits, count
