"""When a stage that trains for integers computes in them: a rule of its budget alone.

Training, evaluation and whoever opens a checkpoint ask the same rule, so that all see the same model, also
after a resume.
"""

from __future__ import annotations

from quietreasoning.contract import Method
from quietreasoning.nn.fake_quant import switch
from quietreasoning.train.settings import TrainConfig


def due(config: TrainConfig, step: int, tokens: int) -> bool:
    """Whether layers compute in integers once `step` steps and `tokens` tokens of the stage are done."""
    if config.quant is None:
        return False
    done, whole = (step, config.steps) if config.tokens is None else (tokens, config.tokens)
    return done >= config.quant.start * whole - 1e-9 * whole  # .7 x 10 is a little more than 7


def follow(method: Method, config: TrainConfig, step: int, tokens: int) -> float:
    """Set the layers of `method`'s backbone by that rule; what the learning rate is multiplied by."""
    if config.quant is None:
        return 1.0
    on = due(config, step, tokens)
    switch(method.backbone, on)
    return config.quant.lr_multiplier if on else 1.0
