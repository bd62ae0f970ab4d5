"""Faults of distillation, each planted alone in a student that is otherwise healthy; the doctor names it, or
the settings or the batch are refused by name before a step.

The list in docs/doctor.md is this table.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from contract_cases import MARKERS, backbone_for, batch_of, make, spans_of, teacher

from quietreasoning.backbone import role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role, Term
from quietreasoning.methods.distill import Distill
from quietreasoning.methods.sequence import Visible
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.doctor import examine

ROWS = [1, 2, 4, 5]
BOTH, KD = {"weights": {"kd": 1, "answer": 1}}, {"weights": {"kd": 1, "answer": 0}}
CE = {"weights": {"kd": 0, "answer": 1}, "teacher": None}


def student(kind, settings):
    given = {"teacher": teacher(), "steps": False, "chunk": 5} | settings
    backbone = backbone_for("distill", layers=1)
    torch.manual_seed(1)
    return kind(backbone, Distill.Config(**given), MARKERS).train()


def with_term(output, name, change):
    term = output.terms[name]
    return replace(output, terms={**output.terms, name: replace(term, total=change(term.total))})


class LooksAhead(Distill):
    def __init__(self, *args):
        super().__init__(*args)
        self.backbone.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {"mutual": args[1].shape[1]}), with_kwargs=True
        )


class Moved(Distill):
    """Its labels stand elsewhere than the tokens."""

    by = 0

    def visible(self, batch, own_B):
        visible = super().visible(batch, own_B)
        real_BT = visible.labels_BT != IGNORE
        inside_BT = real_BT & real_BT.roll(self.by, 1)
        return replace(visible, labels_BT=visible.labels_BT.roll(self.by, 1).masked_fill(~inside_BT, IGNORE))


class UnshiftedLabels(Moved):
    by = 1


class ShiftedTwice(Moved):
    by = -1


class OverPadding(Distill):
    def visible(self, batch, own_B):
        visible = super().visible(batch, own_B)
        empty_BT = visible.role_BT == Role.PAD
        return Visible(visible.ids_BT, visible.role_BT, visible.labels_BT.masked_fill(empty_BT, 0))


class OverPrompt(Distill):
    """The teacher is followed at the prompt too."""

    def units(self, batch, carry=None):
        return {"token": super().units(batch)["token"] + int((batch.prompt_BP != IGNORE).sum())}

    def forward(self, batch, carry=None):
        read = (batch.prompt_BP, role_of(batch.prompt_BP, Role.PROMPT))
        real_BP = batch.prompt_BP != IGNORE
        own_NV = self.backbone.logits(self.backbone(*read).hidden_BTD[real_BP]).log_softmax(-1)
        with torch.no_grad():
            told_NV = self.teacher.logits(self.teacher(*read).hidden_BTD[real_BP]).log_softmax(-1)
        more = F.kl_div(own_NV, told_NV, reduction="sum", log_target=True)
        return with_term(super().forward(batch), "kd", lambda total: total + more)


class LeafTensor(Distill):
    def forward(self, batch, carry=None):
        leaf = lambda total: total.detach().clone().requires_grad_()  # noqa: E731
        return with_term(super().forward(batch), "kd", leaf)


class WithoutGraph(Distill):
    def forward(self, batch, carry=None):
        with torch.no_grad():
            return super().forward(batch)


class ArgMax(Distill):
    """Counts the tokens that student and teacher expect differently."""

    def forward(self, batch, carry=None):
        output = super().forward(batch)
        agree, count = output.metrics["agreement"]
        return replace(output, terms={**output.terms, "kd": Term((count - agree).float(), "token", 1.0)})


class Constant(Distill):
    """Scores the head's bias for the end of sequence, as often as there are tokens."""

    def forward(self, batch, carry=None):
        output, weight_VD = super().forward(batch), self.backbone.model.get_output_embeddings().weight
        fixed = weight_VD[MARKERS.eos].square().sum() * self.units(batch)["token"]
        return with_term(output, "kd", lambda _: fixed)


class Unregistered(Distill):
    """Projections in a list: neither in the optimizer nor in a checkpoint."""

    def __init__(self, *args):
        super().__init__(*args)
        self.hidden_away = [self.layers]
        del self._modules["layers"]
        self.__dict__["layers"] = self.hidden_away[0]


class CreatedInForward(Distill):
    def forward(self, batch, carry=None):
        output = super().forward(batch)
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.ones(()))
        return with_term(output, "kd", lambda total: total * self.late)


class MaskedRow(Distill):
    """Divides each row by its own count of a class, and some rows have none."""

    def forward(self, batch, carry=None):
        shares = (batch.classes_BA == 0).sum(1)
        return with_term(super().forward(batch), "kd", lambda total: total + (0.0 / shares).sum())


class MeanOfTokens(Distill):
    def forward(self, batch, carry=None):
        return with_term(super().forward(batch), "kd", lambda total: total / self.units(batch)["token"])


