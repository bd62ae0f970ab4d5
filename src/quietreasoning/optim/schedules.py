"""Learning-rate factors in [0, 1], a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable

from quietreasoning.optim.settings import OptimConfig


def constant(progress: float, config: OptimConfig) -> float:
    return 1.0


def linear(progress: float, config: OptimConfig) -> float:
    return 1.0 - (1.0 - config.min_lr_ratio) * progress


def cosine(progress: float, config: OptimConfig) -> float:
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def wsd(progress: float, config: OptimConfig) -> float:
    """Warm-up, stable, decay (MiniCPM, arXiv 2404.06395), with a linear decay."""
    into_decay = max(0.0, progress - (1.0 - config.decay_fraction)) / config.decay_fraction
    return 1.0 - (1.0 - config.min_lr_ratio) * into_decay


SCHEDULES: dict[str, Callable[[float, OptimConfig], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
}


def lr_factor(config: OptimConfig, step: int, progress: float) -> float:
    """Factor on the peak learning rate for the update after `step` updates of the stage.

    progress: share of the budget after warm-up that is spent, in [0, 1].
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warmup * SCHEDULES[config.schedule](min(1.0, max(0.0, progress)), config)
