"""Methods that may learn from the reward of their own answers instead of from gold ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.contract import Batch, Markers, MethodConfig, StepOutput
from quietreasoning.methods.grpo import GroupPolicy, GroupReward
from quietreasoning.methods.writing import Writer


class RewardedConfig(MethodConfig):
    """Settings of a method that may learn from rewards."""

    name: str
    """Which method."""
    reward: GroupReward | None = Field(None)
    """Learn from the reward of sampled answers (GRPO); null = off. `weights` then count for nothing, unless
    `reward.beside` keeps the loss on gold beside it."""

    @property
    def by_reward_alone(self) -> bool:
        """Whether nothing is learned from gold."""
        return self.reward is not None and not self.reward.beside


class Rewarded(Writer):
    """A writer that is trained by `supervised`, or, where `config.reward` is set, by its own sampled answers,
    or by both (`reward.beside`).

    The thoughts are a deterministic function of the prompt, and `prepare`, called with gradients on, returns
    a cache that carries their graph. So the policy is the model's sampling of an answer given that cache, and
    its log-likelihood has an exact gradient in everything that shaped the thoughts. To take part, a method

    - derives its Config from `RewardedConfig`;
    - calls its training step `supervised` and its counts `supervised_units`, in place of forward and units;
    - ends its `__init__` with `self.start_policy()`, when all parameters are there and those of a frozen
      model have `requires_grad` off: the rest is what the reference copies;
    - builds or enables no parameter that only supervision reaches (a step decoder, a halting head) where
      `config.by_reward_alone`;
    - calls `super().pace(progress)` where it has a pace of its own.

    `prepare` must return `Ready(given=True)`, change no buffer and depend on no other row.
    """

    config: RewardedConfig
    judge: Callable[[Tensor, Tensor], Tensor] | None = None
    """(row_N, tokens_NT) -> what each answer is worth [N] in [0, 1]; given by whoever builds a method whose
    reward is not `exact`. A row is the example's place in its split; tokens keep their end of sequence."""
    slack = ("policy", "kl")  # zero where every group is dropped, and where the policy is the reference

    def __init__(self, backbone: Backbone, config: RewardedConfig, markers: Markers):
        super().__init__(backbone, config, markers)
        self.policy: GroupPolicy | None = None

    def start_policy(self) -> None:
        """Last line of a subclass's `__init__`."""
        if self.config.reward is not None:
            self.policy = GroupPolicy(self, self.config.reward)

    @abstractmethod
    def supervised_units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        """What `supervised` sums over."""

    @abstractmethod
    def supervised(self, batch: Batch, carry: Any = None) -> StepOutput:
        """The training step on gold."""

    @property
    def term_weights(self) -> dict[str, float]:
        if self.policy is None:
            return super().term_weights
        beside = self.config.reward.beside
        gold = {name: beside * weight for name, weight in super().term_weights.items()} if beside else {}
        return gold | self.policy.weights

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        gold = {} if self.config.by_reward_alone else self.supervised_units(batch, carry)
        return gold if self.policy is None else gold | self.policy.units(batch)

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        if self.policy is None:
            return self.supervised(batch, carry)
        drawn = self.policy(self, batch, carry)
        if self.config.by_reward_alone:
            return drawn
        gold, beside = self.supervised(batch), self.config.reward.beside
        terms = {name: replace(term, weight=beside * term.weight) for name, term in gold.terms.items()}
        return StepOutput(terms | drawn.terms, gold.metrics | drawn.metrics, drawn.carry)

    def pace(self, progress: float) -> None:
        super().pace(progress)
        if self.policy is not None:
            self.policy.pace(self, progress)
