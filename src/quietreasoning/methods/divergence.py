"""Settings of how far a student is from its teacher; the family is that of `losses/kd.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.losses.kd import Divergence


class DivergenceSettings(Settings):
    kind: Literal["jsd", "skew", "tv"] = "jsd"
    """jsd: the generalised Jensen-Shannon divergence, with KL at both ends; skew KL; total variation."""
    beta: float = Field(0.0, ge=0, le=1)
    """Of jsd: 0 is KL of the student from the teacher, 1 the reverse."""
    skew: float = Field(0.0, ge=0, lt=1)
    """Of skew KL: the teacher's share in the mixture that it is held against."""
    scaled: bool = False
    """Of jsd: divide by beta (1 - beta), so that the ends are limits."""
    temperature: float = Field(1.0, gt=0)
    """Softens both; the divergence is multiplied by its square."""
    final_temperature: float | None = Field(None, gt=0)
    """The temperature at the stage's end, reached on a straight line; null keeps it."""

    @model_validator(mode="after")
    def _is_a_divergence(self) -> DivergenceSettings:
        self.choice(self.temperature)  # its ValueError names what does not fit
        return self

    def temperature_at(self, progress: float) -> float:
        """At this share of the stage's budget."""
        if self.final_temperature is None:
            return self.temperature
        return self.temperature + (self.final_temperature - self.temperature) * progress

    def choice(self, temperature: float) -> Divergence:
        return Divergence(self.kind, self.beta, self.skew, self.scaled, temperature)
