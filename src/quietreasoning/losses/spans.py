"""Cross-entropy by what a token is, and what the grammar of a call adds to it, from one pass of the head.

With Z the log-sum over all ids, A that over the ids which the grammar allows, and l the label's logit,

    cross-entropy  Z - l  =  grammar (Z - A)  +  choice (A - l):

mass outside of the grammar, whatever the value, and the choice among what is allowed. At a tool's name the
choice is among the declared names, token by token, as decoding under the grammar would choose.
Shapes: N positions, C those of a chunk, V vocabulary, W bytes of packed bits, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quietreasoning.losses.divergence import Head
from quietreasoning.losses.rows import statistic


class SpanSums(NamedTuple):
    """Sums over positions, in nats."""

    ce_K: Tensor  # of -log q(label), by class
    grammar: Tensor  # of -log of the mass that is allowed, where the grammar says anything
    choice_K: Tensor  # of -log of the label's share in that mass, there, by class
    hits_K: Tensor  # positions whose label is the most likely id, by class; no gradient


def span_sums(
    hidden_ND: Tensor,
    head: Head,
    labels_N: Tensor,
    class_N: Tensor,
    classes: int,
    allowed_NW: Tensor | None = None,
    *,
    chunk: int = 1024,
) -> SpanSums:
    """Sums of positions by their class in [0, classes).

    hidden_ND[i] predicts labels_N[i]: nothing is shifted here. allowed_NW: packed bits of the allowed ids,
    the first id highest; a row of zeros says nothing. Beyond `chunk` rows the logits are made again in the
    backward, so no more than a chunk's are ever held. ValueError where the grammar forbids a label.
    """
    if allowed_NW is None:
        allowed_NW = torch.zeros(len(hidden_ND), 0, dtype=torch.uint8, device=hidden_ND.device)
    _check(labels_N, allowed_NW)
    zero = statistic(hidden_ND.flatten()[:0]).sum()  # on the graph, though nothing is summed
    total, hits_K = zero + zero.new_zeros(3, classes), zero.detach().new_zeros(classes)

    def part(
        hidden_CD: Tensor, labels_C: Tensor, class_C: Tensor, allowed_CW: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits_CV = statistic(head(hidden_CD))
        whole_C = logits_CV.logsumexp(-1)
        label_C = logits_CV.gather(-1, labels_C[:, None])[:, 0]
        told_C = (allowed_CW != 0).any(-1)
        inside_C = grammatical(logits_CV, allowed_CW) if told_C.any() else whole_C
        each_3C = torch.stack([whole_C - label_C, whole_C - inside_C, (inside_C - label_C) * told_C])
        sums_3K = each_3C.new_zeros(3, classes).index_add(1, class_C, each_3C)
        right_C = (logits_CV.detach().argmax(-1) == labels_C).to(sums_3K.dtype)
        return sums_3K, right_C.new_zeros(classes).index_add(0, class_C, right_C)

    for start in range(0, len(hidden_ND), chunk):
        rows = slice(start, start + chunk)
        given = (hidden_ND[rows], labels_N[rows], class_N[rows], allowed_NW[rows])
        whole = len(hidden_ND) <= chunk or not torch.is_grad_enabled()
        sums_3K, right_K = part(*given) if whole else checkpoint(part, *given, use_reentrant=False)
        total, hits_K = total + sums_3K, hits_K + right_K
    return SpanSums(total[0], total[1].sum(), total[2], hits_K)


def grammatical(logits_CV: Tensor, allowed_CW: Tensor) -> Tensor:
    """Log-sum-exp over the allowed ids [C]; over all of them where the bits say nothing."""
    allowed_CV = unpacked(allowed_CW, logits_CV.shape[-1]) | (allowed_CW == 0).all(-1, keepdim=True)
    return logits_CV.masked_fill(~allowed_CV, -torch.inf).logsumexp(-1)


def unpacked(allowed_CW: Tensor, vocabulary: int) -> Tensor:
    """Packed bits [C, W] to bool [C, V]; ids beyond the bits are not allowed."""
    place_8 = torch.arange(7, -1, -1, dtype=torch.uint8, device=allowed_CW.device)
    bits_CV = ((allowed_CW[..., None] >> place_8) & 1).bool().flatten(-2)
    missing = vocabulary - bits_CV.shape[-1]
    return F.pad(bits_CV, (0, missing)) if missing > 0 else bits_CV[..., :vocabulary]


def _check(labels_N: Tensor, allowed_NW: Tensor) -> None:
    if not allowed_NW.shape[1]:
        return
    last = allowed_NW.shape[1] - 1  # ids beyond the bits are not allowed
    byte_N = allowed_NW.gather(1, (labels_N // 8).clamp(max=last)[:, None])[:, 0]
    allows_N = (byte_N >> (7 - labels_N % 8).to(torch.uint8)) & (labels_N // 8 <= last)
    wrong_N = (allowed_NW != 0).any(-1) & (allows_N == 0)
    if wrong_N.any():
        at = int(wrong_N.nonzero()[0])
        raise ValueError(f"the grammar forbids label {int(labels_N[at])} at position {at}, which is gold")
