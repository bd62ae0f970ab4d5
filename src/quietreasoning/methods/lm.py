"""Predict every next token: how a small language model is made, of running text or of whole solutions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from quietreasoning.config import Settings
from quietreasoning.contract import IGNORE, Batch, MethodConfig, StepOutput, Term
from quietreasoning.losses.next_token import next_token
from quietreasoning.methods.sequence import read_prompt
from quietreasoning.methods.whole import next_labels, whole
from quietreasoning.methods.writing import Ready, Writer


class TextWeights(Settings):
    lm: float = Field(1.0, gt=0)
    """Cross-entropy of every token but the first of a row."""


class LanguageModel(Writer):
    """Pretraining at laptop size: the prompt is learned too. It writes on, a chain first if it has learned
    chains."""

    controls = ()
    takes_effort = False
    reads_text = True

    class Config(MethodConfig):
        name: Literal["lm"] = "lm"
        """Next token of everything."""
        weights: TextWeights = TextWeights()
        """Loss weights."""

    @property
    def learns_prompt(self) -> bool:
        return True

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        return {"token": int((next_labels(whole(batch, self.markers)[0]) != IGNORE).sum())}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        ids_BT, role_BT = whole(batch, self.markers)
        labels_BT = next_labels(ids_BT)
        hidden_ND = self.backbone(ids_BT, role_BT).hidden_BTD[labels_BT != IGNORE]
        labels_N = labels_BT[labels_BT != IGNORE]
        total, hits, count = next_token(self.backbone.logits(hidden_ND), labels_N)
        metrics = {"token_accuracy": (hits.float(), count)}
        return StepOutput({"lm": Term(total, "token", self.config.weights.lm)}, metrics)

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        return Ready(read_prompt(self.backbone, prompt_BP), given=False)