class FirstRowAlone(Distill):
    def forward(self, batch, carry=None):
        first = replace(batch, **{name: value[:1] for name, value in vars(batch).items()})
        one = super().forward(first).terms["kd"].total
        return with_term(super().forward(batch), "kd", lambda _: one)


class PaddedLength(Distill):
    def forward(self, batch, carry=None):
        return with_term(super().forward(batch), "kd", lambda total: total / batch.answer_BA.shape[1])


class OneTemperature(Distill):
    """A temperature from the average certainty of the batch."""

    def divergence(self, hidden_ND, labels_N, taught):
        sharp = self.backbone.logits(hidden_ND).detach().log_softmax(-1).amax(-1).exp().mean()
        return super().divergence(hidden_ND * 9 * sharp, labels_N, taught)


class TeacherLearns(Distill):
    def __init__(self, *args):
        super().__init__(*args)
        self.teacher.requires_grad_(True)


class TeacherDrops(Distill):
    """The teacher stays in train mode, and has dropout."""

    def __init__(self, *args):
        super().__init__(*args)
        self.teacher.register_forward_hook(
            lambda module, _, states: (
                replace(states, hidden_BTD=F.dropout(states.hidden_BTD, 0.3)) if self.training else states
            )
        )


class ForgetsWeight(Distill):
    def weight(self, name):
        return 1.0


HIDDEN = {"weights": {"kd": 1, "answer": 0, "hidden": 1}, "hidden": {"pairs": 1}}
FAULTS = {
    LooksAhead: ("future-leak", BOTH),
    UnshiftedLabels: ("label-shift", CE),
    ShiftedTwice: ("label-shift", CE),
    OverPadding: ("pad-touched", KD),
    OverPrompt: ("prompt-touched", KD),
    LeafTensor: ("no-gradient", BOTH),
    WithoutGraph: ("no-gradient", KD),
    ArgMax: ("no-gradient", BOTH),
    Constant: ("constant", BOTH),
    Unregistered: ("unregistered", HIDDEN),
    CreatedInForward: ("unregistered", KD),
    MaskedRow: ("not-finite", KD),
    MeanOfTokens: ("not-a-sum", KD),
    FirstRowAlone: ("not-a-sum", KD),
    PaddedLength: ("padding-variance", KD),
    OneTemperature: ("batch-variance", KD),
    TeacherLearns: ("unreached-parameter", KD),
    TeacherDrops: ("random", KD),
    ForgetsWeight: ("weight-ignored", {"weights": {"kd": 0.5, "answer": 0}}),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_named(fault):
    check, settings = FAULTS[fault]
    found = examine(student(fault, settings), spans_of(ROWS)).findings
    assert {finding.check for finding in found} == {check}, [str(finding) for finding in found]


@pytest.mark.parametrize("case", ["distill-spans", "distill-own"])
def test_a_student_without_faults_is_healthy(case):
    batch = (spans_of if case.endswith("-spans") else batch_of)([2, 3, 8, 9])  # two of them keep their text
    diagnosis = examine(make(case, backbone_for(case, layers=1)), batch)
    assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]


def test_an_optimizer_that_moves_nothing_is_named():
    optim = OptimConfig(name="sgd", lr=1e-30)
    found = examine(student(Distill, KD), batch_of(ROWS), optim=optim).findings
    assert [(finding.check, finding.where) for finding in found] == [("no-step", "optimizer")]


def test_a_class_that_no_row_has_is_named():
    settings = CE | {"weights": {"kd": 0, "answer": 1, "code": 1}}
    found = examine(student(Distill, settings), spans_of(ROWS)).findings
    assert [(finding.check, finding.where) for finding in found] == [("missing-field", "term code")]


@pytest.mark.parametrize(("weight", "says"), [("tool_name", "dialect"), ("grammar", "grammar=true")])
def test_a_batch_that_lost_a_field_is_refused(weight, says):
    batch = batch_of(ROWS)
    if weight == "grammar":
        batch = replace(spans_of(ROWS), allowed_BAW=None)
    settings = CE | {"weights": {"kd": 0, "answer": 1, weight: 1}}
    with pytest.raises(UserError, match=f"method.weights.{weight} needs .*{says}"):
        examine(student(Distill, settings), batch)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"teacher": None}, "no teacher"),
        ({"weights": {"hidden": 1}}, "belong together"),
        ({"weights": {"hidden": 1}, "hidden": {"layers": ((0, 7),)}}, r"has \(0, 7\)"),
        ({"weights": {"hidden": 1}, "hidden": {"layers": ()}}, "is empty"),
        ({"weights": {"style": 1}}, "style"),
        ({"weights": {"kd": 0, "answer": 0}}, "all 0"),
    ],
    ids=str,
)
def test_settings_that_would_learn_nothing_are_refused(settings, says):
    with pytest.raises((UserError, ValidationError), match=says):
        student(Distill, settings)
