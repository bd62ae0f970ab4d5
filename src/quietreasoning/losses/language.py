"""Language-model losses from hidden states and the head's weight; the (N, V) logits never exist.

N tokens, D width, V vocabulary, C rows of a chunk, L ids of a lexicon.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quietreasoning.losses.fused_head import Rule, head_loss


class NextToken(NamedTuple):
    total: Tensor  # nll + z_weight * z2, with gradient
    nll: Tensor  # sum of -log p(label) in nats
    z2: Tensor  # sum of (log Z)^2
    hits: Tensor  # labels that the arg max hits
    count: Tensor  # labels that are not `ignore`


def chunked_next_token(
    hidden: Tensor,
    weight_VD: Tensor,
    labels: Tensor,
    *,
    chunk: int = 1024,
    bias_V: Tensor | None = None,
    z_weight: float = 0.0,
    ignore: int = -100,
    compact: bool = True,
) -> NextToken:
    """Cross-entropy plus the LM z-loss (PaLM, arXiv 2204.02311, section 5), sums over tokens.

    hidden [..., D] predicts labels [...]: nothing is shifted here. log Z = logsumexp of the logits; the
    paper's coefficient is 1e-4. One gradient is taken in the forward pass, so the two parts must be weighed
    before it: only `total` has a gradient, `nll` and `z2` are for the log. Statistics in fp32 (fp64 for fp64
    inputs), products in autocast's dtype. See `head_loss` for compact, memory and when to call.
    """
    rule = _next_token(z_weight, ignore)
    total, rest, count = head_loss(
        hidden, weight_VD, bias_V, labels, rule, chunk=chunk, ignore=ignore, compact=compact
    )
    return NextToken(total, rest[0], rest[1], rest[2].long(), count)


def _next_token(z_weight: float, ignore: int) -> Rule:
    def rule(logits_CV: Tensor, labels_C: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        counted_C = labels_C != ignore
        label_C1 = labels_C.clamp(min=0)[:, None]
        top_C, guess_C = logits_CV.max(-1)
        gold_C = logits_CV.gather(1, label_C1)[:, 0]
        mass_CV = logits_CV.sub_(top_C[:, None]).exp_()
        mass_C = mass_CV.sum(-1)
        log_z_C = top_C + mass_C.log()
        nll = (log_z_C - gold_C).masked_fill(~counted_C, 0).sum()
        z2 = log_z_C.square().masked_fill(~counted_C, 0).sum()
        hits = (guess_C == labels_C).sum().to(nll)
        sums = torch.stack([nll + z_weight * z2, nll, z2, hits])
        if not wanted:
            return sums, None
        # d total / d logits = (1 + 2 z_weight log Z) p - onehot(label)
        factor_C = (1 + 2 * z_weight * log_z_C).masked_fill(~counted_C, 0) / mass_C
        slope_CV = mass_CV.mul_(factor_C[:, None])
        return sums, slope_CV.scatter_add_(1, label_C1, -counted_C.to(slope_CV)[:, None])

    return rule


def unlikelihood(
    hidden: Tensor,
    weight_VD: Tensor,
    lexicon: tuple[int, ...],
    labels: Tensor,
    *,
    chunk: int = 1024,
    bias_V: Tensor | None = None,
    ignore: int = -100,
    compact: bool = True,
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of -log(1 - p(any id of the lexicon)), and how many tokens (arXiv 1908.04319).

    labels: what is to be said at each position, `ignore` where the penalty is off; as in the paper the
    label itself is never punished, even if the lexicon holds it. Departures: the probability of the whole
    lexicon is punished at once, not each id by itself; and 1 - p is not clamped but computed as
    logsumexp(all) - logsumexp(allowed), which stays finite as p goes to 1 and, unlike a clamp, keeps its
    gradient there, bounded by 1 in every logit.
    """
    vocabulary, ids = len(weight_VD), set(lexicon)
    if not ids:
        raise ValueError(
            "lexicon is empty, so there is nothing to punish; give token ids, or set the weight to 0"
        )
    if min(ids) < 0 or max(ids) >= vocabulary or len(ids) == vocabulary:
        raise ValueError(
            f"lexicon holds {len(ids)} ids from {min(ids)} to {max(ids)}; give ids of 0..{vocabulary - 1}, "
            "and not all of them"
        )
    banned_L = torch.tensor(sorted(ids), device=weight_VD.device)
    rule = _unlikelihood(banned_L, ignore)
    total, _, count = head_loss(
        hidden, weight_VD, bias_V, labels, rule, chunk=chunk, ignore=ignore, compact=compact
    )
    return total, count


def _unlikelihood(banned_L: Tensor, ignore: int) -> Rule:
    def rule(logits_CV: Tensor, labels_C: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        counted_C = labels_C != ignore
        label_C1 = labels_C.clamp(min=0)[:, None]
        allowed_CV = logits_CV.index_fill(1, banned_L, float("-inf"))
        allowed_CV.scatter_(1, label_C1, logits_CV.gather(1, label_C1))
        log_z_C, log_allowed_C = logits_CV.logsumexp(-1), allowed_CV.logsumexp(-1)
        total = (log_z_C - log_allowed_C).masked_fill(~counted_C, 0).sum()
        if not wanted:
            return total[None], None
        slope_CV = logits_CV.sub_(log_z_C[:, None]).exp_()
        slope_CV -= allowed_CV.sub_(log_allowed_C[:, None]).exp_()
        return total[None], slope_CV.mul_(counted_C[:, None])

    return rule
