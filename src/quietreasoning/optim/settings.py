"""`optim.*` in a recipe: the optimizer, its schedule, clipping and averaging."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quietreasoning.config import Settings


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
