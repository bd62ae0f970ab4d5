"""Thoughts at anchors: drawn without a gradient, then read with one, all in one packed pass.

Shapes: B rows, T text columns, K anchors, G thoughts, L steps, M true tokens, D width, V vocabulary, C the
columns of whatever counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quietreasoning.backbone.tree import Branches, read_tree, sample_thoughts
from quietreasoning.contract import IGNORE
from quietreasoning.losses import thoughts as losses
from quietreasoning.losses.policy import token_log_probs
from quietreasoning.methods.thoughts.base import Thinking
from quietreasoning.methods.thoughts.text import Text
from quietreasoning.nn.mixing import gather_thoughts, mix
from quietreasoning.nn.thought_tree import (
    Thoughts,
    ThoughtTree,
    choose_anchors,
    grow_tree,
    keyed_uniforms,
    thought_cap,
)

ANCHORS, WORDS = 0x616E63, 0x776F72  # streams of a row's uniform numbers


@dataclass(frozen=True)
class Reading:
    """One packed pass: what is known of each thought. All but `tree` and `counted` carry gradients."""

    tree: ThoughtTree
    text_BTD: Tensor
    base_BKMD: Tensor
    thought_BKGMD: Tensor
    policy_CD: Tensor  # states that made a choice, row by row
    counted_BKM: Tensor  # true tokens that are learned
    chosen_BKGL: Tensor  # bool: where a choice was made


@torch.no_grad()
def entropies(method: Thinking, text: Text, hidden_BTD: Tensor) -> Tensor:
    """Entropy of the next token [B, T] at the columns that may think; 0 elsewhere."""
    may_BT = text.anchors_BT
    found_C = losses.in_chunks(
        lambda hidden_CD: losses.entropy(method.backbone.logits(hidden_CD)),
        hidden_BTD[may_BT],
        chunk=method.config.chunk,
    )
    return found_C.new_zeros(may_BT.shape).masked_scatter(may_BT, found_C)


@torch.no_grad()
def think(method: Thinking, text: Text, keys_B: Tensor) -> tuple[Tensor, Thoughts, Tensor]:
    """Anchors [B, K], the hardest columns and some drawn evenly, their thoughts, and the entropies [B, T]."""
    config = method.config
    states = method.backbone(text.ids_BT, text.role_BT, keep=True)
    entropy_BT = entropies(method, text, states.hidden_BTD)
    keys_B = keys_B.to(text.ids_BT.device)
    at_K = torch.arange(config.anchors, device=keys_B.device)
    uniforms_BK = keyed_uniforms(keys_B[:, None], ANCHORS, at_K)
    anchor_BK = choose_anchors(
        entropy_BT, text.anchors_BT, config.anchors, config.uniform, config.spacing, uniforms_BK
    ).column_BK
    branches = Branches(
        method.backbone, states.past, anchor_BK, config.thoughts, method.law, method.markers_2D
    )
    return anchor_BK, draw(method, branches, text, anchor_BK, keys_B), entropy_BT


def draw(method: Thinking, branches: Branches, text: Text, anchor_BK: Tensor, keys_B: Tensor) -> Thoughts:
    """Sampled by numbers of the row's key, the anchor's place in its row, the thought and the step."""
    config = method.config
    cap_BK = thought_cap(
        text.length_BT.gather(1, anchor_BK.clamp(min=0)), config.floor, config.cap, config.divisor
    )
    place_BT = (text.ids_BT != IGNORE).cumsum(1)
    place_BK = place_BT.gather(1, anchor_BK.clamp(min=0))
    thought_G1 = torch.arange(config.thoughts, device=keys_B.device)[:, None]
    step_L = torch.arange(config.cap, device=keys_B.device)
    uniforms_BKGL = keyed_uniforms(
        keys_B[:, None, None, None], WORDS, place_BK[..., None, None], thought_G1, step_L
    )
    return sample_thoughts(branches, cap_BK, uniforms_BKGL)


def read(method: Thinking, text: Text, anchor_BK: Tensor, thoughts: Thoughts) -> Reading:
    """The packed pass over texts with their thoughts."""
    law = method.law
    tree = grow_tree(
        text.ids_BT, text.role_BT, anchor_BK, thoughts, talk=method.config.talk, start=law.start, end=law.end
    )
    hidden_BSD = read_tree(method.backbone, tree, method.markers_2D).hidden_BTD
    learned_BK1M = tree.target_BKM.clamp(min=1) - 1  # the column before a token has it as its label
    learned_BKM = text.anchors_BT.gather(1, learned_BK1M.flatten(1)).view_as(tree.target_BKM)
    chosen_BKGL = tree.choice_BKGL != IGNORE
    return Reading(
        tree=tree,
        text_BTD=hidden_BSD[:, : tree.text],
        base_BKMD=tree.bases(hidden_BSD),
        thought_BKGMD=tree.talks(hidden_BSD),
        policy_CD=tree.policy(hidden_BSD)[chosen_BKGL],
        counted_BKM=learned_BKM & (tree.target_BKM >= 0),
        chosen_BKGL=chosen_BKGL,
    )


def true_log_probs(method: Thinking, hidden_XD: Tensor, label_X: Tensor, counted_X: Tensor) -> Tensor:
    """log p of the true tokens [...]; 0 where they do not count."""

    def part(hidden_CD: Tensor, label_C: Tensor) -> Tensor:
        return token_log_probs(method.backbone.logits(hidden_CD), label_C)

    found_C = losses.in_chunks(part, hidden_XD[counted_X], label_X[counted_X], chunk=method.config.chunk)
    return found_C.new_zeros(counted_X.shape).masked_scatter(counted_X, found_C)


def alone(method: Thinking, found: Reading) -> tuple[Tensor, Tensor]:
    """log p [B, K, G, M] of the true tokens with each thought mixed in by itself, and its share."""
    base_BKGMD = found.base_BKMD[:, :, None].expand_as(found.thought_BKGMD)
    share_BKGM = method.mixer.share(base_BKGMD, found.thought_BKGMD)
    mixed_BKGMD = mix(base_BKGMD, found.thought_BKGMD, share_BKGM)
    label_BKGM = found.tree.labels_BKM[:, :, None].expand_as(share_BKGM)
    counted_BKGM = found.counted_BKM[:, :, None].expand_as(share_BKGM)
    return true_log_probs(method, mixed_BKGMD, label_BKGM, counted_BKGM), share_BKGM


def together(method: Thinking, found: Reading, prior_BKG: Tensor) -> tuple[Tensor, Tensor]:
    """log p [B, K, M] of the true tokens with all thoughts of an anchor mixed in, and their share."""
    weight_BKG = method.mixer.weights(found.base_BKMD[:, :, 0], found.thought_BKGMD[:, :, :, 0], prior_BKG)
    thought_BKMGD = found.thought_BKGMD.transpose(2, 3)
    thought_BKMD = gather_thoughts(weight_BKG[:, :, None], thought_BKMGD)
    share_BKM = method.mixer.share(found.base_BKMD, thought_BKMD)
    mixed_BKMD = mix(found.base_BKMD, thought_BKMD, share_BKM)
    return true_log_probs(method, mixed_BKMD, found.tree.labels_BKM, found.counted_BKM), share_BKM


def choices(method: Thinking, found: Reading, known_CD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every choice a thought made [B, K, G, L]: its log p, its log p under the model as the stage found
    it, and the KL of the two laws at that step. known_CD: that model's states. 0 where no choice was made."""
    step_BKGL = torch.arange(found.chosen_BKGL.shape[-1], device=known_CD.device).expand_as(found.chosen_BKGL)

    def part(hidden_CD: Tensor, known_CD: Tensor, choice_C: Tensor, step_C: Tensor) -> Tensor:
        own_CV = method.law.logits(method.backbone.logits(hidden_CD), step_C)
        known_CV = method.as_it_was(lambda: method.backbone.logits(known_CD))
        known_CV = method.law.logits(known_CV, step_C)
        logps = [token_log_probs(logits_CV, choice_C) for logits_CV in (own_CV, known_CV)]
        return torch.stack([*logps, losses.thought_kl(own_CV, known_CV)], 1)

    mask_BKGL = found.chosen_BKGL
    found_C3 = losses.in_chunks(
        part,
        found.policy_CD,
        known_CD,
        found.tree.choice_BKGL[mask_BKGL],
        step_BKGL[mask_BKGL],
        chunk=method.config.chunk,
    )
    return tuple(
        values_C.new_zeros(mask_BKGL.shape).masked_scatter(mask_BKGL, values_C)
        for values_C in found_C3.unbind(1)
    )


