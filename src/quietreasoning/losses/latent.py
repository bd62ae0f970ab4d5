"""What keeps slots useful: predict the next ones, stay apart, be read sparingly, know the answer.

R rows, K slots, D width, M negatives, T tokens. A row is one chunk of one sequence unless said otherwise;
every loss is (sum over the rows that count, number of those rows), and no row sees another. What a
batch-wide form would add is said where it is lost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quietreasoning.losses.rows import row_mean, statistic, sum_rows


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(|x|^2 + eps) along the last axis: a zero vector stays zero and its gradient finite."""
    x = statistic(x)
    return x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()


def next_latent(pred_RKD: Tensor, target_RKD: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over slots of 2 - 2 cos(prediction, target), no gradient to the target (BYOL, 2006.07733, eq. 2).

    pred: P(W_c), target: the same slots one chunk later, W_{c+1}; a row is such a pair. Without an
    anti-collapse term, slots that never change are a perfect answer.
    """
    cosine_RK = (unit(pred_RKD) * unit(target_RKD.detach())).sum(-1)
    return sum_rows((2 - 2 * cosine_RK).mean(1), rows_R)


def spread(
    slots_RKD: Tensor, rows_R: Tensor, target: float = 1.0, eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Mean over channels of relu(target - std over the row's slots) (VICReg, arXiv 2105.04906, eq. 1).

    The paper's std is over the batch. Here it is over the slots of one row, so it forbids equal slots, not
    slots that differ from each other but never from input to input; for that, give the states of one slot
    over the chunks of a sequence as the middle axis, or rely on InfoNCE. Population variance, so that K = 1
    is finite.
    """
    std_RD = (statistic(slots_RKD).var(1, correction=0) + eps).sqrt()
    return sum_rows((target - std_RD).relu().mean(1), rows_R)


def orthogonality(slots_RKD: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """Squared Frobenius norm of U U^T - I over K (K - 1), U the slots at unit length.

    Orthonormal slots score 0, zero slots 1 / (K - 1), equal slots 1: the norm of a slot is no way out.
    """
    slots = slots_RKD.shape[1]
    gram_RKK = unit(slots_RKD) @ unit(slots_RKD).mT
    off_RKK = gram_RKK - torch.eye(slots, device=gram_RKK.device, dtype=gram_RKK.dtype)
    return sum_rows(off_RKK.square().sum((1, 2)) / max(slots * (slots - 1), 1), rows_R)


def read_entropy(weights_RTK: Tensor, valid_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of each token's read weights, over ln K: 1 if it reads all slots alike, 0 if it reads one.

    Mean over the row's valid tokens; rows without any do not count. The L1 of a softmax being constant,
    this is the sparsity of softmax reads (a departure from plain L1, which would have no gradient).
    """
    weights_RTK = statistic(weights_RTK)
    entropy_RT = -(weights_RTK * weights_RTK.clamp(min=1e-9).log()).sum(-1)
    entropy_R = row_mean(entropy_RT, valid_RT) / math.log(max(weights_RTK.shape[-1], 2))
    return sum_rows(entropy_R, valid_RT.any(1))


@torch.no_grad()
def slot_health(slots_RKD: Tensor) -> tuple[Tensor, Tensor]:
    """The collapse alarm: (mean off-diagonal cosine_R, effective_rank_R).

    Effective rank = exp(entropy of the normalised spectrum) of the unit slots (Roy and Vetterli 2007), here
    of the Gram matrix's eigenvalues, which are exact in fp32 where singular values are not. Equal slots:
    cosine 1, rank 1. Orthonormal: 0 and K. Zero slots: 0 and 0, so look at both.
    """
    u_RKD = unit(slots_RKD)
    slots = u_RKD.shape[1]
    gram_RKK = u_RKD @ u_RKD.mT
    trace_R = gram_RKK.diagonal(dim1=1, dim2=2).sum(1)
    cosine_R = (gram_RKK.sum((1, 2)) - trace_R) / max(slots * (slots - 1), 1)
    p_RK = torch.linalg.eigvalsh(gram_RKK).clamp(min=0) / trace_R.clamp(min=1e-9)[:, None]
    rank_R = torch.special.entr(p_RK).sum(1).exp()
    return cosine_R, rank_R * (trace_R > 1e-3 * slots)


def info_nce(
    query_RD: Tensor,
    key_RD: Tensor,
    negatives_RMD: Tensor,
    rows_R: Tensor,
    tau: float,
    counted_RM: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """-log softmax of cos(query, key) / tau among key and the row's own negatives (1807.03748, eq. 4).

    Returns (sum, hits, count); a hit is a key strictly above all negatives, so a collapsed model has none.
    counted_RM: False for a negative that equals the answer; a row left without negatives does not count. Key
    and negatives have no gradient. Departure: negatives are given per row instead of taken from other rows,
    so the loss has one direction, not two. Compare it with `chance_level`.
    """
    if tau <= 0:
        raise ValueError(f"tau={tau} is no temperature; give a number above 0, usually 0.07 to 0.1")
    if counted_RM is None:
        counted_RM = torch.ones(negatives_RMD.shape[:2], dtype=torch.bool, device=query_RD.device)
    query_RD = unit(query_RD)
    positive_R = (query_RD * unit(key_RD.detach())).sum(-1) / tau
    negative_RM = torch.einsum("rd,rmd->rm", query_RD, unit(negatives_RMD.detach())) / tau
    negative_RM = negative_RM.masked_fill(~counted_RM, float("-inf"))
    logits_RN = torch.cat([positive_R[:, None], negative_RM], 1)
    rows_R = rows_R & counted_RM.any(1)
    total, count = sum_rows(logits_RN.logsumexp(1) - positive_R, rows_R)
    hits = ((positive_R[:, None] > negative_RM).all(1) & rows_R).sum()
    return total, hits, count


def chance_level(counted_RM: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """What `info_nce` costs a model that knows nothing: sum of ln(1 + negatives), and the rows counted."""
    negatives_R = counted_RM.sum(1)
    return sum_rows((1.0 + negatives_R).log(), rows_R & (negatives_R > 0))
