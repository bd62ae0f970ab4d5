"""Group-relative policy optimisation: advantages within a group, a clipped ratio, a distance to a reference.

GRPO (arXiv 2402.03300), with the two corrections of Dr. GRPO (2503.20783) as choices. A group is G answers
to one prompt; groups never meet. Every objective is a sum over answers, and an answer's share is the sum
over its tokens: a token of a long answer then weighs what a token of a short one does. `per_token` divides
by the answer's length first, as the first paper did, which makes long wrong answers cheap.

Shapes: B prompts, G answers a prompt, T tokens of an answer, V vocabulary; `...` is any of [B, G] or [N].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quietreasoning.losses.rows import statistic

SAME = 1e-6  # rewards nearer than this tell nothing apart


class Clipped(NamedTuple):
    total: Tensor  # what is minimised, with gradient
    clipped: Tensor  # tokens whose ratio the clip cut off, so that they have no gradient
    count: Tensor  # tokens


def token_log_probs(logits_NV: Tensor, ids_N: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) of the given ids [N], in fp32 or wider: the law they are drawn by."""
    logits_NV = statistic(logits_NV) / temperature
    return logits_NV.gather(1, ids_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def rewards(worth_BG: Tensor, length_BG: Tensor, limit: int, length: float = 0.0) -> Tensor:
    """What an answer is worth in [0, 1], less length * tokens / limit in groups in which somebody is right,
    which is worth 1.

    Where nobody is, nothing is taken off: being short must not be all that is learned from a hard question.
    """
    worth = worth_BG.float()
    return worth - length * length_BG / limit * (worth >= 1).any(1, keepdim=True)


def group_advantages(
    reward_BG: Tensor, *, standardise: bool = True, eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """((r - mean) / (std + eps) within each group [B, G], whether the group tells anything [B]).

    standardise=False leaves out the division, which makes nearly solved and nearly hopeless questions weigh
    more (Dr. GRPO). Where all rewards are the same, advantages are exactly 0.
    """
    told_B = reward_BG.amax(1) - reward_BG.amin(1) > SAME
    advantage_BG = reward_BG - reward_BG.mean(1, keepdim=True)
    if standardise:
        advantage_BG = advantage_BG / (reward_BG.std(1, correction=0, keepdim=True) + eps)
    return advantage_BG.masked_fill(~told_B[:, None], 0.0), told_B


def clipped_objective(
    logp_NT: Tensor,
    old_NT: Tensor,
    advantage_N: Tensor,
    counted_NT: Tensor,
    clip: float = 0.2,
    *,
    per_token: bool = False,
) -> Clipped:
    """- sum over tokens of min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A), ratio = p / p_old.

    old_NT: log probabilities under the weights that drew the answers, without gradient. Where they are those
    of `logp_NT` itself the ratio is 1 and the gradient is - sum A grad log p, the policy gradient.
    """
    old_NT, advantage_N1 = old_NT.detach(), advantage_N.detach()[:, None]
    ratio_NT = (logp_NT - old_NT).masked_fill(~counted_NT, 0.0).exp()
    held_NT = ratio_NT.clamp(1 - clip, 1 + clip)
    gain_NT = torch.minimum(ratio_NT * advantage_N1, held_NT * advantage_N1)
    cut_NT = (ratio_NT * advantage_N1 > gain_NT) & counted_NT
    return Clipped(-_per_answer(gain_NT, counted_NT, per_token).sum(), cut_NT.sum(), counted_NT.sum())


def reference_kl(
    logp_NT: Tensor, reference_NT: Tensor, counted_NT: Tensor, *, per_token: bool = False
) -> Tensor:
    """Sum over tokens of exp(d) - d - 1 with d = log p_reference - log p: never negative, 0 where equal.

    Over tokens drawn from p its mean is KL(p || reference) (Schulman's k3; GRPO, equation 4).
    """
    d_NT = (reference_NT.detach() - logp_NT).masked_fill(~counted_NT, 0.0)
    return _per_answer(torch.expm1(d_NT) - d_NT, counted_NT, per_token).sum()


def _per_answer(values_NT: Tensor, counted_NT: Tensor, per_token: bool) -> Tensor:
    """Sum over an answer's tokens [N], or their mean."""
    total_N = values_NT.masked_fill(~counted_NT, 0.0).sum(1)
    return total_N / counted_NT.sum(1).clamp(min=1) if per_token else total_N
