"""Stopping early: a hazard after each thought, taught where to stop by what thinking on is worth.

Shapes: B rows, K thoughts, T visible tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from quietreasoning.config import Settings, UserError
from quietreasoning.contract import IGNORE, Batch, Term
from quietreasoning.losses.hazard import (
    curriculum_step,
    first_above,
    soft_survival_loss,
    survival_loss,
    utility_target,
)

ROW = "halt_row"  # a row that says where to stop
ONLY_FOR = {"cost": "utility", "temperature": "utility", "stage": "curriculum"}


class HaltSettings(Settings):
    """Stopping early."""

    weight: float = Field(1.0, ge=0)
    """Likelihood of the step to stop at; 0 keeps the head as it is and stops by it."""
    target: Literal["utility", "curriculum", "rows"] = "utility"
    """Where to stop: the best p(answer) less cost, which reads the answer after every thought; a fixed share
    of the thoughts; or where each row says (data.format.halt), and nowhere of rows that do not say."""
    cost: float = Field(0.02, ge=0)
    """utility: what a thought must add to the answer's probability to be worth having."""
    temperature: float = Field(0.0, ge=0)
    """utility: 0 aims at the best step alone, the earliest of equals; else at all, by their utility."""
    stage: int = Field(0, ge=0)
    """curriculum: 0 runs all thoughts, 1 three quarters of them, 2 and later half."""
    threshold: float = Field(0.5, ge=0, le=1)
    """Answering: a row stops at its first hazard above this; 1 never stops."""
    early: float = Field(0.0, ge=0)
    """Cross-entropy of the answer after every thought but the last, the mean of these; 0: answers after fewer
    thoughts are never practised."""
    detach: bool = True
    """The head learns and the model does not."""
    hidden: int = Field(0, ge=0)
    """Units of a layer inside the head; 0 is a linear head."""

    @model_validator(mode="after")
    def _consistent(self) -> HaltSettings:
        for name, target in ONLY_FOR.items():
            if target != self.target and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with target={self.target}; set target={target}")
        return self

    @property
    def compares(self) -> bool:
        """Whether its target needs the answer after every thought."""
        return self.weight > 0 and self.target == "utility"


def halt_unit(halt: HaltSettings, batch: Batch) -> dict[str, int]:
    """The term's unit and how many there are. UserError where the rows are to say where to stop, and do not
    or name a thought that there is none of."""
    if halt.target != "rows":
        return {"sequence": len(batch)}
    if not batch.halt_B2.shape[1]:
        raise UserError(
            "method.halt.target=rows needs rows that say where to stop: set data.format.halt.source"
        )
    return {ROW: int((batch.halt_B2[:, 0] != IGNORE).sum())}


def halt_term(
    halt: HaltSettings, z_BK: Tensor, logp_BK: Tensor | None, halt_B2: Tensor
) -> tuple[Term, dict[str, tuple[Tensor, Tensor]]]:
    """The likelihood of the target step, a row each, and the mean steps of target and threshold.

    z_BK: logits of the hazard; logp_BK: log-likelihood of the answer after each thought, for a utility;
    halt_B2: of `Batch`, for target rows. A row whose likelihood is no number, or that does not say where to
    stop, adds zero. UserError where a row says a thought that there is none of.
    """
    steps = z_BK.shape[1]
    if halt.target == "utility":
        score_BK = logp_BK.detach().float().exp()
        rows_B = score_BK.isfinite().all(1)
        target_BK = utility_target(score_BK.masked_fill(~rows_B[:, None], 0), halt.cost, halt.temperature)
        total, count = soft_survival_loss(z_BK, target_BK, rows_B)
        number_K = torch.arange(1, z_BK.shape[1] + 1, device=z_BK.device)
        aims_B = (target_BK * number_K).sum(1).masked_fill(~rows_B, 0)
    elif halt.target == "rows":
        rows_B = halt_B2[:, 0] != IGNORE
        aims_B = halt_B2[:, 0].masked_fill(~rows_B, 0)
        if bool((aims_B > steps).any()):
            raise UserError(
                f"a row says to stop after thought {int(aims_B.max())}, and the method has {steps}: set "
                f"method.latents, or data.format.halt.max_loops={steps}"
            )
        total, count = survival_loss(z_BK, aims_B, rows_B, halt_B2[:, 1] == 1)
    else:
        rows_B = torch.ones(len(z_BK), dtype=torch.bool, device=z_BK.device)
        aims_B = torch.full_like(rows_B, curriculum_step(halt.stage, steps), dtype=torch.long)
        total, count = survival_loss(z_BK, aims_B, rows_B)
    taken_B = first_above(z_BK, halt.threshold)
    metrics = {
        "halt_aim": (aims_B.sum().float(), count),
        "halt_step": (taken_B.sum().float(), rows_B.new_tensor(len(rows_B), dtype=torch.long)),
    }
    return Term(total, ROW if halt.target == "rows" else "sequence", halt.weight), metrics
