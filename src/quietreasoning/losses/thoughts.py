"""What a hidden thought is worth, and how the policy that wrote it learns: rewards, baselines, bound, scores.

A thought is rewarded by the log-likelihood it adds to the true tokens after it, in nats, and learned by
REINFORCE (Quiet-STaR, arXiv 2403.09629, with other baselines). Everything is a sum with its count; rows of a
batch never meet. Rewards, advantages and scores carry no gradient.

Shapes: B rows, K anchors, G thoughts an anchor, M true tokens after it, L steps of a thought, N any number
of rows, V vocabulary, D width; `...` is anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quietreasoning.losses.rows import row_mean, statistic


@dataclass(frozen=True)
class ThoughtLaw:
    """What a thought may say at each step: softmax at temperature 1 over what is not closed.

    Closed are `blocked` (end of sequence, padding, ...), the start marker, and the end marker before step
    `floor`, so that a thought has at least `floor` tokens. Drawing and learning share this one law.
    """

    start: int
    end: int
    blocked: tuple[int, ...]
    floor: int

    def __post_init__(self) -> None:
        if self.start == self.end or self.end in self.blocked or self.floor < 0:
            raise ValueError(
                f"start={self.start}, end={self.end}, blocked={self.blocked}, floor={self.floor}: the "
                "markers must differ, the end must not be blocked, and the floor must not be negative"
            )

    def logits(self, logits_NV: Tensor, step_N: Tensor | int) -> Tensor:
        """The logits with what is closed at each step set to -inf, in fp32 or wider."""
        closed = torch.tensor([*self.blocked, self.start], device=logits_NV.device)
        open_NV = statistic(logits_NV).index_fill(-1, closed, -torch.inf)
        early = torch.as_tensor(step_N, device=logits_NV.device).expand(len(logits_NV)) < self.floor
        open_NV[:, self.end] = open_NV[:, self.end].masked_fill(early, -torch.inf)
        return open_NV


def in_chunks(function: Callable[..., Tensor], *rows_N: Tensor, chunk: int = 512) -> Tensor:
    """function(*rows) [N, ...], computed `chunk` rows at a time and again in backward.

    So that no more than `chunk` rows of logits exist at once: the function goes from states to numbers.
    """
    pieces = zip(*(rows.split(chunk) for rows in rows_N), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])
    return torch.cat([function(*piece) for piece in pieces])


def entropy(logits_NV: Tensor) -> Tensor:
    """Of the next token, in nats [N]."""
    logp_NV = statistic(logits_NV).log_softmax(-1)
    return -(logp_NV.exp() * logp_NV).sum(-1)


@torch.no_grad()
def thought_rewards(mixed_BKGM: Tensor, base_BKM: Tensor, counted_BKM: Tensor) -> Tensor:
    """r [B, K, G]: sum over the counted true tokens of log p with thought g - log p without, in nats."""
    gain_BKGM = mixed_BKGM - base_BKM[:, :, None]
    return gain_BKGM.masked_fill(~counted_BKM[:, :, None], 0.0).sum(-1)


@torch.no_grad()
def thought_advantages(reward_G: Tensor, baseline: Literal["floored", "plain", "none"] = "floored") -> Tensor:
    """r_g less a baseline that does not depend on thought g [..., G], so the gradient stays unbiased.

    plain: the mean over the other thoughts and an arm without a thought, whose reward is 0: sum of the others
    / G. floored: not below 0, so that a thought that harms (r < 0) is never rewarded for harming less than
    the others. none: no baseline. ValueError where G = 1 has no others to leave one out of.
    """
    group = reward_G.shape[-1]
    if baseline not in ("floored", "plain", "none"):
        raise ValueError(f"baseline={baseline!r}: choices are floored, plain, none")
    if baseline == "none":
        return reward_G.clone()
    if group < 2:
        raise ValueError(
            f"baseline={baseline} leaves one thought out of {group}; draw 2 or more, or use none"
        )
    others_G = (reward_G.sum(-1, keepdim=True) - reward_G) / group
    return reward_G - (others_G.clamp(min=0) if baseline == "floored" else others_G)


def policy_loss(
    logp_NL: Tensor, advantage_N: Tensor, counted_NL: Tensor, limit: int, scale: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """(- sum over thoughts of A / scale * sum of log p of their choices / limit, number of thoughts).

    limit: the longest a thought may be, the same for all: a division by its own length would pay for length.
    scale: a running deviation of advantages, kept by the caller. A thought of no choice does not count.
    """
    chosen_N = logp_NL.masked_fill(~counted_NL, 0.0).sum(1) / limit
    return -(advantage_N.detach() / scale * chosen_N).sum(), counted_NL.any(1).sum()


class Bound(NamedTuple):
    total: Tensor  # - sum over anchors of log mean_g p(true tokens | thought g), with gradient
    weight_BKG: Tensor  # softmax_g of log p, without gradient; less 1 / G, the policy's advantage
    count: Tensor  # anchors with a true token to predict


def multi_sample_bound(mixed_BKGM: Tensor, counted_BKM: Tensor) -> Bound:
    """The bound on the likelihood of the true tokens by G thoughts (IWAE, arXiv 1509.00519, eq. 8).

    In expectation it rises with G towards log p. The alternative to rewards: `total` teaches the prediction,
    and weight - 1 / G in the place of advantages teaches the policy (the self-normalised gradient of log p,
    whose bias falls as 1 / G).
    """
    logp_BKG = statistic(mixed_BKGM).masked_fill(~counted_BKM[:, :, None], 0.0).sum(-1)
    told_BK = counted_BKM.any(-1)
    bound_BK = logp_BKG.logsumexp(-1) - logp_BKG.new_tensor(logp_BKG.shape[-1]).log()
    return Bound(-bound_BK.masked_fill(~told_BK, 0.0).sum(), logp_BKG.detach().softmax(-1), told_BK.sum())


def thought_kl(logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """KL(policy || reference) of each choice [N], exact over the vocabulary.

    Both sets of logits under the same `ThoughtLaw`; the reference has no gradient.
    """
    logp_NV = statistic(logits_NV).log_softmax(-1)
    gap_NV = logp_NV - statistic(reference_NV).detach().log_softmax(-1)
    closed_NV = logp_NV.detach().isneginf()
    return (logp_NV.exp() * gap_NV.masked_fill(closed_NV, 0.0)).sum(-1)


@torch.no_grad()
def context_mean(hidden_BTD: Tensor, real_BT: Tensor, anchor_BK: Tensor) -> Tensor:
    """Mean state of the text up to each anchor [B, K, D]; zero where there is no anchor."""
    total_BTD = (statistic(hidden_BTD) * real_BT[..., None]).cumsum(1)
    count_BT = real_BT.cumsum(1).clamp(min=1)
    row_B1, at_BK = torch.arange(len(anchor_BK), device=anchor_BK.device)[:, None], anchor_BK.clamp(min=0)
    mean_BKD = total_BTD[row_B1, at_BK] / count_BT[row_B1, at_BK][..., None]
    return mean_BKD.masked_fill((anchor_BK < 0)[..., None], 0.0)


@torch.no_grad()
def semantic_score(hidden_NLD: Tensor, counted_NL: Tensor, context_ND: Tensor, centre_D: Tensor) -> Tensor:
    """Cosine of a thought's mean state and its context's, both less a mean of calibration text [N].

    States of the frozen base model. 0 for an empty thought.
    """
    thought_ND = row_mean(statistic(hidden_NLD), counted_NL) - centre_D
    cosine_N = torch.cosine_similarity(thought_ND, statistic(context_ND) - centre_D, dim=-1)
    return cosine_N.masked_fill(~counted_NL.any(1), 0.0)


@torch.no_grad()
def syntactic_score(logp_NL: Tensor, counted_NL: Tensor) -> Tensor:
    """exp(mean log p of a thought's tokens under the frozen base model), in (0, 1]; 0 for an empty one."""
    return row_mean(statistic(logp_NL), counted_NL).exp().masked_fill(~counted_NL.any(1), 0.0)


def composite(scores_C: Tensor, mean_C: Tensor, std_C: Tensor, weights_C: Tensor) -> Tensor:
    """Weighted sum of scores [..., C] -> [...], each standardised by fixed statistics of validation thoughts.

    Raw scales differ too much to be added. A score that never varied adds nothing.
    """
    standard_C = (scores_C - mean_C) / torch.where(std_C > 0, std_C, torch.inf)
    return (standard_C * weights_C).sum(-1)
