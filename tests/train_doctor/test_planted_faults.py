"""Every fault below is planted alone in a small method that is otherwise healthy; the doctor names it.

The list in docs/doctor.md is this table.
"""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quietreasoning.backbone import last_hidden, role_of
from quietreasoning.config import Settings
from quietreasoning.contract import IGNORE, Role, StepOutput, Term
from quietreasoning.losses.next_token import next_token
from quietreasoning.methods.continuous import Continuous
from quietreasoning.methods.pause import Pause
from quietreasoning.methods.plain import Plain
from quietreasoning.methods.sequence import count_labels, prefix_ids
from quietreasoning.methods.slots import Slots
from quietreasoning.train.doctor import CHECKS, examine


def with_total(output, change):
    """The same output with the total of its answer term changed."""
    term = output.terms["answer"]
    return replace(output, terms={**output.terms, "answer": replace(term, total=change(term.total))})


class Detached(Plain):
    def forward(self, batch, carry=None):
        output = super().forward(batch)
        return replace(
            output, terms={**output.terms, "extra": Term(output.terms["answer"].total.detach(), "token")}
        )


class ZeroGradient(Plain):
    def forward(self, batch, carry=None):
        output = super().forward(batch)
        hollow = torch.relu(-output.terms["answer"].total.abs() - 1)  # connected, but flat
        return replace(output, terms={**output.terms, "extra": Term(hollow, "token")})


class Text(Plain):
    """Prompt, prefix, answer, with labels that a fault may spoil."""

    def sequence(self, batch):
        prefix_BM = prefix_ids(self.markers, len(batch), batch.answer_BA.device)
        pieces = ((batch.prompt_BP, Role.PROMPT), (prefix_BM, Role.MARKER), (batch.answer_BA, Role.ANSWER))
        ids_BT = torch.cat([ids for ids, _ in pieces], 1)
        return ids_BT, torch.cat([role_of(ids, role) for ids, role in pieces], 1)

    def labels(self, ids_BT, role_BT):
        return torch.where(role_BT == Role.ANSWER, ids_BT, IGNORE)

    def units(self, batch, carry=None):
        ids_BT, role_BT = self.sequence(batch)
        return {"token": int((self.labels(ids_BT, role_BT)[:, 1:] != IGNORE).sum())}

    def score(self, hidden_BTD, labels_BT):
        counted_BT = labels_BT != IGNORE
        return next_token(self.backbone.logits(hidden_BTD[counted_BT]), labels_BT[counted_BT])[0]

    def forward(self, batch, carry=None):
        ids_BT, role_BT = self.sequence(batch)
        hidden_BTD = self.backbone(ids_BT[:, :-1], role_BT[:, :-1]).hidden_BTD
        labels_BT = self.labels(ids_BT, role_BT)[:, 1:]
        return StepOutput({"answer": Term(self.score(hidden_BTD, labels_BT), "token")})


class PromptLabels(Text):
    def labels(self, ids_BT, role_BT):
        follows_BT = (role_BT == Role.PROMPT) & (role_BT.roll(1, dims=1) == Role.PROMPT)
        return torch.where((role_BT == Role.ANSWER) | follows_BT, ids_BT, IGNORE)


class PadLabels(Text):
    """Padding becomes token 0 and is scored, after every answer's end."""

    def labels(self, ids_BT, role_BT):
        started_BT = (role_BT == Role.ANSWER).cumsum(1) > 0
        return torch.where(started_BT, ids_BT.clamp(min=0), IGNORE)


class UnusedLayer(Plain):
    def __init__(self, *args):
        super().__init__(*args)
        self.extra = nn.Linear(4, 4)


class UsedUnderNoGrad(Pause):
    def _fillers(self, rows, number):
        return super()._fillers(rows, number).detach()


class MovingAverageInForward(Plain):
    """A frozen copy of the head, moved towards it inside forward."""

    def __init__(self, *args):
        super().__init__(*args)
        head_VD = self.backbone.model.get_output_embeddings().weight
        self.teacher_VD = nn.Parameter(torch.zeros_like(head_VD), requires_grad=False)

    def forward(self, batch, carry=None):
        with torch.no_grad():
            self.teacher_VD.lerp_(self.backbone.model.get_output_embeddings().weight, 0.1)
        return super().forward(batch)


class SwitchesItselfOn(Pause):
    def __init__(self, *args):
        super().__init__(*args)
        self.filler_D.requires_grad_(False)

    def forward(self, batch, carry=None):
        self.filler_D.requires_grad_(True)
        return super().forward(batch)


class NoCausalMask(Plain):
    def __init__(self, *args):
        super().__init__(*args)
        self.backbone.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"mutual": args[1].shape[1]}), with_kwargs=True
        )


