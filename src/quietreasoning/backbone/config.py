"""`backbone.*` in a recipe: which model, and what of it is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from quietreasoning.config import Settings


class ScratchConfig(Settings):
    """A Llama-shaped model with fresh weights."""

    layers: int = Field(2, ge=0)
    """Transformer blocks; 0: embeddings and head alone, for a method that thinks by itself."""
    width: int = Field(128, ge=8)
    """Width of the residual stream."""
    heads: int = Field(4, ge=1)
    """Attention heads; must divide the width."""
    kv_heads: int | None = Field(None, ge=1)
    """Key/value heads; null = as many as heads."""
    mlp: int | None = Field(None, ge=8)
    """Width of the SwiGLU layer; null = 8/3 of the width, rounded up to a multiple of 32."""
    context: int = Field(512, ge=8)
    """Longest sequence, in positions."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    tie: bool = False
    """Share the embedding matrix with the head."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _divides(self) -> ScratchConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


class LoraConfig(Settings):
    """Low-rank adapters (arXiv 2106.09685), by peft."""

    rank: int = Field(16, ge=1)
    """Rank of each update."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers to adapt."""


class WorkspaceSizes(Settings):
    """A Quiet Reasoning language model with fresh modules (see docs/methods/workspace.md)."""

    preset: Literal["tiny", "125m", "1b", "3b"] = "tiny"
    """Sizes of all parts; with `trunk`, of the parts around it."""
    trunk: str | None = None
    """Folder or hub id of a Llama-like model whose weights the trunk takes; null = fresh weights."""
    revision: str | None = None
    """Commit or tag of a trunk's hub id."""
    sizes: dict[str, Any] = {}
    """Changes to the preset, such as {chunk_size: 32}: any field of WorkspaceConfig but `features`."""

    @model_validator(mode="after")
    def _fits(self) -> WorkspaceSizes:
        if self.revision is not None and self.trunk is None:
            raise ValueError("revision has no effect without trunk")
        for name in ("features", "vocab_size"):
            if name in self.sizes:
                owner = "method.features" if name == "features" else "the tokenizer"
                raise ValueError(f"sizes.{name} is decided by {owner}; drop it")
        return self


class BackboneConfig(Settings):
    """Which causal language model carries the method, and what of it is trained."""

    path: str | None = None
    """A model folder or hub id; null = fresh weights of the shape in `scratch`."""
    revision: str | None = None
    """Commit or tag of a hub id; a folder has none."""
    scratch: ScratchConfig = ScratchConfig()
    """Shape of the fresh model, used where `path` is null; null = the default shape."""
    workspace: WorkspaceSizes | None = None
    """A workspace model in place of `scratch`."""
    tune: Literal["full", "lora", "frozen"] = "full"
    """Train all weights, adapters only, or none."""
    lora: LoraConfig = LoraConfig()
    """Shape of the adapters, used with tune=lora."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the weights are held. Autocast is a setting of the loop."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers."""

    @field_validator("scratch", mode="before")
    @classmethod
    def _null_takes_back_what_a_base_set(cls, value: Any) -> Any:
        return ScratchConfig() if value is None else value

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> BackboneConfig:
        if self.workspace is not None:
            if self.path is not None:
                raise ValueError(
                    "workspace excludes path, which names a folder that holds one; set backbone.path=null"
                )
            if self.scratch != ScratchConfig():
                raise ValueError("workspace excludes scratch; set backbone.scratch=null")
            if self.tune == "lora":
                raise ValueError("tune=lora: a workspace model has its own adapters; use method.features")
        if self.path is None and self.revision is not None:
            raise ValueError("revision has no effect without path")
        if self.tune != "lora" and self.lora != LoraConfig():
            raise ValueError(f"lora has no effect with tune={self.tune}; set backbone.tune=lora")
        if self.path is None and self.tune == "lora":
            raise ValueError("tune=lora on fresh weights would train almost nothing; set path, or tune=full")
        return self
