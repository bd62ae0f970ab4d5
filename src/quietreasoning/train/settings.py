"""`train.*` in a recipe: how long, how wide, how precise, and what is saved when."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.config import Settings


class QuantConfig(Settings):
    """Training for integers: the backbone's linear layers compute as they will when deployed
    (docs/quantisation.md)."""

    weight_bits: Literal[8, 4] = 8
    """Bits of a weight; one scale an output channel."""
    activation_bits: Literal[8] | None = 8
    """Bits of what goes into a layer, one scale a token, taken anew each time; null leaves it in floats."""
    group: int | None = Field(default=None, ge=8)
    """Inputs that share a scale of a 4-bit weight, such as 32; null: all of them."""
    start: float = Field(default=0.8, ge=0, le=1)
    """Share of the stage's budget that passes before layers compute in integers; 0: from the first step."""
    lr_multiplier: float = Field(default=0.1, gt=0)
    """Of the learning rate from then on."""
    exclude: tuple[str, ...] = ("lm_head", "embed")
    """Linear layers that stay in floats, by a part of their names such as down_proj or layers.0. The head and
    the embeddings always do."""

    @model_validator(mode="after")
    def _groups_are_of_four_bits(self) -> QuantConfig:
        if self.group is not None and self.weight_bits != 4:
            raise ValueError(f"group={self.group} needs weight_bits=4; int8 weights have a scale a channel")
        return self


class TrainConfig(Settings):
    """Budget, batch, precision, sharding and guards of one stage."""

    steps: int | None = Field(default=None, ge=0)
    """Optimizer steps of this stage. Give this or `tokens`, not both. 0 builds the method, which may change
    it, trains nothing, evaluates if `eval_every` says so, and saves."""
    tokens: int | None = Field(default=None, ge=1)
    """Budget in tokens the loss counted (unit "token"), over all lanes and ranks."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences in one optimizer step, over all lanes and ranks."""
    accumulate: int = Field(default=1, ge=1)
    """Lanes: forward and backward passes in one optimizer step, on each rank."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; weights stay as they are. auto: bf16 where the machine computes it and
    the method is large enough to gain."""
    compile: bool = False
    """Compile the method's forward with torch.compile."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """With several ranks: replicate all (ddp) or shard weights, gradients and optimizer state (fsdp)."""
    enable: tuple[str, ...] = ()
    """Prefixes of the modules to train, such as `backbone.layers`; the others get no gradient, no update and
    no decay. Empty: whatever the method leaves trainable."""
    save_every: int = Field(default=500, ge=0)
    """Steps between checkpoints; 0 saves at the end of the stage only."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept, beside the best and the last one of each stage."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 never evaluates, any other number also does at the end of the stage."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log records; the last step is always logged."""
    term_gradients: int = Field(default=0, ge=0)
    """Steps between figures `gradient/<term>` in the log, a multiple of `log_every`; 0: never. The norm of
    what a term adds to the gradient on the first lane's rows, averaged over ranks; each costs a backward."""
    max_bad_steps: int = Field(default=5, ge=1)
    """Steps in a row with a loss or gradient that is not finite before the run stops; each one is skipped."""
    skip_spikes: bool = False
    """Skip a step whose loss or gradient norm lies over mean + 6 sigma of the last 128 steps."""
    quant: QuantConfig | None = None
    """Train for integer arithmetic, such as {start: 0.8}; null: floats."""

    @model_validator(mode="after")
    def _one_budget(self) -> TrainConfig:
        if self.steps is not None and self.tokens is not None:
            raise ValueError("give steps or tokens, not both")
        return self

    @model_validator(mode="after")
    def _what_is_measured_is_logged(self) -> TrainConfig:
        if self.term_gradients % self.log_every:
            raise ValueError(
                f"term_gradients={self.term_gradients} is no multiple of log_every={self.log_every}, and a "
                f"step that is not logged shows nothing; choose 0 or {self._rounded_up()}"
            )
        return self

    def _rounded_up(self) -> int:
        return -(-self.term_gradients // self.log_every) * self.log_every