class ZeroGatedPeek(Text):
    """The next token's embedding is mixed in through a gate that starts at zero: bit-equal at first."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, batch, carry=None):
        ids_BT, role_BT = self.sequence(batch)
        embeds_BTD = self.backbone.embed(ids_BT)
        peek_BTD = embeds_BTD[:, :-1] + self.gate * embeds_BTD[:, 1:]
        hidden_BTD = self.backbone(peek_BTD, role_BT[:, :-1]).hidden_BTD
        labels_BT = self.labels(ids_BT, role_BT)[:, 1:]
        return StepOutput({"answer": Term(self.score(hidden_BTD, labels_BT), "token")})

    @torch.no_grad()
    def generate(self, prompt_BP, **kwargs):
        return super().generate(prompt_BP, **kwargs)


class GoldThoughts(Continuous):
    """The gold results are added to the thoughts of training."""

    def forward(self, batch, carry=None):
        self.gold_BLD = self.backbone.embed(batch.results_BKR[:, :2, 0])
        try:
            return super().forward(batch)
        finally:
            del self.gold_BLD

    def read(self, prompt, thoughts_BKD, *args, **kwargs):
        if "gold_BLD" in self.__dict__:
            thoughts_BKD = thoughts_BKD + self.gold_BLD
        return super().read(prompt, thoughts_BKD, *args, **kwargs)


class ChainThoughts(Continuous):
    """The first thought comes from a pass over the gold chain that ran before it."""

    def forward(self, batch, carry=None):
        gold_BL = batch.steps_BKS[:, 0, :2]
        self.chain_BD = last_hidden(self.backbone(gold_BL, role_of(gold_BL, Role.STEP)))
        try:
            return super().forward(batch)
        finally:
            del self.chain_BD

    def unroll(self, prompt, latents):
        if "chain_BD" in self.__dict__:
            prompt = replace(prompt, hidden_BTD=prompt.hidden_BTD + 0.1 * self.chain_BD[:, None])
        return super().unroll(prompt, latents)


class LogOfZero(Plain):
    def forward(self, batch, carry=None):
        return with_total(super().forward(batch), lambda total: total + torch.log(total * 0))


class RootAtZero(Plain):
    """A finite value whose gradient is not."""

    def forward(self, batch, carry=None):
        return with_total(
            super().forward(batch), lambda total: total + torch.sqrt((total - total.detach()).abs())
        )


class CountsPrompt(Plain):
    def units(self, batch, carry=None):
        return {"token": super().units(batch)["token"] + int((batch.prompt_BP != IGNORE).sum())}


class CountsPadding(Plain):
    def units(self, batch, carry=None):
        return {"token": batch.answer_BA.numel()}


class ForgetsUnit(Plain):
    def units(self, batch, carry=None):
        return {"sequence": len(batch)}


class CountsNothing(Plain):
    def units(self, batch, carry=None):
        return {"token": 0}


class Mean(Plain):
    def forward(self, batch, carry=None):
        return with_total(
            super().forward(batch), lambda total: total / count_labels(batch, self.markers, None)
        )


class Vector(Plain):
    def forward(self, batch, carry=None):
        return with_total(super().forward(batch), lambda total: total.expand(3))


class Dropout(Text):
    def score(self, hidden_BTD, labels_BT):
        return super().score(F.dropout(hidden_BTD, 0.1, self.training), labels_BT)


class UnseededNoise(Text):
    def score(self, hidden_BTD, labels_BT):
        return super().score(hidden_BTD + 0.1 * torch.randn_like(hidden_BTD), labels_BT)


class MeanOverWidth(Text):
    """Divides by the padded length: a longer neighbour shrinks every row's loss."""

    def score(self, hidden_BTD, labels_BT):
        return super().score(hidden_BTD, labels_BT) / labels_BT.shape[1]


class BatchStatistics(Text):
    def score(self, hidden_BTD, labels_BT):
        return super().score(hidden_BTD / hidden_BTD[labels_BT != IGNORE].detach().std(0), labels_BT)


class MetricWithGradient(Plain):
    def forward(self, batch, carry=None):
        output = super().forward(batch)
        return replace(output, metrics={"loss_again": (output.terms["answer"].total, torch.ones(()))})


class CarryWithGradient(Plain):
    def forward(self, batch, carry=None):
        output = super().forward(batch)
        return replace(output, carry={"memory": [output.terms["answer"].total * 2]})


class TwoWeights(Settings):
    answer: float = 1.0
    process: float = 0.5


class UnknownWeight(Plain):
    class Config(Plain.Config):
        name: Literal["unknown-weight"] = "unknown-weight"
        weights: TwoWeights = TwoWeights()


