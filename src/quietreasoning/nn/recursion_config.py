"""Sizes of a recursive reasoner, checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, fields

from quietreasoning.nn.recursion_blocks import STYLES

CHOICES = {
    "mode": ("full", "slots"),
    "style": tuple(STYLES),
    "mixer": ("attention", "mlp"),
    "start": ("fixed", "learned"),
}


@dataclass(frozen=True)
class RecursionConfig:
    """Sizes of a reasoner. ValueError where they do not fit together."""

    context_width: int  # W
    width: int  # D
    outputs: int  # O: a vocabulary, or the width of a state to predict
    slots: int = 1  # K; in mode full 0 is allowed: every context position then has its own answer
    layers: int = 2
    heads: int = 4
    latent_steps: int = 6  # n; 0: the answer step alone, which then sees x
    rounds: int = 3  # T
    mode: str = "full"
    style: str = "paper"
    mixer: str = "attention"
    context: int | None = None  # longest context; needed where a net mixes its positions (full, mlp)
    start: str = "fixed"  # y and z before the first step: random numbers of variance 1, or learned
    rope: bool = True  # without it attention sees no order of the context
    rope_base: float = 1e4
    expansion: float = 4.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}={getattr(self, key)!r} is unknown; choose {' or '.join(choices)}")
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_none = field.name == "latent_steps" or (field.name == "slots" and self.mode == "full")
            least = 0 if may_be_none else 1
            if field.type == "int" and value < least:
                raise ValueError(f"{field.name}={value} must be at least {least}")
            if field.type == "float" and value <= 0:
                raise ValueError(f"{field.name}={value} must be above 0")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}; change either")
        if self.rope and self.width // self.heads % 2:
            raise ValueError(f"width={self.width} over heads={self.heads} is odd: use another, or rope=False")
        if self.mode == "full" and self.mixer == "mlp" and not self.context:
            raise ValueError(f"context={self.context}: mixer=mlp in mode=full needs the longest context")
        if self.start == "learned" and self.rounds > 1:
            raise ValueError(
                f"start=learned with rounds={self.rounds} would never learn: only the last round has a "
                "gradient; use start=fixed, or rounds=1"
            )

    @property
    def evaluations(self) -> int:
        """Evaluations of the network in one supervision step, T (n + 1)."""
        return self.rounds * (self.latent_steps + 1)
