"""InfoNCE of the workspace: it knows the answer, or the chunk to come, better than something else.

Candidates come from the row itself or are drawn by its own key, never from other rows, so that a row's
loss does not depend on its neighbours (a departure from arXiv 1807.03748).

`Scored` ends with what the loss of a workspace that knows nothing would be.

Shapes: B rows, R streams, C chunks, M negatives, A answer tokens, N tokens of a column, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quietreasoning.backbone import Backbone
from quietreasoning.contract import IGNORE, Batch
from quietreasoning.losses.latent import chance_level, info_nce
from quietreasoning.workspace import Trace

Scored = tuple[Tensor, Tensor, Tensor, Tensor]  # sum, hits, count, sum at chance


def answer(
    query_BD: Tensor, backbone: Backbone, batch: Batch, eos: int, negatives: int, tau: float
) -> Scored:
    """The mean embedding of the answer's tokens against single tokens drawn from the vocabulary."""
    real_BA = (batch.answer_BA != IGNORE) & (batch.answer_BA != eos)
    embed_BAD = backbone.embed(batch.answer_BA).detach() * real_BA[..., None]
    key_BD = embed_BAD.sum(1) / real_BA.sum(1, keepdim=True).clamp(min=1)
    drawn_BM = drawn(batch, backbone.vocab_size, negatives)
    other_BM = (drawn_BM[:, :, None] != batch.answer_BA[:, None]).all(-1)
    negative_BMD = backbone.embed(drawn_BM).detach()
    return _score(query_BD, key_BD, negative_BMD, real_BA.any(1), tau, other_BM)


def drawn(batch: Batch, vocabulary: int, count: int) -> Tensor:
    """Tokens [B, M], by each row's own key."""
    rows = [
        torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(key))
        for key in batch.keys_B.tolist()
    ]
    return torch.stack(rows).to(batch.prompt_BP.device)


def next_chunk(summary: nn.Module, backbone: Backbone, trace: Trace, ids_BT: Tensor, tau: float) -> Scored:
    """The mean embedding of the chunk that the workspace opens, against those of the row's other chunks."""
    embed_ND = backbone.embed(ids_BT).detach().flatten(0, 1)
    chunks, rows = len(trace.columns), len(trace.row_R)
    key_CRD = embed_ND.new_zeros(chunks, rows, embed_ND.shape[-1])
    there_CR = torch.zeros(chunks, rows, dtype=torch.bool, device=embed_ND.device)
    for c, column in enumerate(trace.columns):
        held, valid_RN1 = len(column.fresh_R), column.valid_RN[..., None]
        key_CRD[c, :held] = (embed_ND[column.index_RN] * valid_RN1).sum(1) / valid_RN1.sum(1).clamp(min=1)
        there_CR[c, :held] = True
    none = torch.zeros((), device=embed_ND.device)
    sums: Scored = trace.slots[0].sum() * 0, none, none, none
    for c in range(1, chunks):
        held, others_C = len(trace.columns[c].fresh_R), torch.arange(chunks, device=none.device) != c
        scored = _score(
            summary(trace.slots[c].mean(1)),
            key_CRD[c, :held],
            key_CRD[others_C, :held].transpose(0, 1),
            there_CR[c, :held],
            tau,
            there_CR[others_C, :held].T,
        )
        sums = tuple(old + new for old, new in zip(sums, scored, strict=True))
    return sums


def _score(
    query_RD: Tensor, key_RD: Tensor, other_RMD: Tensor, rows_R: Tensor, tau: float, counted_RM: Tensor
) -> Scored:
    total, hits, count = info_nce(query_RD, key_RD, other_RMD, rows_R, tau, counted_RM)
    return total, hits.float(), count, chance_level(counted_RM, rows_R)[0]
