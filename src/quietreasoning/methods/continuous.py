"""Sequential latent thoughts: the last state, projected, is the next input; nothing is written.

One method, several recipes: Coconut (arXiv 2412.06769: latents replace the first visible steps, stage by
stage), CODI (2502.21074: match the hidden state of a visible-chain path), step supervision (SIM-CoT,
2509.20317: each latent's state says its step). Read `unroll` first.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from quietreasoning.backbone import Backbone, States, last_hidden, role_of
from quietreasoning.config import Settings
from quietreasoning.contract import Batch, Markers, Role, StepOutput, Term
from quietreasoning.losses.hidden_match import hidden_match
from quietreasoning.methods.latent import Thoughts
from quietreasoning.methods.sequence import (
    Visible,
    count_labels,
    read_prompt,
    score_visible,
    visible_part,
)
from quietreasoning.methods.side_heads import Headed, HeadedConfig
from quietreasoning.methods.supervision import (
    count_targets,
    embedding_rms,
    score_decoded,
    score_slots,
    step_targets,
)
from quietreasoning.nn.latents import Feedback, StepDecoder


class ContinuousWeights(Settings):
    answer: float = Field(1.0, ge=0)
    """Cross-entropy of what is visible after the latents: remaining steps and answer."""
    step: float = Field(1.0, ge=0)
    """Cross-entropy of the state behind each step's latent against the step's gold tokens."""
    chain: float = Field(0.0, ge=0)
    """Cross-entropy of the same model on the visible chain (CODI's teacher task)."""
    match: float = Field(0.0, ge=0)
    """Distance to the chain path's states, all layers, at the last token of the answer prefix (CODI)."""


class Continuous(Headed):
    """L latents in sequence, `per_step` of them for each replaced step."""

    class Config(HeadedConfig):
        name: Literal["continuous"] = "continuous"
        """Sequential latent thoughts."""
        latents: int = Field(4, ge=0)
        """L: how many latents stand before the answer; each costs one pass."""
        per_step: int = Field(1, ge=1)
        """Latents a step; the last of them is trained to say the step."""
        lead: int = Field(0, ge=0)
        """Free latents before those of the first step."""
        repeat_last: bool = False
        """Latents beyond the last step say it again; else they are free."""
        visible_from: int | None = Field(None, ge=0)
        """First gold step that stays visible; null = none. Coconut's stage k: k, k * per_step latents."""
        target: Literal["result", "step"] = "result"
        """What a latent says: its step's first result token, or, by an auxiliary decoder, the whole step."""
        weights: ContinuousWeights = ContinuousWeights()
        """Loss weights; a term of weight 0 costs nothing."""

        @model_validator(mode="after")
        def _consistent(self) -> Continuous.Config:
            weights = self.weights
            if self.latents and (self.latents - self.lead) % self.per_step:
                raise ValueError(
                    f"latents {self.latents} less lead {self.lead} must be a multiple of "
                    f"per_step {self.per_step}"
                )
            if not (weights.answer or (weights.step and self.latents)):
                raise ValueError("weights.answer is 0 and no latent says a step, so nothing would be trained")
            if self.reward and self.visible_from is not None:
                raise ValueError("reward needs visible_from=null: it rewards answers, not visible steps")
            if self.lead > self.latents:
                raise ValueError(f"lead {self.lead} must be at most latents {self.latents}")
            if weights.match and not (weights.chain and weights.answer and self.visible_from is None):
                raise ValueError(
                    "weights.match needs weights.chain and weights.answer, and visible_from=null"
                )
            if self.visible_from is not None:
                self.refuse_heads("visible_from", "they read what stands before a given answer prefix")
            if self.halt is not None and self.latents < 2:
                raise ValueError(
                    f"halt needs 2 latents or more to stop between, and latents is {self.latents}"
                )
            return self

    def __init__(self, backbone: Backbone, config: Config, markers: Markers):
        super().__init__(backbone, config, markers)
        self.visible_steps = config.visible_from is not None
        self.feedback = Feedback(backbone.width, embedding_rms(backbone)) if config.latents else None
        said = config.latents and config.target == "step" and config.weights.step
        decodes = said and not config.by_reward_alone
        self.step_decoder = StepDecoder(backbone.width) if decodes else None
        self.start_heads()
        self.start_policy()

    def supervised_units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        weights, counts = self.config.weights, {}
        if weights.answer:
            counts["token"] = count_labels(batch, self.markers, self.config.visible_from)
        if weights.step and self.config.latents:
            counts["step_token"] = count_targets(self._targets(batch))
        if weights.chain:
            counts["chain_token"] = count_labels(batch, self.markers, 0)
        if weights.match:
            counts["sequence"] = len(batch)
        return counts | self.side_units(batch)

    def unroll(self, prompt: States, latents: int) -> tuple[Tensor, Tensor]:
        """Inputs [B, L, D] of the latents and the states [B, L, D] they are projected from.

        The first comes from the last prompt state; every further one costs a pass. The last pass, which
        reads all latents beside the visible tokens, is the caller's: what a latent says must stand in its
        input, since the states it causes in the last layer come too late for the answer to read.
        """
        hidden, past = [last_hidden(prompt)], prompt.past.fork()
        role_B1 = torch.full((len(hidden[0]), 1), int(Role.THOUGHT), device=hidden[0].device)
        inputs = [self.feedback(hidden[0])]
        while len(inputs) < latents:
            states = self.backbone(inputs[-1][:, None], role_B1, past)
            past = states.past
            hidden.append(last_hidden(states))
            inputs.append(self.feedback(hidden[-1]))
        return torch.stack(inputs, 1), torch.stack(hidden, 1)

    def think(self, prompt: States, effort: int | None) -> Thoughts:
        latents = self.config.latents if effort is None else effort
        if latents < 0 or (latents and self.feedback is None):
            raise ValueError(
                f"effort={effort}: continuous takes 0 latents or more, trained with {self.config.latents}"
            )
        if not latents:
            return Thoughts(prompt.hidden_BTD[:, :0], 0 if self.visible_steps else 1, 0)
        if effort is None and self.halt is not None:
            return self.until_halted(prompt, latents, self.feedback)
        thoughts_BLD, hidden_BLD = self.unroll(prompt, latents)
        return Thoughts(thoughts_BLD, latents, latents, hidden_BLD)

    def think_through(self, prompt: States) -> Thoughts:
        """All latents of every row, where `think` may let rows stop apart."""
        return self.think(prompt, self.config.latents)

    def visible(self, batch: Batch) -> Visible:
        return visible_part(batch, self.markers, self.config.visible_from)

    def supervised(self, batch: Batch, carry: Any = None) -> StepOutput:
        weights, latents = self.config.weights, self.config.latents
        prompt = read_prompt(self.backbone, batch.prompt_BP)
        none_B0D = prompt.hidden_BTD[:, :0]
        thoughts_BLD, hidden_BLD = self.unroll(prompt, latents) if latents else (none_B0D, none_B0D)
        terms, metrics, predicting_BTD = {}, {}, None
        if weights.answer:
            visible = self.visible(batch)
            ids_BT, role_BT = visible.ids_BT[:, :-1], visible.role_BT[:, :-1]
            states = self.read(prompt, thoughts_BLD, ids_BT, role_BT, layers=weights.match > 0)
            predicting_BTD = torch.cat([prompt.hidden_BTD[:, -1:], states.hidden_BTD], 1)[:, latents:]
            total, metrics = score_visible(self.backbone, predicting_BTD, visible)
            terms["answer"] = Term(total, "token", weights.answer)
        if weights.step and latents:
            saying_BJD = hidden_BLD[:, self.config.lead + self.config.per_step - 1 :: self.config.per_step]
            total, hits, count = self._score_steps(saying_BJD, self._targets(batch))
            terms["step"] = Term(total, "step_token", weights.step)
            metrics["step_accuracy"] = (hits.float(), count)
        if weights.chain:
            terms |= self._chain_terms(batch, states if weights.match else None)
        if self.side_units(batch):
            found, measured = self.side_terms(batch, prompt, thoughts_BLD, hidden_BLD, predicting_BTD)
            terms, metrics = terms | found, metrics | measured
        return StepOutput(terms, metrics)

    def _targets(self, batch: Batch) -> Tensor:
        steps = max(0, self.config.latents - self.config.lead) // self.config.per_step
        width = batch.steps_BKS.shape[2] if self.config.target == "step" else 1
        return step_targets(batch, self.config.target, steps, width, repeat_last=self.config.repeat_last)

    def _score_steps(self, hidden_BJD: Tensor, target_BJW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.step_decoder is not None:
            return score_decoded(self.backbone, self.step_decoder, hidden_BJD, target_BJW)
        return score_slots(self.backbone, hidden_BJD[:, :, None], target_BJW)

    def _chain_terms(self, batch: Batch, student: States | None) -> dict[str, Term]:
        """The same model on prompt, visible chain and answer; its states are the student's target."""
        weights, visible = self.config.weights, visible_part(batch, self.markers, 0)
        ids_BT = torch.cat([batch.prompt_BP, visible.ids_BT[:, :-1]], 1)
        role_BT = torch.cat([role_of(batch.prompt_BP, Role.PROMPT), visible.role_BT[:, :-1]], 1)
        teacher = self.backbone(ids_BT, role_BT, layers=student is not None)
        start = batch.prompt_BP.shape[1] - 1
        total, _ = score_visible(self.backbone, teacher.hidden_BTD[:, start:], visible)
        terms = {"chain": Term(total, "chain_token", weights.chain)}
        if student is not None:
            is_prefix_BT = role_BT == Role.MARKER
            last_B = is_prefix_BT.shape[1] - 1 - is_prefix_BT.flip(1).to(torch.uint8).argmax(1)
            teacher_LBD = teacher.layers_LBTD[:, torch.arange(len(batch)), last_B]
            student_LBD = student.layers_LBTD[:, :, self.config.latents + len(self.markers.answer_prefix) - 1]
            total = hidden_match(student_LBD, teacher_LBD, is_prefix_BT.any(1))
            terms["match"] = Term(total, "sequence", weights.match)
        return terms
