"""Pause tokens: one learned filler, K times, between prompt and answer (arXiv 2310.02226)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from quietreasoning.backbone import Backbone
from quietreasoning.contract import Batch, Examined, Markers, StepOutput, Term
from quietreasoning.methods.examining import examine_latents
from quietreasoning.methods.judged import Judged, JudgedConfig
from quietreasoning.methods.sequence import (
    AnswerWeights,
    count_labels,
    filler_embedding,
    mixed_inputs,
    read_prompt,
    score_visible,
    visible_part,
)
from quietreasoning.methods.writing import Ready


class Pause(Judged):
    """More positions, no content: the arm that says what extra compute alone is worth."""

    class Config(JudgedConfig):
        name: Literal["pause"] = "pause"
        """Learned fillers."""
        fillers: int = Field(4, ge=0)
        """How many fillers stand before the answer."""
        weights: AnswerWeights = AnswerWeights()
        """Loss weights."""

    def __init__(self, backbone: Backbone, config: Config, markers: Markers):
        super().__init__(backbone, config, markers)
        start_D = filler_embedding(backbone, markers, torch.device("cpu")).detach().float().clone()
        self.filler_D = nn.Parameter(start_D) if config.fillers else None
        self.start_judge()
        self.start_policy()

    def supervised_units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        return {"token": count_labels(batch, self.markers, None)} | self.judge_units(batch)

    def supervised(self, batch: Batch, carry: Any = None) -> StepOutput:
        visible = visible_part(batch, self.markers, None)
        fillers_BKD = self._fillers(len(batch), self.config.fillers)
        inputs, roles = mixed_inputs(
            self.backbone, batch.prompt_BP, fillers_BKD, visible.ids_BT[:, :-1], visible.role_BT[:, :-1]
        )
        hidden_BTD = self.backbone(inputs, roles).hidden_BTD[:, -visible.ids_BT.shape[1] :]
        total, metrics = score_visible(self.backbone, hidden_BTD, visible)
        judged, measured = self.judge_terms(batch, hidden_BTD)
        terms = {"answer": Term(total, "token", self.config.weights.answer)} | judged
        return StepOutput(terms, metrics | measured)

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        number = self.config.fillers if effort is None else effort
        if number < 0 or (number > 0 and self.filler_D is None):
            raise ValueError(
                f"effort={effort}: pause takes 0 fillers or more, and was trained with {self.config.fillers}"
            )
        fillers_BKD = self.corrupted(self._fillers(len(prompt_BP), number), control, prompt_BP)
        inputs, roles = mixed_inputs(self.backbone, prompt_BP, fillers_BKD, *self.prefix(prompt_BP))
        # the fillers are known in advance, so they are read together with the prompt: no extra pass
        return Ready(self.backbone(inputs, roles, keep=True), latent_steps=number)

    @torch.no_grad()
    def examine(self, batch: Batch) -> Examined | None:
        """A filler has no content: what it says is what the model would say in its place."""
        fillers_BKD = self._fillers(len(batch), self.config.fillers)
        if not fillers_BKD.shape[1]:
            return None
        prompt, visible = read_prompt(self.backbone, batch.prompt_BP), visible_part(batch, self.markers, None)
        ids_BT, role_BT = visible.ids_BT[:, :-1], visible.role_BT[:, :-1]

        def states(fillers_BKD: Tensor) -> Tensor:
            inputs, roles = mixed_inputs(self.backbone, None, fillers_BKD, ids_BT, role_BT)
            return self.backbone(inputs, roles, prompt.past.fork()).hidden_BTD

        read_BTD = states(fillers_BKD)
        nothing_BTD = states(self.corrupted(fillers_BKD, "zero", batch.prompt_BP))
        said_BKD = read_BTD[:, : fillers_BKD.shape[1]]
        return examine_latents(self.backbone, self.markers, prompt, said_BKD, visible, read_BTD, nothing_BTD)

    def _fillers(self, rows: int, number: int) -> Tensor:
        if self.filler_D is None:
            return torch.empty(rows, 0, self.backbone.width, device=next(self.parameters()).device)
        return self.filler_D.expand(rows, number, -1)
