"""What an evaluation may be told. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from quietreasoning.config import Settings
from quietreasoning.evaluate.rationale import RATIONALE
from quietreasoning.memory.kv_cache.settings import KVCacheSettings


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
    kv_cache: KVCacheSettings | None = None
    """A compressed key/value cache for every answer, not during training, such as {keep_frac: 0.3, bits: 8};
    null: the model's own. See docs/memory.md."""
    kv_caches: dict[str, KVCacheSettings] = {}
    """Caches to hold against that one on the same questions, such as {int4: {keep_frac: 1, bits: 4}}: a row
    each."""
    lexicon: tuple[str, ...] = RATIONALE
    """Words and phrases that show working, in lower case for any case. Every row counts the tokens of its
    answers that lie in one: docs/leakage.md."""
    rationale_bias: float = Field(0.0, ge=0)
    """Taken off the logit of each token that would complete a phrase of the lexicon in an answer, not during
    training; 0 = off."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends, without them, such as a line break; beside the end of sequence."""
    timing: int = Field(8, ge=0)
    """Prompts timed one at a time, after two that warm up; 0 leaves the column empty."""
    samples: int = Field(3, ge=0)
    """Prompts whose written answers are kept for the report."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""

    @field_validator("lexicon", "stop")
    @classmethod
    def _no_entry_is_empty(cls, texts: tuple[str, ...], info) -> tuple[str, ...]:
        if not all(text if info.field_name == "stop" else text.strip() for text in texts):
            raise ValueError(f"{info.field_name} holds an empty text, which would be found everywhere")
        return texts
