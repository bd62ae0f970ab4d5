"""What a recipe will take, before anything is trained."""

from quietreasoning.planning.figures import (
    DEVICES,
    count,
    estimate,
    held_bytes,
    meta_method,
    sample_batch,
    tokens_a_step,
)

__all__ = [
    "DEVICES",
    "count",
    "estimate",
    "held_bytes",
    "meta_method",
    "sample_batch",
    "tokens_a_step",
]
