"""`method.*` of the hidden thoughts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.contract import MethodConfig


class ThoughtWeights(Settings):
    text: float = Field(0.5, ge=0)
    """Cross-entropy of the text as the model says it without thoughts."""
    mix: float = Field(0.5, ge=0)
    """Cross-entropy of the tokens after each anchor, with all its thoughts mixed in."""
    policy: float = Field(1.0, ge=0)
    """What makes thoughts likelier that helped; 0: thoughts are never chosen better."""
    kl: float = Field(0.1, ge=0)
    """Distance of the thoughts' law to the model as this stage found it."""
    utility: float = Field(0.1, ge=0)
    """Huber's error of the head that predicts, without the text to come, how much a thought helps."""

    @model_validator(mode="after")
    def _something_learns(self) -> ThoughtWeights:
        if not (self.text or self.mix or self.policy):
            raise ValueError("weights.text, mix and policy are all 0, so nothing would be learned")
        return self


class Coherence(Settings):
    """Weights of the scores without labels that share an anchor out among its thoughts."""

    semantic: float = Field(0.4, ge=0)
    """Cosine of the thought's and the context's mean state, under the model as this stage found it."""
    syntactic: float = Field(0.3, ge=0)
    """Geometric mean of its tokens' probability, under the same."""
    predictive: float = Field(0.3, ge=0)
    """How much the utility head expects it to help."""


class ThinkerConfig(MethodConfig):
    name: Literal["thoughts"] = "thoughts"
    """Hidden thoughts (Quiet-STaR)."""
    anchors: int = Field(16, ge=1)
    """K: positions of a row that think in training."""
    uniform: float = Field(0.25, ge=0, le=1)
    """Share of the anchors drawn evenly; the rest are where the next token is least certain."""
    spacing: int = Field(4, ge=1)
    """Least distance between two anchors of a row."""
    thoughts: int = Field(4, ge=1)
    """G: thoughts at an anchor."""
    talk: int = Field(4, ge=1)
    """M: true tokens after an anchor that a thought is judged by, and may serve when the model writes."""
    floor: int = Field(10, ge=1)
    """Least room for a thought, in tokens."""
    cap: int = Field(20, ge=1)
    """Most tokens of a thought: min(cap, max(floor, length / divisor)), where length is the tokens of the
    question, or of running text up to the anchor."""
    divisor: int = Field(5, ge=1)
    """Tokens of the question for each token of a thought."""
    least: int = Field(0, ge=0)
    """Tokens before a thought may end by itself."""
    baseline: Literal["floored", "plain", "none"] = "floored"
    """What a thought's reward is held against: the mean of the others and of no thought, not below 0; the
    same as it is; nothing."""
    objective: Literal["reward", "bound"] = "reward"
    """REINFORCE on the reward, or the bound on the likelihood by all thoughts of an anchor (IWAE)."""
    visible: bool = False
    """Whether the gold steps of a question are part of the text that is learned."""
    gate: float = -4.0
    """Where the mixing gate begins: a thought's share is the sigmoid of it."""
    sampled: bool = False
    """Draw G thoughts where the model thinks when it writes; false: one, of the likeliest tokens."""
    static: bool = False
    """Make room for a thought beforehand when the model writes: every step then has the same shapes, as
    compiled decoding wants, and reads more columns."""
    hard: float = Field(0.2, gt=0, le=1)
    """Share of the tokens, the least certain ones, before which the model thinks when it writes."""
    coherence: Coherence = Coherence()
    """What shares an anchor out among its thoughts, beside a learned score."""
    chunk: int = Field(512, ge=1)
    """Positions whose logits are held at a time."""
    weights: ThoughtWeights = ThoughtWeights()
    """Loss weights."""

    @model_validator(mode="after")
    def _lengths_and_baseline_fit(self) -> ThinkerConfig:
        if self.floor > self.cap or self.least > self.floor:
            raise ValueError(
                f"least={self.least}, floor={self.floor}, cap={self.cap}: must not fall; a thought of "
                "`least` tokens has to fit into `floor`, and that into `cap`"
            )
        if self.thoughts < 2 and self.baseline != "none" and self.objective == "reward":
            raise ValueError(
                f"baseline={self.baseline} leaves one thought out, which needs thoughts >= 2; set thoughts=2 "
                "or more, or baseline=none"
            )
        if self.coherence.predictive and not self.weights.utility:
            raise ValueError(
                "coherence.predictive weighs a head that weights.utility=0 never trains; set it to 0 too"
            )
        if self.objective == "bound" and self.baseline != "floored":
            raise ValueError("baseline has no effect with objective=bound; drop it")
        return self
