"""The trainable side of a datastore: lambda by the likelihood of the mixture, and a router of rare questions.

Shapes: B rows, A answer tokens, N answer tokens of all rows, n of them looked up, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.backbone import Backbone
from quietreasoning.contract import IGNORE, Batch
from quietreasoning.memory.knn_lm import mix
from quietreasoning.memory.knn_weight import Lambda
from quietreasoning.methods.recall.neighbours import Datastore
from quietreasoning.methods.recall.settings import Neighbours


class Mixture(nn.Module):
    """Neighbours at the head. Until the router has learned, each question is as likely to be rare as not."""

    def __init__(self, settings: Neighbours, backbone: Backbone):
        super().__init__()
        self.settings = settings
        self.weight = Lambda(backbone.width)
        self.router = nn.Linear(backbone.width, 1)
        nn.init.zeros_(self.router.weight)
        nn.init.zeros_(self.router.bias)
        self.datastore = Datastore(settings, backbone, self.weight)

    def rare(self, end_BD: Tensor) -> Tensor:
        """Logits [B] that the answer is a long-tail fact, of the state at the end of the prompt."""
        return self.router(end_BD.to(self.router.weight.dtype))[:, 0].float()

    def fires(self, rare_B: Tensor) -> Tensor:
        """Which rows [B] are looked up."""
        return rare_B.sigmoid() >= self.settings.rare_entity_threshold

    def within(self, batch: Batch) -> Tensor:
        """Answer tokens [B, A] within the budget of look-ups."""
        within_A = torch.arange(batch.answer_BA.shape[1], device=batch.answer_BA.device)
        return (batch.answer_BA != IGNORE) & (within_A < self.settings.max_lookups)

    def learns(self, batch: Batch) -> Tensor:
        """Answer tokens [B, A] by which lambda learns: within the budget, of rows not known as popular."""
        return self.within(batch) & (batch.rare_B != 0)[:, None]

    def _corrupt(self) -> float:
        learns = self.training and self.weight.query.weight.requires_grad
        return self.settings.corrupt if learns else 0.0

    def loss(
        self, query_ND: Tensor, logits_NV: Tensor, batch: Batch, fires_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """- log p of the answer tokens under the mixture, summed where lambda learns; the log-probabilities
        [N, V] that an answer is written from; the look-ups which that costs. The model's share is taken as it
        is: lambda alone learns. In training no row finds itself, and while lambda learns some have foreign
        neighbours."""
        counted_BA = batch.answer_BA != IGNORE
        labels_N, learns_N = batch.answer_BA[counted_BA], self.learns(batch)[counted_BA]
        fires_N = (self.within(batch) & fires_B[:, None])[counted_BA]
        asked_N = learns_N | fires_N
        written_NV = logits_NV.detach().float().log_softmax(-1)
        if not asked_N.any():
            return 0.0 * self.weight.query.bias.sum(), written_NV, fires_N.sum()
        log_lm_nV, at_n1 = written_NV[asked_N], labels_N[asked_N, None]
        foreign_n = self.datastore.foreign(batch, self._corrupt())[counted_BA][asked_N]
        evidence = self.datastore.evidence(
            query_ND[asked_N], logits_NV.shape[-1], foreign_n, without_own=self.training
        )
        weight_n, log_knn_nV = self.datastore.knn.share(evidence), evidence.log_knn_BV
        log_p_n = mix(log_lm_nV.gather(1, at_n1)[:, 0], log_knn_nV.gather(1, at_n1)[:, 0], weight_n)
        with torch.no_grad():
            written_NV[asked_N] = mix(log_lm_nV, log_knn_nV, (weight_n * fires_N[asked_N])[:, None])
        return -log_p_n[learns_N[asked_N]].sum(), written_NV, fires_N.sum()


def rare_loss(rare_B: Tensor, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Binary cross-entropy summed over rows whose popularity is known; how many are told apart rightly."""
    known_B = batch.rare_B != IGNORE
    truth_b = batch.rare_B[known_B]
    total = F.binary_cross_entropy_with_logits(rare_B[known_B], truth_b.float(), reduction="sum")
    right_b = (rare_B.detach()[known_B] > 0) == (truth_b == 1)
    return total, (right_b.sum().float(), known_B.sum())
