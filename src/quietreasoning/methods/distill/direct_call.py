"""Calls opened one by one where a program would do become less likely.

    direct_call = sum over openers of -log(1 - q(o | what stands before)),  o its first token

(unlikelihood, arXiv 1908.04319, equation 4). Its first token is where a plain call is chosen: what follows
in the opener the form of a call dictates, and a call that was opened must still be right. Where this term is
on, those tokens are no labels of `answer`, which would ask for the opposite; a teacher is followed there as
everywhere, so it should be one that writes programs.
Shapes: B rows, T visible tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.contract import Batch, Term
from quietreasoning.kinds import Kind
from quietreasoning.losses.preference import unlikelihood
from quietreasoning.methods.distill.spans import check_classes, placed
from quietreasoning.methods.sequence import Visible, starts

NAME = "direct_call"


def openers(batch: Batch, visible: Visible) -> Tensor:
    """The first token of each opener [B, T]. UserError where the batch has no classes."""
    check_classes(batch, NAME)
    return starts(placed(batch, visible, batch.classes_BA) == Kind.DIRECT_CALL)


def term(backbone: Backbone, batch: Batch, visible: Visible, hidden_BTD: Tensor, weight: float) -> Term:
    """The term. Openers are few, so that their logits are held all at once."""
    chosen_BT = openers(batch, visible)
    labels_N = visible.labels_BT[chosen_BT]
    logits_NV = backbone.logits(hidden_BTD[chosen_BT])
    total, _ = unlikelihood(logits_NV, labels_N, torch.ones_like(labels_N, dtype=torch.bool))
    return Term(total, NAME, weight)
