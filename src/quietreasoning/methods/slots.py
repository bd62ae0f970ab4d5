"""Parallel latent slots, refined in loops through the model's own layers on the cached prompt.

Every slot starts from the last prompt state. Each loop reads all slots at once, and what a slot's
state says is fed back as its next content; slot j is trained to say step j (the
recipe family of LOTUS, arXiv 2606.31779). Depth costs loops, width is parallel. Read `refine` first.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from quietreasoning.backbone import Backbone, States, last_hidden
from quietreasoning.config import Settings
from quietreasoning.contract import Batch, Markers, Role, StepOutput, Term
from quietreasoning.methods.judged import JudgedConfig
from quietreasoning.methods.latent import LatentMethod, Thoughts
from quietreasoning.methods.sequence import count_labels, read_prompt, score_visible, visible_part
from quietreasoning.methods.supervision import (
    count_targets,
    due_targets,
    embedding_rms,
    score_slots,
    step_targets,
)
from quietreasoning.nn.latents import Feedback


class SlotWeights(Settings):
    answer: float = Field(1.0, ge=0)
    """Cross-entropy of the answer; 0 leaves the last pass without an answer, which is cheaper."""
    step: float = Field(1.0, ge=0)
    """Cross-entropy of each slot against its gold token."""

    @model_validator(mode="after")
    def _trains_something(self) -> SlotWeights:
        if self.answer == 0 and self.step == 0:
            raise ValueError("answer and step are both 0, so nothing would be trained")
        return self


class Slots(LatentMethod):
    """K blocks of `width` slots, R loops."""

    class Config(JudgedConfig):
        name: Literal["slots"] = "slots"
        """Parallel slots, refined in loops."""
        blocks: int = Field(4, ge=0)
        """K: one block a gold step; steps beyond have no slot."""
        width: int = Field(1, ge=1)
        """c: slots in a block; slot i of a block is trained towards token i of its step."""
        loops: int = Field(4, ge=2)
        """R: passes through the model; the last one also reads the answer prefix."""
        target: Literal["result", "step"] = "result"
        """Gold tokens of a block: the step's result, or the whole step; longer ones are cut to `width`."""
        repeat_last: bool = False
        """Blocks beyond the last step say it again; else they are free."""
        supervise: Literal["last", "all", "reached"] = "last"
        """After which loops a block is trained to say its step: the last, all, or from loop j on for block j,
        which is when a chain of one step a loop can first have reached it."""
        attend: Literal["causal", "full"] = "causal"
        """Whether a slot sees the later slots too."""
        weights: SlotWeights = SlotWeights()
        """Loss weights."""

        @model_validator(mode="after")
        def _trains_something(self) -> Slots.Config:
            if not self.weights.answer and not self.blocks:
                raise ValueError("weights.answer is 0 and blocks is 0, so nothing would be trained")
            if self.self_evaluation and not self.weights.answer:
                raise ValueError("self_evaluation judges the answer, and weights.answer is 0; drop it")
            return self

    def __init__(self, backbone: Backbone, config: Config, markers: Markers):
        super().__init__(backbone, config, markers)
        scale = embedding_rms(backbone)
        self.feedback = Feedback(backbone.width, scale) if config.blocks else None
        self.mutual = config.blocks * config.width if config.attend == "full" else 0
        slots = config.blocks * config.width
        self.slot_KD = nn.Parameter(torch.randn(slots, backbone.width) * scale) if slots else None
        self.start_judge()
        self.start_policy()

    def supervised_units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        counts = {}
        if self.config.weights.answer:
            counts["token"] = count_labels(batch, self.markers, None)
        if self.config.weights.step and self.config.blocks:
            counts["slot"] = sum(map(count_targets, self._targets(batch)))
        return counts | self.judge_units(batch)

    def refine(self, prompt: States, loops: int) -> tuple[Tensor, list[Tensor]]:
        """Contents [B, K, D] of the slots as they enter loop `loops`, and the states after each loop before.

        The last loop reads the visible tokens too and is the caller's: what a slot says must stand in its
        content, since the states of the last layer come too late for the answer to read.
        """
        content_BKD = self.feedback(last_hidden(prompt))[:, None] + self.slot_KD
        role_BK = torch.full(content_BKD.shape[:2], int(Role.THOUGHT), device=content_BKD.device)
        hidden = []
        for _ in range(loops - 1):
            past = prompt.past.fork()
            hidden.append(self.backbone(content_BKD, role_BK, past, mutual=self.mutual).hidden_BTD)
            content_BKD = self.feedback(hidden[-1]) + self.slot_KD
        return content_BKD, hidden

    def think(self, prompt: States, effort: int | None) -> Thoughts:
        loops = self.config.loops if effort is None else effort
        if loops < 1:
            raise ValueError(f"effort={effort}: slots need at least 1 loop")
        if self.slot_KD is None:
            return Thoughts(prompt.hidden_BTD[:, :0], 1, 0)
        content_BKD, hidden = self.refine(prompt, loops)
        return Thoughts(content_BKD, loops, len(self.slot_KD) * loops, hidden[-1] if hidden else None)

    def supervised(self, batch: Batch, carry: Any = None) -> StepOutput:
        weights, slots = self.config.weights, self.config.blocks * self.config.width
        prompt = read_prompt(self.backbone, batch.prompt_BP)
        content_BKD, hidden = prompt.hidden_BTD[:, :0], []
        if slots:
            content_BKD, hidden = self.refine(prompt, self.config.loops)
        terms, metrics = {}, {}
        if weights.answer:
            visible = visible_part(batch, self.markers, None)
            states = self.read(prompt, content_BKD, visible.ids_BT[:, :-1], visible.role_BT[:, :-1])
            predicting_BTD = torch.cat([prompt.hidden_BTD[:, -1:], states.hidden_BTD], 1)[:, slots:]
            total, metrics = score_visible(self.backbone, predicting_BTD, visible)
            terms["answer"] = Term(total, "token", weights.answer)
            judged, measured = self.judge_terms(batch, predicting_BTD)
            terms, metrics = terms | judged, metrics | measured
        if weights.step and slots:
            terms["step"], metrics["step_accuracy"] = self._step_term(batch, hidden)
        return StepOutput(terms, metrics)

    def _targets(self, batch: Batch) -> list[Tensor]:
        """Ids [B, blocks, width] for the states after each loop but the last; IGNORE where none is due."""
        config = self.config
        target_BJW = step_targets(
            batch, config.target, config.blocks, config.width, repeat_last=config.repeat_last
        )
        return due_targets(batch, target_BJW, config.supervise, config.loops - 1)

    def _step_term(self, batch: Batch, hidden: list[Tensor]) -> tuple[Term, tuple[Tensor, Tensor]]:
        scores = [
            score_slots(self.backbone, hidden_BKD, target_BJW.flatten(1))
            for hidden_BKD, target_BJW in zip(hidden, self._targets(batch), strict=True)
        ]
        total = torch.stack([score[0] for score in scores]).sum()
        return Term(total, "slot", self.config.weights.step), (scores[-1][1].float(), scores[-1][2])
