"""Of two answers to one prompt, the one that is wanted: preferences without a reward model.

    dpo   = - sum over pairs of log sigmoid(beta ((l+ - l+_start) - (l- - l-_start))),   l = log p(answer)
    simpo = - sum over pairs of log sigmoid(beta (l+ / |y+| - l- / |y-|) - gamma)

(arXiv 2305.18290, equation 7; 2405.14734, equation 6). The start is the weights that the stage began with,
kept as a copy of what learns; fresh adapters of LoRA say nothing, so their copy is the model without them.
Both answers are read in one pass, without dropout. Beside the pair: likelihood of the wanted answer and of
the code in it, and unlikelihood (1908.04319, equation 4) of the first token of each call that a rejected
answer opens though a program was due: there a plain call is chosen, the rest of an opener its form dictates.
Shapes: B rows, C = 2 B their wanted and then their rejected answers, A answer tokens, T visible tokens, N
labels of both, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.backbone import Backbone
from quietreasoning.config import Settings, UserError
from quietreasoning.contract import IGNORE, Batch, Markers, MethodConfig, StepOutput, Term
from quietreasoning.kinds import Kind
from quietreasoning.losses import preference as losses
from quietreasoning.losses.policy import token_log_probs
from quietreasoning.methods.examining import label_log_probs
from quietreasoning.methods.grpo import still
from quietreasoning.methods.grpo_reference import Reference
from quietreasoning.methods.sequence import Visible, read_given, read_visible, starts, visible_part
from quietreasoning.methods.writing import Ready, Writer

BETA, GAMMA = {"dpo": 0.1, "simpo": 2.0}, 1.0


class PreferWeights(Settings):
    prefer: float = Field(1.0, ge=0)
    """The loss of the pair."""
    answer: float = Field(0.0, ge=0)
    """Cross-entropy of the wanted answer's tokens, which the pair alone may make less likely too."""
    code: float = Field(0.0, ge=0)
    """Cross-entropy of the code in it; this and the next need data.format.spans."""
    unlikely: float = Field(0.0, ge=0)
    """Unlikelihood of the calls that a rejected answer opens though a program was due; needs
    data.format.spans.direct_calls."""


class RampSettings(Settings):
    """All weights but `answer` rise from a share of themselves to the whole, on a straight line."""

    start: float = Field(0.1, gt=0, lt=1)
    """Share of the weights at the stage's start."""
    until: float = Field(0.1, gt=0, le=1)
    """Share of the stage after which they are whole."""


