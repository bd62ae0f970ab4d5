"""Thoughts laid open: what each says, what the model would have said there, how it scores, what it is worth.

Anchors and thoughts as in training; nothing is learned. Shapes: B rows, K anchors, G thoughts, L steps, N
anchors of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.backbone.tree import Branches, read_tree
from quietreasoning.contract import Batch, Examined, Role
from quietreasoning.losses import thoughts as losses
from quietreasoning.methods.examining import continued
from quietreasoning.methods.grpo import still
from quietreasoning.methods.thoughts import reading
from quietreasoning.methods.thoughts.base import Thinking
from quietreasoning.methods.thoughts.reading import Reading
from quietreasoning.methods.thoughts.text import Text, text_of


@torch.no_grad()
def examine(method: Thinking, batch: Batch) -> Examined:
    """One entry a thought that has true tokens after it.

    score: the composite without labels that shares an anchor out; plain_score: without the expected utility.
    utility: the reward of the thought alone.
    """
    text = text_of(batch, method.markers, visible=method.config.visible)
    with still(method):
        anchor_BK, thoughts, _ = reading.think(method, text, batch.keys_B)
        found = reading.read(method, text, anchor_BK, thoughts)
        utility_BKG, scores_BKG3 = worth(method, found)
        longest = int(thoughts.length_BKG.max())
        plain_BKL = continuation(method, text, anchor_BK, longest)
    plain_scores_BKG3 = scores_BKG3.clone()
    plain_scores_BKG3[..., 2] = method.running.mean_C()[3].to(scores_BKG3)  # standardised: nothing
    told_BK = found.counted_BKM.any(-1)
    at = [tuple(place) for place in told_BK[..., None].expand_as(utility_BKG).nonzero().tolist()]
    length, ids, plain = thoughts.length_BKG.tolist(), thoughts.ids_BKGL.tolist(), plain_BKL.tolist()
    counts = [length[b][k][g] for b, k, g in at]
    return Examined(
        row=[b for b, _, _ in at],
        tokens=[ids[b][k][g][:count] for (b, k, g), count in zip(at, counts, strict=True)],
        continuation=[plain[b][k][:count] for (b, k, _), count in zip(at, counts, strict=True)],
        score=_listed(method.prior(scores_BKG3), told_BK),
        utility=_listed(utility_BKG, told_BK),
        plain_score=_listed(method.prior(plain_scores_BKG3), told_BK),
    )


def worth(method: Thinking, found: Reading) -> tuple[Tensor, Tensor]:
    """Nats that each thought adds by itself [B, K, G], and its scores without labels [B, K, G, 3]."""
    known_BSD = method.as_it_was(lambda: read_tree(method.backbone, found.tree, method.markers_2D)).hidden_BTD
    _, known_BKGL, _ = reading.choices(method, found, found.tree.policy(known_BSD)[found.chosen_BKGL])
    base_BKM = reading.true_log_probs(method, found.base_BKMD, found.tree.labels_BKM, found.counted_BKM)
    own_BKGM, _ = reading.alone(method, found)
    expected_BKG = method.expected_utility(found.base_BKMD[:, :, 0], found.thought_BKGMD[:, :, :, 0])
    scores_BKG3 = reading.coherence(method, found, known_BSD, known_BKGL, expected_BKG)
    return losses.thought_rewards(own_BKGM, base_BKM, found.counted_BKM), scores_BKG3


def continuation(method: Thinking, text: Text, anchor_BN: Tensor, length: int) -> Tensor:
    """What the model says after each anchor without a thought, greedily [B, N, L]."""
    states = method.backbone(text.ids_BT, text.role_BT, keep=True)
    branches = Branches(method.backbone, states.past, anchor_BN, 1, method.law)
    row_B1 = torch.arange(len(anchor_BN), device=anchor_BN.device)[:, None]
    first_BND = states.hidden_BTD[row_B1, anchor_BN.clamp(min=0)]

    def step(token_BN: Tensor) -> Tensor:
        return branches.step(token_BN, role=Role.STEP)

    return continued(method.backbone, method.markers, first_BND, step, length)


def _listed(values_BKG: Tensor, told_BK: Tensor) -> list[float]:
    return values_BKG[told_BK].flatten().tolist()
