"""Answer at once: prompt, answer prefix, answer. The null method, the baseline and the one to copy."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import Tensor

from quietreasoning.backbone import last_hidden, role_of
from quietreasoning.contract import Batch, Method, MethodConfig, Response, Role, StepOutput, Term
from quietreasoning.methods.sequence import (
    AnswerWeights,
    count_labels,
    greedy,
    prefix_ids,
    refuse_control,
    refuse_effort,
    respond,
    score_visible,
    visible_part,
)


class Plain(Method):
    """Direct answer, no thought. arXiv: none; every paper's "No-CoT" row."""

    controls = ()

    class Config(MethodConfig):
        name: Literal["plain"] = "plain"
        """Direct answer."""
        weights: AnswerWeights = AnswerWeights()
        """Loss weights."""

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        return {"token": count_labels(batch, self.markers, None)}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        visible = visible_part(batch, self.markers, None)
        ids_BT = torch.cat([batch.prompt_BP, visible.ids_BT[:, :-1]], 1)
        role_BT = torch.cat([role_of(batch.prompt_BP, Role.PROMPT), visible.role_BT[:, :-1]], 1)
        hidden_BTD = self.backbone(ids_BT, role_BT).hidden_BTD[:, batch.prompt_BP.shape[1] - 1 :]
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
        refuse_control("plain", control, self.controls)
        refuse_effort("plain", effort)
        started = time.perf_counter()
        prefix_BM = prefix_ids(self.markers, len(prompt_BP), prompt_BP.device)
        role_BM = role_of(prefix_BM, Role.MARKER)
        ids_BT = torch.cat([prompt_BP, prefix_BM], 1)
        states = self.backbone(ids_BT, torch.cat([role_of(prompt_BP, Role.PROMPT), role_BM], 1), keep=True)
        rows = greedy(
            self.backbone,
            states.past,
            last_hidden(states),
            max_new_tokens=max_new_tokens,
            eos=self.markers.eos,
        )
        return respond(rows, self.markers, given=True, passes=0, latent_steps=0, started=started)
