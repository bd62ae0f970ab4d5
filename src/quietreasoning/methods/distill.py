"""Knowledge distillation: what a teacher expects at every token of the gold text, a student learns to expect.

    kd = sum_t T^2 D( p_teacher(. | y_<t) / T, p_student(. | y_<t) / T ),  answer = - sum_t log p_student(y_t)

over gold steps, answer prefix and answer, both from one pass of the student's head (arXiv 1503.02531; the
family of D: `losses/kd.py`). The teacher is any model folder with the same tokenizer; it never trains, and a
checkpoint names it instead of holding it. Shapes: B rows, T tokens, D width, N positions that are learned.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from quietreasoning.backbone import Backbone, BackboneConfig, load_backbone, meta_backbone, role_of
from quietreasoning.config import Settings, UserError
from quietreasoning.contract import IGNORE, Batch, Markers, MethodConfig, Role, StepOutput, Term
from quietreasoning.losses.kd import Divergence
from quietreasoning.losses.kd_chunked import chunked_kd
from quietreasoning.losses.kd_targets import StateTeacher
from quietreasoning.methods.sequence import Visible, count_labels, read_prompt, visible_part
from quietreasoning.methods.writing import Ready, Writer


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

    @model_validator(mode="after")
    def _is_a_divergence(self) -> DivergenceSettings:
        self.choice()  # its ValueError names what does not fit
        return self

    def choice(self) -> Divergence:
        return Divergence(self.kind, self.beta, self.skew, self.scaled, self.temperature)


class DistillWeights(Settings):
    kd: float = Field(0.5, gt=0)
    """Divergence from the teacher."""
    answer: float = Field(0.5, ge=0)
    """Cross-entropy of the gold steps and answer."""


class Distill(Writer):
    """A student of a teacher. Writes its chain and answer like *cot*."""

    controls = ()
    takes_effort = False

    class Config(MethodConfig):
        name: Literal["distill"] = "distill"
        """Knowledge distillation from another model."""
        teacher: BackboneConfig | None = None
        """The teacher: `teacher.path` is a model folder or hub id with the student's tokenizer."""
        divergence: DivergenceSettings = DivergenceSettings()
        """How far the student is from the teacher."""
        chunk: int = Field(1024, ge=1)
        """Positions whose logits are held at a time."""
        weights: DistillWeights = DistillWeights()
        """Loss weights."""

    def __init__(self, backbone: Backbone, config: MethodConfig, markers: Markers):
        super().__init__(backbone, config, markers)
        if config.teacher is None or config.teacher.path is None:
            raise UserError("method distill has no teacher: set method.teacher.path to a model folder")
        load = meta_backbone if backbone.model.device.type == "meta" else load_backbone  # quiet plan
        self.teacher = load(config.teacher.model_copy(update={"tune": "frozen"}), backbone.vocab_size)

    @property
    def borrowed(self) -> tuple[str, ...]:
        return (*super().borrowed, *(f"teacher.{key}" for key in self.teacher.state_dict()))

    def train(self, mode: bool = True) -> Distill:
        """The teacher has no dropout, whatever the student has."""
        super().train(mode)
        self.teacher.eval()
        return self

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        return {"token": count_labels(batch, self.markers, 0)}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        visible = visible_part(batch, self.markers, 0)
        counted_BT = visible.labels_BT != IGNORE
        with torch.no_grad():
            taught_ND = states(self.teacher, batch, visible)[counted_BT]
        hidden_ND = states(self.backbone, batch, visible)[counted_BT]
        weights = self.config.weights
        found = chunked_kd(
            hidden_ND,
            self.backbone.logits,
            [p for p in self.backbone.model.get_output_embeddings().parameters() if p.requires_grad],
            StateTeacher(taught_ND, self.teacher.logits),
            visible.labels_BT[counted_BT],
            self.config.divergence.choice(),
            chunk=self.config.chunk,
            metrics=True,
        )
        terms = {"kd": Term(found.kd, "token", weights.kd)}
        if weights.answer:
            terms["answer"] = Term(found.ce, "token", weights.answer)
        count = counted_BT.sum()
        metrics = {
            "token_accuracy": (found.hits, count),
            "agreement": (found.agree, count),  # student and teacher expect the same token
            "entropy": (found.entropy, count),
        }
        return StepOutput(terms, metrics)

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        return Ready(read_prompt(self.backbone, prompt_BP), given=False)


def states(backbone: Backbone, batch: Batch, visible: Visible) -> Tensor:
    """States [B, T, D] that predict each visible token."""
    ids_BT = torch.cat([batch.prompt_BP, visible.ids_BT[:, :-1]], 1)
    role_BT = torch.cat([role_of(batch.prompt_BP, Role.PROMPT), visible.role_BT[:, :-1]], 1)
    return backbone(ids_BT, role_BT).hidden_BTD[:, batch.prompt_BP.shape[1] - 1 :]