class Prefer(Writer):
    """Learns from pairs of answers. Writes its answer like *plain*."""

    controls = ()
    takes_effort = False

    class Config(MethodConfig):
        name: Literal["prefer"] = "prefer"
        """Preferences between two answers."""
        loss: Literal["dpo", "simpo"] = "dpo"
        """dpo: against the model as the stage found it; simpo: by the mean of each answer's tokens, alone."""
        beta: float | None = Field(None, gt=0)
        """Scale of the margin; null is 0.1 of dpo, 2 of simpo."""
        gamma: float | None = Field(None, ge=0)
        """Of simpo: the margin to reach; null is 1."""
        ramp: RampSettings | None = None
        """Let the weights rise; null = whole from the start."""
        weights: PreferWeights = PreferWeights()
        """Loss weights."""

        @model_validator(mode="after")
        def _settings_have_an_effect(self) -> Prefer.Config:
            w = self.weights
            if not w.prefer and not w.unlikely:
                raise ValueError(
                    "method.weights.prefer and unlikely are 0, so nothing reads the rejected answers; give "
                    "one, or take method plain"
                )
            pair = {
                "loss": self.loss != "dpo",
                "beta": self.beta is not None,
                "gamma": self.gamma is not None,
            }
            idle = [name for name, given in pair.items() if given]
            if idle and not w.prefer:
                raise ValueError(f"method.{idle[0]} has no effect: method.weights.prefer is 0; drop it")
            if self.gamma is not None and self.loss == "dpo":
                raise ValueError("method.gamma is of loss simpo, dpo has no margin to reach; drop it")
            return self

    def __init__(self, backbone: Backbone, config: Config, markers: Markers):
        super().__init__(backbone, config, markers)
        refers = config.loss == "dpo" and config.weights.prefer > 0
        self.reference = Reference(self) if refers else None
        self.register_buffer("progress", torch.zeros(()), persistent=config.ramp is not None)

    def pace(self, progress: float) -> None:
        """Before the first step, remember the weights."""
        self.progress.fill_(progress)
        if progress == 0 and self.reference is not None:
            self.reference.hold(self)

    @property
    def term_weights(self) -> dict[str, float]:
        """The weights at this point of the stage."""
        found, ramp = super().term_weights, self.config.ramp
        if ramp is None:
            return found
        share = losses.ramp(float(self.progress), 1.0, ramp.until, ramp.start)
        return {name: value if name == "answer" else share * value for name, value in found.items()}

    def units(self, batch: Batch, carry: Any = None) -> dict[str, int]:
        w = self.config.weights
        _check(batch, w)
        counted = {
            "prefer": ("pair", _paired(batch)),
            "answer": ("token", batch.answer_BA != IGNORE),
            "code": ("code", batch.classes_BA == Kind.CODE),
            "unlikely": ("unlikely", _openers(batch.rejected_classes_BA)),
        }
        return {unit: int(mask.sum()) for name, (unit, mask) in counted.items() if getattr(w, name)}

    def forward(self, batch: Batch, carry: Any = None) -> StepOutput:
        w = self.term_weights
        _check(batch, self.config.weights)
        both = _both(batch)
        visible = visible_part(both, self.markers, None)
        counted_CT = visible.labels_BT != IGNORE
        with still(self):
            logits_NV = self.backbone.logits(read_visible(self.backbone, both.prompt_BP, visible)[counted_CT])
            start_C = self.at_start(both.prompt_BP, visible)
        labels_N = visible.labels_BT[counted_CT]
        logp_N = token_log_probs(logits_NV, labels_N)
        logp_C = logp_N.new_zeros(counted_CT.shape).masked_scatter(counted_CT, logp_N).sum(1)
        paired_B = _paired(batch)
        terms, metrics = {}, _said(logp_C.detach(), paired_B)
        if w["prefer"]:
            found = self.pair(logp_C, start_C, counted_CT.sum(1), paired_B)
            terms["prefer"] = Term(found.total, "pair", w["prefer"])
            metrics |= {"ahead": (found.ahead, found.count), "margin": (found.margin, found.count)}
        if w["answer"]:
            terms["answer"] = Term(-logp_C[: len(batch)].sum(), "token", w["answer"])
        if w["code"]:
            code_N = self.placed(both.classes_BA == Kind.CODE, len(batch), first=True)[counted_CT]
            terms["code"] = Term(-logp_N[code_N].sum(), "code", w["code"])
        if w["unlikely"]:
            opens_N = self.placed(_openers(both.classes_BA), len(batch), first=False)[counted_CT]
            all_N = torch.ones_like(labels_N[opens_N], dtype=torch.bool)
            total, _ = losses.unlikelihood(logits_NV[opens_N], labels_N[opens_N], all_N)
            terms["unlikely"] = Term(total, "unlikely", w["unlikely"])
        return StepOutput(terms, metrics)

    def pair(
        self, logp_C: Tensor, start_C: Tensor | None, length_C: Tensor, paired_B: Tensor
    ) -> losses.Preferred:
        """The loss of the pairs; rows without a rejected answer count in none."""
        config = self.config
        beta = BETA[config.loss] if config.beta is None else config.beta
        if start_C is not None:
            return losses.dpo(*logp_C.chunk(2), *start_C.chunk(2), beta, counted_P=paired_B)
        gamma = GAMMA if config.gamma is None else config.gamma
        return losses.simpo(*logp_C.chunk(2), *length_C.chunk(2), beta, gamma, counted_P=paired_B)

    def at_start(self, prompt_CP: Tensor, visible: Visible) -> Tensor | None:
        """log p of each answer [C] by the weights that the stage began with; None where none are kept."""
        if self.reference is None:
            return None

        def start() -> Tensor:
            hidden_CTD = read_visible(self.backbone, prompt_CP, visible)
            return label_log_probs(self.backbone, hidden_CTD, visible.labels_BT)

        return self.reference.call(self, start)

    def placed(self, mask_CA: Tensor, rows: int, *, first: bool) -> Tensor:
        """A mask of answer tokens among the visible ones [C, T], of the first or the second half alone."""
        half_C1 = (torch.arange(len(mask_CA), device=mask_CA.device) < rows)[:, None] == first
        return F.pad(mask_CA & half_C1, (len(self.markers.answer_prefix), 0))

    def prepare(self, prompt_BP: Tensor, control: str | None, effort: int | None, limit: int) -> Ready:
        return Ready(read_given(self.backbone, prompt_BP, self.markers))


def _both(batch: Batch) -> Batch:
    """The rows with their wanted answers, then the same rows with the rejected ones."""
    twice = {f.name: torch.cat([getattr(batch, f.name)] * 2) for f in fields(batch)}
    for name, other in (("answer_BA", "rejected_BA"), ("classes_BA", "rejected_classes_BA")):
        sides = getattr(batch, name), getattr(batch, other)
        width = max(ids.shape[1] for ids in sides)
        twice[name] = torch.cat([F.pad(ids, (0, width - ids.shape[1]), value=IGNORE) for ids in sides])
    return replace(batch, **twice)


def _paired(batch: Batch) -> Tensor:
    """Rows [B] that have a rejected answer."""
    return (batch.rejected_BA != IGNORE).any(1)


def _openers(classes_CA: Tensor) -> Tensor:
    """The first token of each call that should not have been opened."""
    return starts(classes_CA == Kind.DIRECT_CALL)


def _said(logp_C: Tensor, paired_B: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean log p of both answers over pairs: that of the wanted one may fall while the margin grows."""
    names = ("chosen_logp", "rejected_logp")
    return {
        name: (logp_B.masked_fill(~paired_B, 0.0).sum(), paired_B.sum())
        for name, logp_B in zip(names, logp_C.chunk(2), strict=True)
    }


def _check(batch: Batch, w: PreferWeights) -> None:
    if not batch.rejected_BA.shape[1]:
        raise UserError(
            "method prefer has no rejected answers: they come with task preferences (prompt, chosen, "
            "rejected) or programs"
        )
    told = batch.classes_BA.shape[1] and batch.rejected_classes_BA.shape[1]
    if (w.code or w.unlikely) and not told:
        name = "code" if w.code else "unlikely"
        raise UserError(
            f"method.weights.{name} needs to know what the tokens of answers are: set "
            "data.format.spans.dialect, such as json, and for unlikely data.format.spans.direct_calls"
        )
