"""What an evaluation may be told. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quietreasoning.config import Settings


class EvalConfig(Settings):
    split: Literal["valid", "test"] = "valid"
    """Which rows are scored; test is for final figures, choose nothing by it."""
    n: int | None = Field(500, ge=1)
    """How many rows; null for the whole split."""
    batch_size: int = Field(64, ge=1)
    """Prompts answered together; answers do not depend on it."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest chain and answer a method may write, in tokens."""
    controls: tuple[Literal["zero", "shuffle", "mean", "noise", "filler"], ...] = (
        "zero",
        "shuffle",
        "filler",
    )
    """Corruptions of the thoughts that stand beside every quiet method."""
    efforts: tuple[int, ...] = ()
    """Latents, loops or fillers to try in place of the trained number."""
    baselines: tuple[str, ...] = ()
    """Run folders whose methods stand in the same table, such as a direct answer and a visible chain."""
    constrained: bool = False
    """Whether an answer that begins a tool call is held to the declared tools and their schemas as it is
    written, not during training; for tasks whose rows declare tools, such as tools."""
    timing: int = Field(8, ge=0)
    """Prompts timed one at a time, after two that warm up; 0 leaves the column empty."""
    samples: int = Field(3, ge=0)
    """Prompts whose written answers are kept for the report."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""
