"""`optim.*` in a recipe: the optimizer, its schedule, clipping and averaging."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.config import Settings


class MuonConfig(Settings):
    """How Muon steps (docs/optimizers.md); its momentum is the first of `betas`."""

    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """match_rms_adamw: 0.2 sqrt(longer side), so that elements move as far as AdamW's and share its rate;
    original: sqrt(max(1, rows / columns))."""
    nesterov: bool = True
    """Look ahead by Nesterov's rule."""
    iterations: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz iterations."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the iterations; bf16 is torch's own and slow on a CPU without bf16 products."""


class GrokfastConfig(Settings):
    """Amplifies the slow part of each gradient (arXiv 2405.20233); see docs/optimizers.md."""

    decay: float | None = Field(default=None, gt=0, lt=1)
    """Of the running mean of gradients; null = 1 - 10 / train.steps in [0.8, 0.99], or 0.98 where the stage
    is measured in tokens."""
    strength: float = Field(default=2.0, gt=0)
    """Share of that mean added to the gradient; the paper's choices lie between 0.1 and 5."""


class QkClipConfig(Settings):
    """Limits attention logits by shrinking query and key weights (arXiv 2507.20534)."""

    tau: float = Field(default=100.0, gt=0)
    """Largest attention logit of a head; for a head that begins above it, where it begins."""


class OptimConfig(Settings):
    """One stage's optimizer; each stage starts it fresh."""

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    """adamw; muon (matrices of hidden linear layers by Muon, the rest by AdamW); sgd (plain momentum). Memory
    tables always get row-wise Adam, which updates and decays nothing but the rows that were read."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    lr_scale: dict[str, float] = {}
    """Module prefix -> factor on the learning rate; the longest prefix that fits wins."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two averages; the first is also the momentum of muon and sgd, the second is row-wise Adam's."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decay of tensors with two or more dimensions; biases, norms and scalars get none."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    """Shape of the learning rate after warm-up; wsd is warm-up, stable, decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """Last share of the stage in which wsd decays, linearly."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end of the schedule, as a share of the peak."""
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of the weights; 0 keeps none. With one, evaluation uses the average and
    the stage hands it on."""
    muon: MuonConfig | None = None
    """How muon steps; null = its defaults."""
    grokfast: GrokfastConfig | None = None
    """Filter gradients by Grokfast before the optimizer, whichever it is; null does not."""
    qk_clip: QkClipConfig | None = None
    """Limit the attention logits of the backbone after each step; null does not."""

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> OptimConfig:
        if self.muon is not None and self.name != "muon":
            raise ValueError(f"muon has no effect with name={self.name}; set optim.name=muon")
        return self
