"""Methods that say with each answer how likely it is right, before it is written, and without a pass for it.

Shapes: B rows, T visible tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from quietreasoning.backbone import Backbone, last_hidden
from quietreasoning.contract import Batch, Markers, Permit, Term
from quietreasoning.methods.rewarded import Rewarded, RewardedConfig
from quietreasoning.methods.self_evaluation import (
    SelfEvaluationSettings,
    answer_outcome,
    self_evaluation_term,
)
from quietreasoning.methods.sequence import visible_part
from quietreasoning.methods.writing import Ready
from quietreasoning.nn.side_heads import SelfEvaluationHead


class JudgedConfig(RewardedConfig):
    """Settings of a method that may have a head beside its answers."""

    HEADS: ClassVar[tuple[str, ...]] = ("self_evaluation",)

    name: str
    """Which method."""
    self_evaluation: SelfEvaluationSettings | None = Field(None)
    """Say with each answer how likely it is right; null = say nothing."""

    @model_validator(mode="after")
    def _heads_learn_from_gold(self) -> JudgedConfig:
        if self.reward is not None:
            self.refuse_heads("reward", "they learn from gold answers")
        return self

    def refuse_heads(self, other: str, reason: str) -> None:
        """ValueError where a head is on beside a setting that it cannot stand beside."""
        for name in self.HEADS:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} and {other} exclude each other: {reason}. Set one of them to null")

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Heads that are off are not named: recipes of runs without them stay what they were."""
        heads = self.HEADS
        return {name: value for name, value in plain(self).items() if value is not None or name not in heads}


class Judged(Rewarded):
    """A writer that may judge its own answer at the end of a given answer prefix, where nothing is said yet.

    A subclass calls `start_judge` at the end of its `__init__`, before `start_policy`; adds `judge_units` to
    its units, and `judge_terms` to the terms of its supervised step.
    """

    config: JudgedConfig

    def __init__(self, backbone: Backbone, config: RewardedConfig, markers: Markers):
        super().__init__(backbone, config, markers)
        self.self_evaluation: SelfEvaluationHead | None = None

    def start_judge(self) -> None:
        """Build the head, if one is configured."""
        if (judge := self.config.self_evaluation) is not None:
            self.self_evaluation = SelfEvaluationHead(self.backbone.width)
            self.self_evaluation.requires_grad_(judge.weight > 0)

    @property
    def judges(self) -> bool:
        """Whether the head learns."""
        return self.self_evaluation is not None and self.config.self_evaluation.weight > 0

    @property
    def term_weights(self) -> dict[str, float]:
        head = self.self_evaluation
        weight = {} if head is None else {"self_evaluation": self.config.self_evaluation.weight}
        return super().term_weights | weight

    def judge_units(self, batch: Batch) -> dict[str, int]:
        """What `judge_terms` sums over."""
        return {"sequence": len(batch)} if self.judges else {}

    def judge_terms(
        self, batch: Batch, predicting_BTD: Tensor
    ) -> tuple[dict[str, Term], dict[str, tuple[Tensor, Tensor]]]:
        """The head's term; empty where it does not learn.

        predicting_BTD: column i predicts visible token i, of answer prefix and answer.
        """
        if not self.judges:
            return {}, {}
        labels_BT = visible_part(batch, self.markers, None).labels_BT
        _, right_B = answer_outcome(self.backbone, predicting_BTD, labels_BT)
        z_B = self.self_evaluation(predicting_BTD[:, len(self.markers.answer_prefix)])
        term, metrics = self_evaluation_term(
            z_B[:, None], right_B[:, None], self.config.self_evaluation.weight
        )
        return {"self_evaluation": term}, metrics

    def say(
        self,
        prompt_BP: Tensor,
        control: str | None,
        effort: int | None,
        limit: int,
        permit: Permit | None = None,
    ) -> tuple[list[list[int]], Ready]:
        rows, ready = super().say(prompt_BP, control, effort, limit, permit)
        if self.self_evaluation is None:
            return rows, ready
        sure_B = self.self_evaluation(last_hidden(ready.states)).float().sigmoid()
        return rows, replace(ready, confidence=sure_B.tolist())
