"""Distillation from a teacher with another tokenizer: both read one text, each in its own tokens.

The text is cut into chunks, the smallest stretches that are whole tokens of both. A chunk that is the same
token in both vocabularies compares whole laws, `exact` over the ids that both have and `rest` over the others
sorted; any other chunk compares one probability, `chunk`. Equations and sources:
`losses/cross_vocabulary.py`. `answer` is the cross-entropy of the gold text. With one tokenizer `exact` is
the term `kd` of *distill*.

The teacher never trains, and a checkpoint names it instead of holding it.
Shapes: B rows, T visible tokens of the student, S ids of the teacher, C chunks, D and E widths.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from quietreasoning.backbone import Backbone, BackboneConfig, load_backbone, meta_backbone
from quietreasoning.config import Settings, UserError
from quietreasoning.contract import IGNORE, Batch, Markers, MethodConfig, Role, StepOutput, Term
from quietreasoning.losses.cross_chunked import chunked_cross
from quietreasoning.losses.cross_vocabulary import Chunks, SharedIds, following
from quietreasoning.losses.kd import Divergence
from quietreasoning.losses.kd_chunked import chunk_rows, chunked_kd
from quietreasoning.losses.kd_targets import StateTeacher
from quietreasoning.methods.divergence import DivergenceSettings
from quietreasoning.methods.sequence import Visible, read_given, read_prompt, read_visible, visible_part
from quietreasoning.methods.writing import Ready, Writer

UNITS = {"exact": "shared token", "rest": "shared token", "chunk": "chunk", "answer": "token"}


class CrossWeights(Settings):
    exact: float = Field(0.5, ge=0)
    """Divergence over the ids of both vocabularies, where both have the same token."""
    rest: float = Field(0.1, ge=0)
    """There, distance of the probabilities of all other ids, sorted."""
    chunk: float = Field(0.1, ge=0)
    """Divergence of the probability of a stretch of text, where the tokens differ."""
    answer: float = Field(0.5, ge=0)
    """Cross-entropy of the gold steps and answer."""


class CrossConfig(MethodConfig):
    name: Literal["cross"] = "cross"
    """Distillation from a model with another tokenizer."""
    teacher: BackboneConfig | None = None
    """The teacher: `teacher.path` is a model folder or hub id. data.format.taught names its tokenizer."""
    steps: bool = True
    """Learn the visible steps too, and write them; false: prompt, answer prefix, answer."""
    divergence: DivergenceSettings = DivergenceSettings()
    """How far the student is from the teacher."""
    chunk: int | None = Field(None, ge=1)
    """Positions whose logits are held at a time; null = by the larger vocabulary, up to 1024."""
    weights: CrossWeights = CrossWeights()
    """Loss weights."""

    @model_validator(mode="after")
    def _learns_from_a_teacher(self) -> CrossConfig:
        w = self.weights
        if not (w.exact or w.rest or w.chunk):
            raise ValueError(
                "method.weights.exact, rest and chunk are 0: no teacher is asked; give one, or use method "
                "cot or plain"
            )
        if self.teacher is not None and self.teacher.path is None:
            raise ValueError(
                "method.teacher has no path: set method.teacher.path to a model folder or hub id"
            )
        return self


class Heard(NamedTuple):
    """What the teacher reads, and the chunks of all rows over states flattened to [B * S] and [B * T]."""

    ids_BS: Tensor
    role_BS: Tensor
    chunks: Chunks


class Cross(Writer):
    """A student of a teacher with another tokenizer. Writes its chain and answer like *cot*; without `steps`,
    like *plain*."""

    Config = CrossConfig
    config: CrossConfig
    controls = ()
    takes_effort = False
    crosses = True
    slack = ("rest", "chunk")  # nothing to compare where both vocabularies are one
    shared: SharedIds | None = None
    """Which ids of both tokenizers stand for the same; given by whoever builds the batches."""

    def __init__(self, backbone: Backbone, config: CrossConfig, markers: Markers):
        super().__init__(backbone, config, markers)
        source = config.teacher
        if source is None:
            raise UserError(
                "method cross has no teacher: set method.teacher.path to a model folder or hub id"
            )
        load = meta_backbone if backbone.model.device.type == "meta" else load_backbone  # quiet plan
        frozen = source.model_copy(update={"tune": "frozen"})
        self.teacher = load(frozen, 1, key="method.teacher.path")  # as many ids as it has
        moves = config.divergence.final_temperature is not None
        self.register_buffer("progress", torch.zeros(()), persistent=moves)
        self.first_step = 0 if config.steps else None

    @property
    def borrowed(self) -> tuple[str, ...]:
        return (*super().borrowed, *(f"teacher.{key}" for key in self.teacher.state_dict()))

    def train(self, mode: bool = True) -> Cross:
        """The teacher has no dropout, whatever the student has."""
        super().train(mode)
        self.teacher.eval()
        return self

    def pace(self, progress: float) -> None:
        self.progress.fill_(progress)

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        visible = visible_part(batch, self.markers, self.first_step)
        chunks = self.heard(batch, visible).chunks
        same = int(chunks.same(self.ids(visible.ids_BT.device)).sum())
        labels = int((visible.labels_BT != IGNORE).sum())
        found = {"shared token": same, "chunk": len(chunks) - same, "token": labels}
        w = dict(self.config.weights)
        return {unit: count for unit, count in found.items() if any(w[n] for n in w if UNITS[n] == unit)}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        w = self.config.weights
        visible = visible_part(batch, self.markers, self.first_step)
        hidden_BTD = read_visible(self.backbone, batch.prompt_BP, visible)
        heard = self.heard(batch, visible)
        with torch.no_grad():
            taught_BSE = self.teacher(heard.ids_BS, heard.role_BS).hidden_BTD
        found = chunked_cross(
            taught_BSE.flatten(0, 1),
            self.teacher.logits,
            hidden_BTD.flatten(0, 1),
            self.backbone.logits,
            heard.chunks,
            self.ids(hidden_BTD.device),
            self.choice,
            chunk=self.chunk,
        )
        sums = {"exact": found.exact, "rest": found.rest, "chunk": found.chunk}
        chunks = found.exact_count + found.chunk_count
        metrics = {"same_token": (found.exact_count, chunks)}
        if w.answer:
            counted_BT = visible.labels_BT != IGNORE
            sums["answer"], said = self.answer(hidden_BTD[counted_BT], visible.labels_BT[counted_BT])
            metrics |= said
        terms = {name: Term(sums[name], UNITS[name], weight) for name, weight in w if weight}
        return StepOutput(terms, metrics)

    def answer(self, hidden_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Cross-entropy of the labels, some positions at a time."""
        zeros_N = hidden_ND.new_zeros(len(hidden_ND), dtype=torch.float32)
        found = chunked_kd(
            hidden_ND,
            self.backbone.logits,
            [p for p in self.backbone.model.get_output_embeddings().parameters() if p.requires_grad],
            StateTeacher(hidden_ND.detach(), self.backbone.logits),  # in no sum
            labels_N,
            Divergence(),
            kd_weight_N=zeros_N,
            chunk=self.chunk,
            metrics=True,
        )
        return found.ce, {"token_accuracy": (found.hits, torch.tensor(found.ce_rows, device=labels_N.device))}

    def heard(self, batch: Batch, visible: Visible) -> Heard:
        """The teacher's rows, and the chunks whose tokens are all labels of the student. UserError where the
        batch has none of it, or a row is longer than the teacher reads."""
        if not batch.taught_BT.shape[1]:
            raise UserError(
                "method cross needs what its teacher reads: set data.format.taught.tokenizer to the "
                "teacher's tokenizer, as a rule the folder of method.teacher.path"
            )
        ids_BS, role_BS = batch.taught_BT, batch.taught_role_BT.clamp(min=int(Role.PAD))
        place_BC4 = batch.chunks_BC4
        if self.first_step is None:
            left_out_B = (role_BS == Role.STEP).sum(1), (batch.steps_BKS != IGNORE).flatten(1).sum(1)
            ids_BS, role_BS = without_steps(ids_BS, role_BS)
            place_BC4 = place_BC4 - torch.stack(left_out_B, 1).repeat_interleave(2, 1)[:, None]
        if ids_BS.shape[1] > self.teacher.context:
            raise UserError(
                f"a row has {ids_BS.shape[1]} tokens in the teacher's tokenizer, its context is "
                f"{self.teacher.context}; set data.max_prompt_tokens and data.too_long=drop"
            )
        # a chunk counts if all of its tokens are labels: no prefix that is given, and no padding
        ahead_BT1 = torch.nn.functional.pad((visible.labels_BT != IGNORE).cumsum(1), (1, 0))
        own_BC2 = place_BC4[..., 2:]
        inside_BC = (own_BC2[..., 0] >= 0) & (own_BC2[..., 1] < ahead_BT1.shape[1])
        ahead_BC2 = ahead_BT1.gather(1, own_BC2.clamp(0, ahead_BT1.shape[1] - 1).flatten(1)).view_as(own_BC2)
        counted_BC = inside_BC & (ahead_BC2.diff(dim=-1) == own_BC2.diff(dim=-1))[..., 0]
        row_C1 = counted_BC.nonzero()[:, :1]
        chunks = Chunks.of(
            place_BC4[counted_BC][:, :2] + row_C1 * ids_BS.shape[1] - 1,
            place_BC4[counted_BC][:, 2:] + row_C1 * visible.ids_BT.shape[1],
            following(ids_BS),
            visible.ids_BT.clamp(min=0).flatten(),
        )
        return Heard(ids_BS, role_BS, chunks)

    def ids(self, device: torch.device) -> SharedIds:
        """Which ids stand for the same, on a device. UserError where nobody has said so."""
        if self.shared is None:
            raise UserError(
                "method cross knows no tokenizer of its teacher; set data.format.taught.tokenizer"
            )
        if self.shared.student_of_V.device != device:
            self.shared = self.shared.to(device)
        return self.shared

    @property
    def choice(self) -> Divergence:
        return self.config.divergence.choice(self.config.divergence.temperature_at(float(self.progress)))

    @property
    def chunk(self) -> int:
        """Positions whose logits are held at a time."""
        largest = max(self.backbone.vocab_size, self.teacher.vocab_size)
        return self.config.chunk or chunk_rows(largest, self.progress.device)

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        if self.config.steps:
            return Ready(read_prompt(self.backbone, prompt_BP), given=False)
        return Ready(read_given(self.backbone, prompt_BP, self.markers))


def without_steps(ids_BS: Tensor, role_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with their visible steps cut out and the gaps closed."""
    kept_BS = (role_BS != Role.PAD) & (role_BS != Role.STEP)
    order_BS = (~kept_BS).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(kept_BS.sum(1).max())]
    ids_BS, role_BS = ids_BS.masked_fill(~kept_BS, IGNORE), role_BS.masked_fill(~kept_BS, int(Role.PAD))
    return ids_BS.gather(1, order_BS), role_BS.gather(1, order_BS)
