"""Pause tokens: one learned filler, K times, between prompt and answer (arXiv 2310.02226)."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from quietreasoning.backbone import Backbone, last_hidden, role_of
from quietreasoning.contract import Batch, Markers, Method, MethodConfig, Response, Role, StepOutput, Term
from quietreasoning.methods.sequence import (
    AnswerWeights,
    count_labels,
    filler_embedding,
    greedy,
    mixed_inputs,
    prefix_ids,
    refuse_control,
    respond,
    row_seeds,
    score_visible,
    visible_part,
)
from quietreasoning.nn.corrupt import corrupt


class Pause(Method):
    """More positions, no content: the arm that says what extra compute alone is worth."""

    class Config(MethodConfig):
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

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        return {"token": count_labels(batch, self.markers, None)}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        visible = visible_part(batch, self.markers, None)
        fillers_BKD = self._fillers(len(batch), self.config.fillers)
        inputs, roles = mixed_inputs(
            self.backbone, batch.prompt_BP, fillers_BKD, visible.ids_BT[:, :-1], visible.role_BT[:, :-1]
        )
        hidden_BTD = self.backbone(inputs, roles).hidden_BTD[:, -visible.ids_BT.shape[1] :]
        total, metrics = score_visible(self.backbone, hidden_BTD, visible)
        return StepOutput({"answer": Term(total, "token", self.config.weights.answer)}, metrics)

    @torch.no_grad()
    def generate(
        self,
        prompt_BP: Tensor,
        *,
        max_new_tokens: int,
        control: str | None = None,
        effort: int | None = None,
    ) -> Response:
        refuse_control("pause", control, self.controls)
        number = self.config.fillers if effort is None else effort
        if number < 0 or (number > 0 and self.filler_D is None):
            raise ValueError(
                f"effort={effort}: pause takes 0 fillers or more, and was trained with {self.config.fillers}"
            )
        started = time.perf_counter()
        fillers_BKD = self._fillers(len(prompt_BP), number)
        if control is not None:
            filler_D = filler_embedding(self.backbone, self.markers, prompt_BP.device)
            fillers_BKD = corrupt(fillers_BKD, control, filler_D, row_seeds(prompt_BP))
        prefix_BM = prefix_ids(self.markers, len(prompt_BP), prompt_BP.device)
        role_BM = role_of(prefix_BM, Role.MARKER)
        inputs, roles = mixed_inputs(self.backbone, prompt_BP, fillers_BKD, prefix_BM, role_BM)
        states = self.backbone(inputs, roles, keep=True)
        rows = greedy(
            self.backbone,
            states.past,
            last_hidden(states),
            max_new_tokens=max_new_tokens,
            eos=self.markers.eos,
        )
        # the fillers are known in advance, so they are read together with the prompt: no extra pass
        return respond(rows, self.markers, given=True, passes=0, latent_steps=number, started=started)

    def _fillers(self, rows: int, number: int) -> Tensor:
        if self.filler_D is None:
            return torch.empty(rows, 0, self.backbone.width, device=next(self.parameters()).device)
        return self.filler_D.expand(rows, number, -1)