class DropsWeight(Plain):
    class Config(Plain.Config):
        name: Literal["drops-weight"] = "drops-weight"
        weights: TwoWeights = TwoWeights(answer=0.5, process=0)

    def forward(self, batch, carry=None):
        output = super().forward(batch)
        return replace(output, terms={"answer": Term(output.terms["answer"].total, "token")})


class OtherThoughtsInGenerate(Slots):
    """Generation refines once more than training did."""

    def generate(self, prompt_BP, **kwargs):
        return super().generate(prompt_BP, **kwargs | {"effort": self.config.loops + 1})


class MixesRows(Pause):
    """Generation adds the mean last token of all prompts to each row's fillers."""

    def generate(self, prompt_BP, **kwargs):
        self.mean_D = self.backbone.embed(prompt_BP)[:, -1].mean(0)
        try:
            return super().generate(prompt_BP, **kwargs)
        finally:
            del self.mean_D

    def _fillers(self, rows, number):
        fillers_BKD = super()._fillers(rows, number)
        return fillers_BKD + 100 * self.mean_D if "mean_D" in self.__dict__ else fillers_BKD


class SeesPadding(Plain):
    """Generation reads padding as token 0."""

    def generate(self, prompt_BP, **kwargs):
        return super().generate(prompt_BP.clamp(min=0), **kwargs)


FAULTS = {
    Detached: {"no-gradient"},
    ZeroGradient: {"no-gradient"},
    PromptLabels: {"prompt-touched"},
    PadLabels: {"pad-touched"},
    UnusedLayer: {"unreached-parameter"},
    UsedUnderNoGrad: {"unreached-parameter"},
    MovingAverageInForward: {"disabled-changed"},
    SwitchesItselfOn: {"disabled-changed"},
    NoCausalMask: {"future-leak"},
    ZeroGatedPeek: {"future-leak"},
    GoldThoughts: {"future-leak"},
    ChainThoughts: {"future-leak"},
    LogOfZero: {"not-finite"},
    RootAtZero: {"not-finite"},
    CountsPrompt: {"units"},
    CountsPadding: {"units"},
    ForgetsUnit: {"units"},
    CountsNothing: {"units"},
    Mean: {"not-a-sum"},
    Vector: {"not-a-sum"},
    Dropout: {"random"},
    UnseededNoise: {"random"},
    MeanOverWidth: {"padding-variance"},
    BatchStatistics: {"batch-variance"},
    MetricWithGradient: {"stray-gradient"},
    CarryWithGradient: {"stray-gradient"},
    UnknownWeight: {"weight-ignored"},
    DropsWeight: {"weight-ignored"},
    OtherThoughtsInGenerate: {"generation-differs"},
    MixesRows: {"generation-differs", "batch-variance"},
    SeesPadding: {"generation-differs", "padding-variance"},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_named(fault, backbone, markers, batch):
    config = fault.Config(latents=2) if issubclass(fault, Continuous) else fault.Config()
    found = examine(fault(backbone, config, markers), batch).findings
    assert {finding.check for finding in found} == FAULTS[fault], [str(finding) for finding in found]
    assert all("\n" not in str(finding) and finding.cure for finding in found)


class LearnsPrompts(PromptLabels):
    learns_prompt = True


class Slack(ZeroGradient):
    slack = ("extra",)


class SlackInName(ZeroGradient):
    """A flat term is no slack one where it is not zero."""

    slack = ("extra",)

    def forward(self, batch, carry=None):
        output = super().forward(batch)
        extra = output.terms["extra"]
        return replace(
            output, terms={**output.terms, "extra": replace(extra, total=extra.total + len(batch))}
        )


def test_what_a_method_says_of_itself_is_no_fault(backbone, markers, batch):
    for method in (LearnsPrompts, Slack):
        diagnosis = examine(method(backbone, method.Config(), markers), batch)
        assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]
    assert "term extra is slack on these rows: nothing breaks its limit" in diagnosis.notes
    found = examine(SlackInName(backbone, SlackInName.Config(), markers), batch).findings
    assert "no-gradient" in {finding.check for finding in found}


def test_a_term_without_its_batch_field_is_named(backbone, markers, batch):
    blind = replace(batch, results_BKR=torch.full_like(batch.results_BKR, IGNORE))
    found = examine(Slots(backbone, Slots.Config(), markers), blind).findings
    assert [(finding.check, finding.where) for finding in found] == [("missing-field", "term step")]
    assert "empty here: results_BKR" in found[0].problem


def test_every_check_is_exercised():
    in_a_student = {"label-shift", "constant", "unregistered", "no-step"}  # test_planted_distill.py
    assert set().union(*FAULTS.values()) | {"missing-field"} | in_a_student == set(CHECKS)