@torch.no_grad()
def coherence(
    method: Thinking, found: Reading, known_BSD: Tensor, known_BKGL: Tensor, utility_BKG: Tensor
) -> Tensor:
    """Scores without labels [B, K, G, 3]: semantic, syntactic, expected utility.

    known_BSD: states of the model as the stage found it; known_BKGL: its log p of every choice.
    """
    tree = found.tree
    spoken_BKGL = (tree.choice_BKGL != IGNORE) & (tree.choice_BKGL != method.law.end)
    text_BTD = known_BSD[:, : tree.text]
    context_BKD = losses.context_mean(text_BTD, tree.ids_BS[:, : tree.text] != IGNORE, tree.anchor_BK)
    hidden_BKGLD = tree.thoughts(known_BSD)
    semantic_N = losses.semantic_score(
        hidden_BKGLD.flatten(0, 2),
        spoken_BKGL.flatten(0, 2),
        context_BKD[:, :, None].expand(-1, -1, spoken_BKGL.shape[2], -1).flatten(0, 2),
        method.centre.mean_D(),
    )
    syntactic_N = losses.syntactic_score(known_BKGL.flatten(0, 2), spoken_BKGL.flatten(0, 2))
    shape = spoken_BKGL.shape[:3]
    return torch.stack([semantic_N.view(shape), syntactic_N.view(shape), utility_BKG.to(semantic_N)], -1)
