"""Knowledge distillation: what a teacher expects at every token of the gold text, a student learns to expect.

    kd = sum_t T^2 D( p_teacher(. | y_<t) / T, p_student(. | y_<t) / T ),  answer = - sum_t log p_student(y_t)

over gold steps, answer prefix and answer, both from one pass of the student's head (arXiv 1503.02531; the
family of D: `losses/kd.py`). Beside them: what tokens of the answer are (`spans.py`), states of layers
(`layers.py`), text of the student's own (`own.py`) and what its own answers earn (`methods/grpo.py`). The
teacher is any model folder with the same tokenizer, or a cache of what it said; it never trains, and a
checkpoint names it instead of holding it.
Shapes: B rows, T tokens, D width, N positions that are learned, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, States, load_backbone, meta_backbone, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers, Role, StepOutput, Term
from quietreasoning.losses.kd_chunked import Distilled, chunk_rows, chunked_kd
from quietreasoning.losses.kd_schedules import teacher_entropy
from quietreasoning.losses.kd_targets import StateTeacher, Teacher
from quietreasoning.methods.distill import direct_call, early_tool, own, spans
from quietreasoning.methods.distill.layers import Layers
from quietreasoning.methods.distill.settings import DistillConfig
from quietreasoning.methods.judged import Judged
from quietreasoning.methods.sequence import Visible, read_prompt, visible_part
from quietreasoning.methods.writing import Ready


class Distill(Judged):
    """A student of a teacher. Writes its chain and answer like *cot*; without `steps`, like *plain*."""

    Config = DistillConfig
    config: DistillConfig
    controls = ()
    takes_effort = False
    slack = ("length", *Judged.slack)
    recorded: Callable[[Tensor, Tensor], Teacher] | None = None
    """(ids_BT, learned_BT) -> what the teacher said there; given by whoever builds a method with `cache`."""

    def __init__(self, backbone: Backbone, config: DistillConfig, markers: Markers):
        super().__init__(backbone, config, markers)
        w, source = config.weights, config.teacher
        if source is None and (w.own or w.hidden or (w.kd and not config.cache)):
            raise UserError(
                "method distill has no teacher: set method.teacher.path to a model folder, or for kd alone "
                "method.cache.path to what quiet data teacher wrote; method.weights.kd=0 needs none"
            )
        self.teacher = None
        if source is not None:
            load = meta_backbone if backbone.model.device.type == "meta" else load_backbone  # quiet plan
            frozen = source.model_copy(update={"tune": "frozen"})
            self.teacher = load(frozen, backbone.vocab_size, key="method.teacher.path")
        self.layers = Layers(backbone, self.teacher, config.hidden) if config.hidden else None
        self.register_buffer("progress", torch.zeros(()), persistent=bool(self._moves))
        self.first_step = 0 if config.steps else None
        self.start_judge()
        self.start_policy()

    @property
    def borrowed(self) -> tuple[str, ...]:
        taught = () if self.teacher is None else self.teacher.state_dict()
        return (*super().borrowed, *(f"teacher.{key}" for key in taught))

    @property
    def _moves(self) -> bool:
        """Whether anything follows the stage's budget."""
        config = self.config
        falls = config.hidden is not None and config.hidden.decay
        return bool(config.divergence.final_temperature or config.final_weights or falls)

    def train(self, mode: bool = True) -> Distill:
        """The teacher has no dropout, whatever the student has."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def pace(self, progress: float) -> None:
        super().pace(progress)
        self.progress.fill_(progress)

    def supervised_units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        config = self.config
        own_B = own.chosen(batch.keys_B, config.own)
        visible = self.visible(batch, own_B)
        found = spans.count(batch, visible, config.spans)
        found |= early_tool.count(batch, visible, self.markers, config.early_tool)
        if config.weights.direct_call:
            found[direct_call.NAME] = int(direct_call.openers(batch, visible).sum())
        if config.weights.kd or config.weights.answer or config.weights.hidden:
            found["token"] = int(self.learned(batch, visible).sum())
        if config.own:
            found[own.UNIT] = int(own_B.sum())
        return found | self.judge_units(batch)

    def supervised(self, batch: Batch, carry: Any = None) -> StepOutput:
        config = self.config
        own_B = own.chosen(batch.keys_B, config.own)
        terms, metrics = self.gold(batch, self.visible(batch, own_B)) if self._reads_gold else ({}, {})
        if config.own:
            more, said = own.terms(self, batch, own_B, self.weight)
            terms, metrics = terms | more, metrics | said
        return StepOutput(terms, metrics)

    @property
    def _reads_gold(self) -> bool:
        """Whether any term is of gold text: without one its pass is left out."""
        gold = any(value for name, value in self.config.weights if name not in ("own", "length"))
        return gold or self.judges

    def gold(
        self, batch: Batch, visible: Visible
    ) -> tuple[dict[str, Term], dict[str, tuple[Tensor, Tensor]]]:
        """The terms of the gold text."""
        config, counted_BT = self.config, self.learned(batch, visible)
        hidden_BTD, layers_LBTD = self.read(self.backbone, batch.prompt_BP, visible)
        taught, taught_LBTD = self.listen(batch, visible, counted_BT)
        terms, metrics = self.divergence(hidden_BTD[counted_BT], visible.labels_BT[counted_BT], taught)
        if config.spans:
            more, said = spans.terms(
                self.backbone, batch, visible, hidden_BTD, config.spans, self.chunk, self.weight
            )
            terms, metrics = terms | more, metrics | said
        if config.early_tool is not None:
            given = (hidden_BTD, self.markers, config.early_tool, self.chunk, self.weight("early_tool"))
            terms["early_tool"], said = early_tool.term(self.backbone, batch, visible, *given)
            metrics |= said
        if config.weights.direct_call:
            terms["direct_call"] = direct_call.term(
                self.backbone, batch, visible, hidden_BTD, self.weight("direct_call")
            )
        if self.layers is not None:
            total = self.layers(layers_LBTD[:, counted_BT], taught_LBTD[:, counted_BT])
            terms["hidden"] = Term(total, "token", self.weight("hidden"))
        judged, said = self.judge_terms(batch, hidden_BTD)
        return terms | judged, metrics | said

    def divergence(
        self, hidden_ND: Tensor, labels_N: Tensor, taught: Teacher | None
    ) -> tuple[dict[str, Term], dict[str, tuple[Tensor, Tensor]]]:
        """Terms kd and answer of the gold text."""
        w = self.config.weights
        if not (w.kd or w.answer):
            return {}, {}
        found = self._distilled(hidden_ND, labels_N, taught)
        terms = {}
        if w.kd:
            terms["kd"] = Term(found.kd, "token", self.weight("kd"))
        if w.answer:
            terms["answer"] = Term(found.ce, "token", self.weight("answer"))
        # an entropy schedule leaves positions out of either sum, and out of its figures with it
        labelled, compared = (torch.tensor(n, device=labels_N.device) for n in (found.ce_rows, found.kd_rows))
        name = "token_accuracy" if self.config.entropy is None else "weighed_accuracy"
        metrics = {name: (found.hits, labelled)}
        if taught is not None:
            metrics["agreement"] = (found.agree, compared)  # student and teacher expect the same token
            metrics["entropy"] = (found.entropy, compared)
        return terms, metrics

    def _distilled(self, hidden_ND: Tensor, labels_N: Tensor, taught: Teacher | None) -> Distilled:
        config = self.config
        ones_N = hidden_ND.new_ones(len(hidden_ND), dtype=torch.float32)
        kd_N, ce_N, temperature_N = ones_N * (taught is not None), ones_N, None  # ce also for the log
        if config.entropy is not None and len(ones_N):
            shares = config.entropy.schedule()(teacher_entropy(taught, chunk=self.chunk))
            kd_N, temperature_N = shares.kd_N, shares.temperature_N
            ce_N = ce_N * (shares.ce_truth_N if config.entropy.labels == "truth" else shares.ce_teacher_N)
        nobody = StateTeacher(hidden_ND.detach(), self.backbone.logits)  # in no sum
        return chunked_kd(
            hidden_ND,
            self.backbone.logits,
            [p for p in self.backbone.model.get_output_embeddings().parameters() if p.requires_grad],
            nobody if taught is None else taught,
            labels_N,
            config.divergence.choice(self.temperature),
            kd_weight_N=kd_N,
            ce_weight_N=ce_N,
            temperature_N=temperature_N,
            chunk=self.chunk,
            metrics=True,
        )

    @torch.no_grad()
    def listen(
        self, batch: Batch, visible: Visible, counted_BT: Tensor
    ) -> tuple[Teacher | None, Tensor | None]:
        """What the teacher says of the gold text at the N counted positions, and its layers [L, B, T, E]
        where those are matched: one pass for both."""
        w = self.config.weights
        if not (w.kd or w.hidden):
            return None, None
        if self.config.cache is None:
            hidden_BTD, layers_LBTD = self.read(self.teacher, batch.prompt_BP, visible, learns=False)
            said = StateTeacher(hidden_BTD[counted_BT], self.teacher.logits) if w.kd else None
            return said, layers_LBTD
        ids_BT = torch.cat([batch.prompt_BP, visible.ids_BT], 1)
        blank_BP = torch.zeros_like(batch.prompt_BP, dtype=torch.bool)
        learned_BT = torch.cat([blank_BP, counted_BT], 1).roll(-1, 1)  # positions that predict a label
        return self.recorded(ids_BT, learned_BT), None

    def read(
        self, backbone: Backbone, prompt_BP: Tensor, visible: Visible, *, learns: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """States [B, T, D] that predict each visible token, and of all layers [L, B, T, D] where wanted."""
        ids_BT = torch.cat([prompt_BP, visible.ids_BT[:, :-1]], 1)
        role_BT = torch.cat([role_of(prompt_BP, Role.PROMPT), visible.role_BT[:, :-1]], 1)
        first = prompt_BP.shape[1] - 1
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            states = backbone(ids_BT, role_BT, layers=self.layers is not None)
        layers_LBTD = None if states.layers_LBTD is None else states.layers_LBTD[:, :, first:]
        return states.hidden_BTD[:, first:], layers_LBTD

    def visible(self, batch: Batch, own_B: Tensor) -> Visible:
        """The gold text; rows whose own text takes its place have no label."""
        visible = visible_part(batch, self.markers, self.first_step)
        if not own_B.any():
            return visible
        labels_BT = visible.labels_BT.masked_fill(own_B[:, None].to(visible.labels_BT.device), IGNORE)
        return Visible(visible.ids_BT, visible.role_BT, labels_BT)

    @property
    def chunk(self) -> int:
        """Positions whose logits are held at a time."""
        return self.config.chunk or chunk_rows(self.backbone.vocab_size, self.progress.device)

    def learned(self, batch: Batch, visible: Visible) -> Tensor:
        """The tokens [B, T] of kd, answer and hidden: all labels but those that are to be said less."""
        learned_BT = visible.labels_BT != IGNORE
        if self.config.weights.direct_call:
            learned_BT = learned_BT & ~direct_call.openers(batch, visible)
        return learned_BT

    @property
    def temperature(self) -> float:
        return self.config.divergence.temperature_at(float(self.progress))

    def weight(self, name: str) -> float:
        """The weight of a term at this point of the stage."""
        start = getattr(self.config.weights, name)
        end = self.config.final_weights.get(name, start)
        if name == "hidden" and self.config.hidden.decay:
            end = 0.0
        return start if end == start else start + (end - start) * float(self.progress)

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        return Ready(self.ready(self.backbone, prompt_BP), given=not self.config.steps)

    def ready(self, backbone: Backbone, prompt_BP: Tensor) -> States:
        """Student or teacher before the first token of its own: behind the prompt, or its answer prefix."""
        if self.config.steps:
            return read_prompt(backbone, prompt_BP)
        ids_BM, role_BM = self.prefix(prompt_BP)
        ids_BT = torch.cat([prompt_BP, ids_BM], 1)
        role_BT = torch.cat([role_of(prompt_BP, Role.PROMPT), role_BM], 1)
        return backbone(ids_BT, role_BT, keep=True)
