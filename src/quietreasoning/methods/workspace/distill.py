"""Latent distillation: what the chain would have said, or what a teacher thought, is what the slots hold.

The workspace that the answer can read is trained towards the chain that is never written: slot j says the
token of gold step j (the slot recipe of arXiv 2606.31779), or comes close to a frozen teacher's states
of that step (implicit chain of thought, arXiv 2311.01460; smooth L1 as in CODI, arXiv 2502.21074).

Shapes: B rows, K slots or steps, S tokens of a step, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quietreasoning.backbone import Backbone, role_of
from quietreasoning.contract import IGNORE, Batch, Role, Term
from quietreasoning.losses.hidden_match import hidden_match
from quietreasoning.losses.language import chunked_next_token
from quietreasoning.methods.supervision import count_targets, step_targets


def targets(batch: Batch, target: str, slots: int, width: int, *, repeat_last: bool) -> Tensor:
    """Ids [B, K]: slot j * width + i says token i of step j; see `step_targets` for those left over."""
    target_BJW = step_targets(batch, target, slots // width, width, repeat_last=repeat_last)
    rows = target_BJW.flatten(1)
    return nn.functional.pad(rows, (0, slots - rows.shape[1]), value=IGNORE)


class Speaker(nn.Module):
    """From a slot to a state that the model's own head can read."""

    def __init__(self, slot_width: int, width: int):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(slot_width), nn.Linear(slot_width, width)

    def forward(self, slots_BKD: Tensor) -> Tensor:
        return self.out(self.norm(slots_BKD.to(self.out.weight.dtype)))


def step_term(
    speaker: Speaker, head_VD: Tensor, slots_BKD: Tensor, target_BK: Tensor, weight: float
) -> tuple[Term, tuple[Tensor, Tensor]]:
    """Cross-entropy of each slot's own token; unit "slot". Inner steps take the place of slots alike."""
    scored = chunked_next_token(speaker(slots_BKD), head_VD, target_BK)
    return Term(scored.total, "slot", weight), (scored.hits.float(), scored.count)


def ponder_term(
    speaker: Speaker, head_VD: Tensor, inner_BTD: Tensor, p_BT: Tensor, answer_B: Tensor, weight: float
) -> Term:
    """sum_t p_t L_t, L_t: how badly inner step t says the answer's first token; unit "sequence".

    PonderNet's own loss (arXiv 2107.05407, eq. 3), but L_t carries no gradient: it teaches the workspace when
    to stop, and leaves what the steps say alone (else all of them are pulled to the answer, and forget).
    """
    logits_BTV = nn.functional.linear(speaker(inner_BTD), head_VD.to(inner_BTD.dtype)).float()
    answer_BT = answer_B[:, None].expand(-1, logits_BTV.shape[1])
    loss_BT = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), answer_BT.flatten(), reduction="none")
    return Term((p_BT * loss_BT.view_as(p_BT).detach()).sum(), "sequence", weight)


class Teacher(nn.Module):
    """A frozen language model that reads prompt and chain; its states, averaged over each step."""

    def __init__(self, backbone: Backbone, slot_width: int):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.project = nn.Linear(slot_width, backbone.width)

    @torch.no_grad()
    def segments(self, batch: Batch, most: int) -> tuple[Tensor, Tensor]:
        """Mean last states of the first `most` steps [B, K, D], and which steps there are [B, K]."""
        steps_BKS = batch.steps_BKS[:, :most]
        ids_BT = torch.cat([batch.prompt_BP, steps_BKS.flatten(1)], 1)
        role_BT = torch.cat(
            [role_of(batch.prompt_BP, Role.PROMPT), role_of(steps_BKS.flatten(1), Role.STEP)], 1
        )
        order_BT = (ids_BT == IGNORE).to(torch.uint8).argsort(dim=1, stable=True)  # no gaps inside the chain
        hidden_BTD = self.backbone(ids_BT.gather(1, order_BT), role_BT.gather(1, order_BT)).hidden_BTD
        back_BT = order_BT.argsort(dim=1)[:, batch.prompt_BP.shape[1] :]
        chain_BTD = hidden_BTD.gather(1, back_BT[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
        chain_BKSD = chain_BTD.unflatten(1, steps_BKS.shape[1:])
        real_BKS1 = (steps_BKS != IGNORE)[..., None]
        total_BKD = (chain_BKSD * real_BKS1).sum(2)
        return total_BKD / real_BKS1.sum(2).clamp(min=1), real_BKS1.any(2)[..., 0]

    def term(self, batch: Batch, slots_BKD: Tensor, weight: float) -> Term:
        """Slot j against step j; unit "taught"."""
        wanted_BKD, there_BK = self.segments(batch, slots_BKD.shape[1])
        own_BKD = self.project(slots_BKD[:, : wanted_BKD.shape[1]].to(self.project.weight.dtype))
        total = hidden_match(own_BKD.flatten(0, 1)[None], wanted_BKD.flatten(0, 1)[None], there_BK.flatten())
        return Term(total, "taught", weight)


def count_taught(batch: Batch, slots: int) -> int:
    return int((batch.steps_BKS[:, :slots] != IGNORE).any(-1).sum())


__all__ = ["Speaker", "Teacher", "count_targets", "count_taught", "step_term", "targets"]
