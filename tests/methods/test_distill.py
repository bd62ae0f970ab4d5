"""Distillation against its formula in plain torch; the teacher stays as it is and is needed."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from quietreasoning.backbone import role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.methods import METHODS
from quietreasoning.methods.sequence import visible_part

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, batch_of, make, scratch

ROWS = [0, 1, 3, 5]


def naive(method, batch, temperature):
    """(kd, answer): every row by itself, whole logits of both models."""
    kd = answer = 0.0
    for row in range(len(batch.prompt_BP)):
        alone = batch_of([ROWS[row]])
        visible = visible_part(alone, MARKERS, 0).ids_BT
        ids_1T = torch.cat([alone.prompt_BP, visible], 1)
        ids_1T = ids_1T[:, ids_1T[0] != IGNORE]
        first = ids_1T.shape[1] - int((visible != IGNORE).sum()) - 1
        laws = []
        for model in (method.teacher, method.backbone):
            hidden_TD = model(ids_1T, role_of(ids_1T, Role.PROMPT)).hidden_BTD[0, first:-1]
            laws.append(model.logits(hidden_TD))
        teacher_TV, student_TV = (each / temperature for each in laws)
        kd += temperature**2 * kl_div(
            student_TV.log_softmax(-1), teacher_TV.log_softmax(-1), log_target=True, reduction="sum"
        )
        answer += cross_entropy(laws[1], ids_1T[0, first + 1 :], reduction="sum")
    return kd, answer


@pytest.mark.parametrize("chunk", [4, 1000])
def test_terms_and_gradients_are_the_formula(chunk):
    method, batch = make("distill").double(), batch_of(ROWS)
    method.config = method.config.model_copy(update={"chunk": chunk})
    found = method(batch).terms
    wanted = dict(zip(("kd", "answer"), naive(method, batch, 2), strict=True))
    params = [p for p in method.parameters() if p.requires_grad]
    for name, value in wanted.items():
        assert found[name].total.item() == pytest.approx(value.item(), abs=1e-9)
        ours = torch.autograd.grad(found[name].total, params, retain_graph=True)
        for mine, theirs in zip(ours, torch.autograd.grad(value, params, retain_graph=True), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def test_a_student_with_its_teachers_weights_has_nothing_to_learn_from_it():
    method = make("distill")
    teacher = scratch(9, layers=1, width=16, mlp=16)
    twin = METHODS["distill"](teacher, method.config, MARKERS)
    assert twin(batch_of(ROWS)).terms["kd"].total.item() == pytest.approx(0, abs=1e-4)


def test_the_teacher_is_borrowed_never_learns_and_has_no_dropout():
    method = make("distill")
    held = {name for name in method.state_dict() if name not in method.borrowed}
    assert held and not any(name.startswith("teacher.") for name in held)
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert method.train().training and not method.teacher.training


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "set method.teacher.path"),
        ({"teacher": {"path": "./nowhere"}}, "nowhere"),
    ],
)
def test_without_a_teacher_the_cure_is_named(settings, says):
    config = METHODS["distill"].Config(**settings)
    with pytest.raises(UserError, match=says):
        METHODS["distill"](scratch(), config, MARKERS)


def test_settings_without_a_meaning_are_refused():
    for divergence in ({"kind": "tv", "beta": 0.5}, {"kind": "skew"}, {"skew": 0.1}):
        with pytest.raises(ValueError, match=r"beta|skew"):
            METHODS["distill"].Config(divergence=divergence)
