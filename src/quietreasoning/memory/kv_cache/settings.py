"""What of a prompt's keys and values is kept, and in how many bits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.config import Settings


class PQSettings(Settings):
    """Decoding reads only the prompt's keys that product-quantised codes point at (arXiv 2407.12820)."""

    parts: int = Field(default=2, ge=1)
    """Slices of a key, each with centroids of its own; must divide the head width."""
    centroids: int = Field(default=64, ge=2, le=256)
    """Centroids of a slice; a code is one byte."""
    rounds: int = Field(default=8, ge=1)
    """Rounds of k-means, once, at the end of the prompt."""
    top: int = Field(default=256, ge=1)
    """Exact keys read per head and token, besides the sinks, the observation window and what was decoded."""
    candidates: float = Field(default=2.0, ge=1)
    """Candidates that the codes propose, as a multiple of `top`; the exact scores choose among them."""


class KVCacheSettings(Settings):
    """A compressed cache: which prompt tokens stay (SnapKV), and how they are stored."""

    keep_frac: float = Field(default=0.3, gt=0, le=1)
    """Share of a prompt's tokens kept in each key/value head, besides the observation window; 1 keeps all."""
    keep_floor: float = Field(default=0.1, gt=0, le=1)
    """The least `keep_frac` that is accepted."""
    window: int = Field(default=128, ge=1)
    """Observation window: the last prompt tokens, whose queries vote and which are always kept."""
    kernel: int = Field(default=5, ge=1)
    """Width of the average that smooths votes along the prompt; odd."""
    sinks: int = Field(default=4, ge=0)
    """First tokens of every row, always kept (arXiv 2309.17453); they count towards `keep_frac`."""
    streaming_window: int | None = Field(default=4096, ge=1)
    """Decoded tokens that stay readable; older ones leave in groups. Nothing of the prompt ever does. null:
    all stay."""
    bits: Literal["full", 8, 4, "mixed"] = 8
    """full: as the model computes; 8: a scale per token and head; 4: keys per channel, values per token, in
    groups (arXiv 2402.02750); mixed: 4 bits for salient prompt tokens, 2 for others (arXiv 2405.14256)."""
    group: int = Field(default=32, ge=1)
    """Tokens of a group that share a key channel's scale, and at most as many channels of a value; decoded
    tokens stay in floating point until their group is full."""
    salient_frac: float = Field(default=0.4, gt=0, le=1)
    """mixed: share of the kept tokens that get 4 bits."""
    fallback_error: float | None = Field(default=0.2, gt=0)
    """A layer of less than 8 bits uses 8 where quantising moves the window's attention output by more than
    this share of its norm, in any row; null: never."""
    int8_layers: tuple[int, ...] = ()
    """Layers that use 8 bits whatever `bits` says, counted from 0: a fallback decided beforehand, which then
    does not depend on the batch."""
    pq: PQSettings | None = None
    """Codes that choose which of the prompt's keys a decoded token reads; null: all."""

    @model_validator(mode="after")
    def _check(self) -> KVCacheSettings:
        if self.keep_frac < self.keep_floor:
            raise ValueError(
                f"keep_frac={self.keep_frac} lies below keep_floor={self.keep_floor}; raise it, or lower that"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd; usual widths are 5 and 7")
        if self.streaming_window is not None and self.streaming_window < self.group:
            raise ValueError(
                f"streaming_window={self.streaming_window} is shorter than a group of {self.group} tokens; "
                "use at least one group, or null"
            )
        if self.bits == "full" and self.int8_layers:
            raise ValueError("int8_layers applies to bits=4 and bits=mixed; leave it out")
        if self.bits == 8 and self.int8_layers:
            raise ValueError("int8_layers: bits=8 stores every layer in 8 bits already; leave it out")
        if self.pq is not None and self.bits == "mixed":
            raise ValueError(
                "pq cannot be combined with bits=mixed, whose tokens lie in two stores; use 8 or 4"
            )
        return self
