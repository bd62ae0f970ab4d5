"""Prompt baking: what a model does under an instruction, it learns to do without (arXiv 2409.13697).

    instruction + question -> the teacher's own answer y, drawn at temperature 1
    KL( teacher(y_t | instruction, question, y_<t) || student(y_t | question, y_<t) ), summed over y

Teacher and student are one model: the teacher has the weights that the stage began with, kept as a copy of
what learns. Half baking is stopping early. Departure from the paper: trajectories are drawn anew whenever a
question returns. Shapes: B rows, P prompt tokens, T tokens of a trajectory, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from quietreasoning.backbone import Backbone, last_hidden, role_of
from quietreasoning.backbone.sampling import sample
from quietreasoning.config import Settings, UserError
from quietreasoning.contract import (
    IGNORE,
    Batch,
    Markers,
    MethodConfig,
    Response,
    Role,
    StepOutput,
    Term,
)
from quietreasoning.losses.divergence import forward_kl_of_states
from quietreasoning.methods.examining import label_log_probs
from quietreasoning.methods.grpo import still, uniforms
from quietreasoning.methods.grpo_reference import Reference
from quietreasoning.methods.sequence import padded, read_prompt, visible_part
from quietreasoning.methods.writing import Ready, Writer

T = TypeVar("T")


class BakeWeights(Settings):
    kl: float = Field(1.0, gt=0)
    """KL of the student from the teacher, summed over a trajectory."""


class Taught(NamedTuple):
    """What the teacher wrote, and the states it predicted each token from."""

    ids_BT: Tensor  # padded with IGNORE; ends with the end of sequence unless cut
    hidden_BTD: Tensor


class Bake(Writer):
    """Bakes `data.format.instruction` into the weights. Answers as the model then writes."""

    controls = ()
    takes_effort = False

    class Config(MethodConfig):
        name: Literal["bake"] = "bake"
        """Prompt baking."""
        teacher: Literal["start", "current"] = "start"
        """Who reads the instruction: the model as the stage found it, or the model as it is by now, so that
        the target moves on (the paper's pursuit)."""
        max_tokens: int = Field(128, ge=1)
        """Longest trajectory, end of sequence included; a longer one is cut, not left out."""
        chunk: int = Field(1024, ge=1)
        """Positions whose logits are held at a time."""
        weights: BakeWeights = BakeWeights()
        """Loss weights."""

    def __init__(self, backbone: Backbone, config: MethodConfig, markers: Markers):
        super().__init__(backbone, config, markers)
        if backbone.is_workspace:
            raise UserError(
                "method bake needs a transformer's cache; set backbone.workspace=null and give a "
                "backbone.path or backbone.scratch"
            )
        self.reference = Reference(self)

    def pace(self, progress: float) -> None:
        """Before the first step, remember the weights."""
        if progress == 0:
            self.reference.hold(self)

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        return {"trajectory": len(batch)}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        teacher = self._as_it_was if self.config.teacher == "start" else self._as_it_is
        taught = teacher(lambda: self.taught(batch))
        counted_BT = taught.ids_BT != IGNORE
        hidden_BTD = self.states(batch.prompt_BP, taught.ids_BT)

        def head(hidden_CD: Tensor) -> Tensor:
            return teacher(lambda: self.backbone.logits(hidden_CD))

        kl_C = forward_kl_of_states(
            head,
            self.backbone.logits,
            taught.hidden_BTD[counted_BT],
            hidden_BTD[counted_BT],
            chunk=self.config.chunk,
        )
        total = kl_C.sum()
        return StepOutput(
            {"kl": Term(total, "trajectory", self.config.weights.kl)},
            {"kl_of_token": (total.detach(), counted_BT.sum())} | self._about(taught.ids_BT),
        )

    @torch.no_grad()
    def divergences(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """How far the model without the instruction was from the teacher at the start, and is now, over
        trajectories of the teacher as it was at the start: summed KL [B] and [B]; and tokens [B].

        The convergence of baking is 1 - now / before (the mean of each over held-out questions).
        """
        taught = self._as_it_was(lambda: self.taught(batch))
        counted_BT = taught.ids_BT != IGNORE

        def head(hidden_CD: Tensor) -> Tensor:
            return self._as_it_was(lambda: self.backbone.logits(hidden_CD))

        found = []
        for student, model in ((head, self._as_it_was), (self.backbone.logits, self._as_it_is)):
            hidden_BTD = model(lambda: self.states(batch.prompt_BP, taught.ids_BT))
            kl_C = forward_kl_of_states(
                head, student, taught.hidden_BTD[counted_BT], hidden_BTD[counted_BT], chunk=self.config.chunk
            )
            kl_BT = kl_C.new_zeros(counted_BT.shape).masked_scatter(counted_BT, kl_C)
            found.append(kl_BT.sum(1))
        return found[0], found[1], counted_BT.sum(1)

    @torch.no_grad()
    def gold_log_probs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """log p of each row's gold steps and answer without the instruction, at the start and now, summed [B]
        and [B]; and tokens [B]."""
        labels_BT = visible_part(batch, self.markers, 0).ids_BT

        def found() -> Tensor:
            return label_log_probs(self.backbone, self.states(batch.prompt_BP, labels_BT), labels_BT)

        return self._as_it_was(found), self._as_it_is(found), (labels_BT != IGNORE).sum(1)

    def told(self, batch: Batch, max_new_tokens: int) -> Response:
        """What the model of the start writes under the instruction, greedily."""
        self._check_instruction(batch)
        return self._as_it_was(lambda: self.generate(batch.instructed_BP, max_new_tokens=max_new_tokens))

    def taught(self, batch: Batch) -> Taught:
        """A trajectory of each row by the present weights under the instruction."""
        self._check_instruction(batch)
        limit = self.config.max_tokens
        states = read_prompt(self.backbone, batch.instructed_BP)
        rows = sample(
            self.backbone,
            states.past,
            last_hidden(states),
            max_new_tokens=limit,
            eos=self.markers.eos,
            temperature=1.0,
            uniforms_BN=uniforms(batch.keys_B, limit).to(states.hidden_BTD.device),
        )
        ids_BT = padded(rows, batch.prompt_BP.device)
        return Taught(ids_BT, self.states(batch.instructed_BP, ids_BT))

    def states(self, prompt_BP: Tensor, ids_BT: Tensor) -> Tensor:
        """States [B, T, D] that predict each token of a trajectory behind a prompt."""
        inputs_BS = torch.cat([prompt_BP, ids_BT[:, :-1]], 1)
        role_BS = torch.cat([role_of(prompt_BP, Role.PROMPT), role_of(ids_BT[:, :-1], Role.STEP)], 1)
        return self.backbone(inputs_BS, role_BS).hidden_BTD[:, prompt_BP.shape[1] - 1 :]

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        return Ready(read_prompt(self.backbone, prompt_BP), given=False)

    @torch.no_grad()
    def _as_it_was(self, function: Callable[[], T]) -> T:
        """What `function` gives with the weights that the stage began with."""
        with still(self):
            return self.reference.call(self, function)

    @torch.no_grad()
    def _as_it_is(self, function: Callable[[], T]) -> T:
        with still(self):
            return function()

    @staticmethod
    def _check_instruction(batch: Batch) -> None:
        if not batch.instructed_BP.shape[1]:
            raise UserError(
                "method bake has no instruction to bake: set data.format.instruction to the text that the "
                "teacher reads before each question"
            )

    def _about(self, ids_BT: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Metrics of trajectories: their length, how many were cut, how many think by the model's tags."""
        rows = torch.tensor(len(ids_BT), device=ids_BT.device)
        found = {
            "length": ((ids_BT != IGNORE).sum(), rows),
            "unfinished": ((ids_BT != self.markers.eos).all(1).sum(), rows),
        }
        if self.markers.thinking:
            found["thinks"] = ((ids_BT == self.markers.thinking[0]).any(1).sum(), rows)
        return found
