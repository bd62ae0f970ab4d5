"""`method.*` of the recursion family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.methods.rewarded import RewardedConfig
from quietreasoning.nn.recursion import RecursionConfig


class Cell(Settings):
    """The small network that is evaluated again and again (arXiv 2510.04871)."""

    width: int = Field(256, ge=2)
    """D: width of its states."""
    layers: int = Field(2, ge=1)
    """Layers of the network."""
    heads: int = Field(4, ge=1)
    """Attention heads."""
    latent_steps: int = Field(6, ge=0)
    """n: evaluations z <- f(z + y + x) in a round; 0: y <- f(z + y + x) alone, a plain network."""
    rounds: int = Field(3, ge=1)
    """T: rounds in a supervision step; only the last one has a gradient."""
    mode: Literal["slots", "full"] = "slots"
    """slots: the slots alone are updated and read the context; full: context and slots are, all of them."""
    style: Literal["paper", "plain"] = "paper"
    """Blocks of the paper (norm after, SwiGLU, no bias), or norm before, GELU and biases."""
    mixer: Literal["attention", "mlp"] = "attention"
    """How positions hear each other; mlp needs a fixed number of them."""
    context: int | None = Field(None, ge=1)
    """Longest prompt; needed with mode=full and mixer=mlp."""
    rope: bool = True
    """Rotary positions; without them the order of the context is invisible to attention."""

    def build(self, context_width: int, outputs: int, slots: int) -> RecursionConfig:
        """The sizes of a reasoner; ValueError where they do not fit."""
        return RecursionConfig(context_width=context_width, outputs=outputs, slots=slots, **self.model_dump())

    @model_validator(mode="after")
    def _fits(self) -> Cell:
        self.build(1, 1, 1)
        return self


class RecursionWeights(Settings):
    """0 leaves a loss out, and it then costs nothing. Each is summed over the supervised steps."""

    answer: float = Field(1.0, ge=0)
    """Cross-entropy of the answer, said by the frozen model after the soft tokens."""
    step: float = Field(0.0, ge=0)
    """Cross-entropy of each slot's gold token, read by the frozen model's head."""
    match: float = Field(0.0, ge=0)
    """Distance of the last slot to the state behind the visible chain (the plan of the seed)."""
    halt: float = Field(0.0, ge=0)
    """How well the halting head knows that the row is done."""


class RecursionSettings(RewardedConfig):
    """Settings of one stage."""

    name: Literal["recursion"] = "recursion"
    """A recursive reasoner on a frozen language model."""
    layers: tuple[int | str, ...] | None = None
    """States of which layers the reasoner reads (an index, pre_norm, last); null = the middle one and the
    last before the final norm."""
    compressor: str | None = None
    """Folder with a compressor file a layer, as recursion/compressor leaves it; null = states as they are."""
    d_compressed: int | None = Field(None, ge=1)
    """Directions that are read of each compressor; null = all it holds."""
    blocks: int = Field(4, ge=1)
    """Blocks of slots: one a gold step where weights.step says so."""
    width: int = Field(1, ge=1)
    """Slots in a block; slot i of a block is trained towards token i of its step."""
    cell: Cell = Cell()
    """The reasoner."""
    steps: int = Field(4, ge=1)
    """N_sup: supervision steps, each with its own loss; y and z cross them without a graph."""
    inject: Literal["mixture", "affine"] = "mixture"
    """Soft tokens: a mixture of the model's own embeddings, or a learned map of the right length."""
    supervise: Literal["all", "last", "reached"] = "all"
    """After which supervision steps the losses are taken; reached: all, but a gold step is asked for from its
    own number on, which is when a reasoner of one step a supervision step can first have found it, and an
    answer once the last one of its row is."""
    align: Literal["first", "last"] = "first"
    """Which gold step stands in its place whatever their number: the first in the first block, or the last in
    the last block, right before the answer."""
    target: Literal["result", "step"] = "result"
    """Gold tokens of a block: the step's result, or the whole step; longer ones are cut to `width`."""
    per_step_updates: bool = False
    """One supervision step is one optimizer step (arXiv 2510.04871): a row keeps y and z, and makes place for
    a new one after its last step or when its halting head is sure. Else all steps are one optimizer step."""
    repeat_last: bool = True
    """Blocks beyond the last step say it again; else they are free."""
    halting: Literal["right", "near", "above"] = "right"
    """What done means: the answer is exactly right; the cosine of the last slot to the chain's state; or that
    this cosine is above a threshold which follows its mean."""
    threshold: float = Field(0.7, gt=0, lt=1)
    """halting=above: the cosine that counts as done in the first epoch."""
    epochs: int = Field(10, ge=1)
    """halting=above: how often in the stage the threshold is set anew, to 0.95 of the mean cosine."""
    halt_cut: float | None = Field(None, ge=0, lt=1)
    """Answering: a row stops once its halting probability passes this; null = all steps, always."""
    blind: bool = False
    """A control: the reasoner reads nothing, so its soft tokens are learned constants."""
    weights: RecursionWeights = RecursionWeights()
    """Loss weights."""

    @property
    def slots(self) -> int:
        return self.blocks * self.width

    @model_validator(mode="after")
    def _consistent(self) -> RecursionSettings:
        w = self.weights
        if not (w.answer or w.step or w.match or w.halt):
            raise ValueError("all weights are 0, so nothing would be trained")
        if self.d_compressed is not None and self.compressor is None:
            raise ValueError("d_compressed has no effect without compressor")
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty: name at least one, or null for the default")
        if self.halting != "above":
            for name in ("threshold", "epochs"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect with halting={self.halting}")
        if self.per_step_updates:
            wrong = {"cell.mode": self.cell.mode == "full", "supervise": self.supervise == "last"}
            wrong["reward"] = self.reward is not None
            for name in (name for name, is_wrong in wrong.items() if is_wrong):
                raise ValueError(
                    f"per_step_updates carries the slots and learns from gold after every step, which {name} "
                    "contradicts; set cell.mode=slots, supervise=all or reached, reward=null"
                )
        for name in ("compressor", "layers"):
            if self.blind and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with blind=true: nothing is read")
        return self
