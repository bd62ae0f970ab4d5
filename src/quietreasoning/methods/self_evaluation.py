"""Knowing whether the answer will be right: asked at the end of the answer prefix, where nothing is said yet.

Greedy writing gives the gold answer exactly where teacher forcing hits each of its tokens, so one forward
tells what the model's own answer is worth. Shapes: B rows, K thoughts, T visible tokens, D width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.backbone import Backbone
from quietreasoning.config import Settings
from quietreasoning.contract import IGNORE, Term
from quietreasoning.losses.policy import token_log_probs


class SelfEvaluationSettings(Settings):
    """Knowing whether the answer will be right."""

    weight: float = Field(1.0, ge=0)
    """Cross-entropy of being right, which the head alone learns; 0 keeps the head as it is and asks it."""


@torch.no_grad()
def answer_outcome(backbone: Backbone, predicting_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each row's labels, summed [B], and whether greedy writing gives exactly them [B].

    predicting_BTD: column i predicts label i; IGNORE does not count. A row without labels is right.
    """
    counted_BT = labels_BT != IGNORE
    logits_CV, labels_C = backbone.logits(predicting_BTD[counted_BT]), labels_BT[counted_BT]
    logp_C = token_log_probs(logits_CV, labels_C)
    logp_BT = logp_C.new_zeros(labels_BT.shape).masked_scatter(counted_BT, logp_C)
    hit_BT = torch.ones_like(counted_BT).masked_scatter(counted_BT, logits_CV.argmax(-1) == labels_C)
    return logp_BT.sum(1), hit_BT.all(1)


def self_evaluation_term(
    z_BK: Tensor, right_BK: Tensor, weight: float
) -> tuple[Term, dict[str, tuple[Tensor, Tensor]]]:
    """Cross-entropy in nats of being right, mean over a row's K answers, and the Brier score of the same.

    z_BK: logits of the head; right_BK: bool.
    """
    z_BK, right_BK = z_BK.float(), right_BK.float()
    lost_BK = F.binary_cross_entropy_with_logits(z_BK, right_BK, reduction="none")
    error_BK = (z_BK.detach().sigmoid() - right_BK).square()
    rows = torch.tensor(len(z_BK), device=z_BK.device)
    metrics = {"brier": (error_BK.mean(1).sum(), rows), "right": (right_BK.mean(1).sum(), rows)}
    return Term(lost_BK.mean(1).sum(), "sequence", weight), metrics
