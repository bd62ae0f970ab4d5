"""Answer at once: prompt, answer prefix, answer. The null method, the baseline and the one to copy."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, role_of
from quietreasoning.contract import Batch, Markers, Role, StepOutput, Term
from quietreasoning.methods.judged import Judged, JudgedConfig
from quietreasoning.methods.sequence import (
    AnswerWeights,
    count_labels,
    read_given,
    score_visible,
    visible_part,
)
from quietreasoning.methods.writing import Ready


class Plain(Judged):
    """Direct answer, no thought. arXiv: none; every paper's "No-CoT" row."""

    controls = ()
    takes_effort = False

    class Config(JudgedConfig):
        name: Literal["plain"] = "plain"
        """Direct answer."""
        weights: AnswerWeights = AnswerWeights()
        """Loss weights."""

    def __init__(self, backbone: Backbone, config: Config, markers: Markers):
        super().__init__(backbone, config, markers)
        self.start_judge()
        self.start_policy()

    def supervised_units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        return {"token": count_labels(batch, self.markers, None)} | self.judge_units(batch)

    def supervised(self, batch: Batch, carry: Any = None) -> StepOutput:
        visible = visible_part(batch, self.markers, None)
        ids_BT = torch.cat([batch.prompt_BP, visible.ids_BT[:, :-1]], 1)
        role_BT = torch.cat([role_of(batch.prompt_BP, Role.PROMPT), visible.role_BT[:, :-1]], 1)
        hidden_BTD = self.backbone(ids_BT, role_BT).hidden_BTD[:, batch.prompt_BP.shape[1] - 1 :]
        total, metrics = score_visible(self.backbone, hidden_BTD, visible)
        judged, measured = self.judge_terms(batch, hidden_BTD)
        terms = {"answer": Term(total, "token", self.config.weights.answer)} | judged
        return StepOutput(terms, metrics | measured)

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        return Ready(read_given(self.backbone, prompt_BP, self.markers))
