"""Terms about where a call opens and where a text ends, each against a loop over rows and tokens."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from quietreasoning.backbone import role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.kinds import Kind
from quietreasoning.methods import METHODS
from quietreasoning.methods.distill import length, own
from quietreasoning.methods.distill.settings import DistillConfig
from quietreasoning.train.doctor import examine

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, batch_of, make, pad, scratch

OPENERS = (5, 9)
PROSE, NAME, VALUE, SYNTAX, DIRECT = (
    *(Kind.OTHER, Kind.TOOL_NAME, Kind.ARG_VALUE),
    *(Kind.JSON_SYNTAX, Kind.DIRECT_CALL),
)
ANSWERS = [  # tokens and what they are
    ([5, 3, 7, 39], [SYNTAX, NAME, VALUE, PROSE]),  # a call at once
    ([2, 9, 4, 5, 3, 39], [PROSE, PROSE, PROSE, SYNTAX, NAME, PROSE]),  # an opener that is prose, then a call
    ([8, 5, 6, 39], [PROSE] * 4),  # no call, though prose says an opener
    ([6, 39], [PROSE] * 2),
    ([9, 9, 3, 7, 5, 9, 3, 39], [DIRECT, DIRECT, NAME, VALUE, DIRECT, DIRECT, NAME, PROSE]),
]
ROWS = list(range(len(ANSWERS)))


@cache
def taught():
    return make("distill").config.teacher.model_dump()


def student(markers=None, **settings):
    torch.manual_seed(1)
    config = DistillConfig(**settings)
    markers = replace(MARKERS, openers=OPENERS) if markers is None else markers
    return METHODS["distill"](scratch(layers=1, width=16, mlp=16), config, markers).train()


def batch(rows=ROWS):
    found = batch_of(rows)
    answer_BA, classes_BA = (pad([[int(x) for x in ANSWERS[row][part]] for row in rows]) for part in (0, 1))
    return replace(found, answer_BA=answer_BA, classes_BA=classes_BA)


def laws(method, given, row):
    """log q [A, V] of each token of a row's answer, read by itself without padding."""
    parts = [given.prompt_BP[row], *given.steps_BKS[row]] if method.config.steps else [given.prompt_BP[row]]
    parts += [torch.tensor(MARKERS.answer_prefix), given.answer_BA[row]]
    ids_1T = torch.cat([part[part != IGNORE] for part in parts])[None]
    size = int((given.answer_BA[row] != IGNORE).sum())
    hidden_BTD = method.backbone(ids_1T, role_of(ids_1T, Role.PROMPT)).hidden_BTD
    return method.backbone.logits(hidden_BTD[0, -size - 1 : -1]).log_softmax(-1)


@pytest.mark.parametrize(("steps", "window"), [(True, 2), (False, 25)])
def test_early_calls_are_the_hazard_over_the_free_tokens_of_each_answer(steps, window):
    weights = {"kd": 0, "answer": 0, "early_tool": 1}
    method = student(steps=steps, weights=weights, early_tool={"window": window}, chunk=3)
    free = [[0], [0, 2, 3], [0, 2, 3], [0, 1], [0]]  # what may open a call: up to one's own, prose's left out
    wanted, likely = 0.0, {"early_call": [], "needless_call": []}
    for row in ROWS:
        h_A = laws(method, batch(), row).exp()[:, list(OPENERS)].sum(-1)
        none = torch.stack([1 - h_A[at] for at in free[row] if at < window]).prod()
        calls = row in (0, 1, 4)
        wanted = wanted - ((1 - none).log() if calls else none.log())
        likely["early_call" if calls else "needless_call"].append(float((1 - none).detach()))
    out, units = method(batch()), method.units(batch())
    term = out.terms["early_tool"]
    assert term.unit == "early_tool" and units == {"early_tool": len(ROWS)}
    torch.testing.assert_close(term.total, wanted, rtol=1e-4, atol=1e-5)
    params = list(method.backbone.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(term.total, params), torch.autograd.grad(wanted, params), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    for name, each in likely.items():
        total, count = out.metrics[name]
        assert float(total) == pytest.approx(sum(each), rel=1e-4) and int(count) == len(each)


def test_direct_calls_become_less_likely_at_their_first_token_and_are_learned_nowhere_else():
    weights = {"kd": 0, "answer": 1, "direct_call": 0.5, "tool_name": 1}
    method = student(steps=False, weights=weights)
    law_AV, at = laws(method, batch(), 4), [0, 4]
    out, units = method(batch()), method.units(batch())
    term = out.terms["direct_call"]
    assert (term.unit, term.weight, units["direct_call"]) == ("direct_call", 0.5, 2)
    wanted = -torch.log1p(-law_AV.exp()[at, [9, 5]]).sum()
    torch.testing.assert_close(term.total, wanted, rtol=1e-5, atol=1e-6)
    answers = sum(
        F.nll_loss(laws(method, batch(), row), torch.tensor(ANSWERS[row][0]), reduction="none").sum()
        for row in ROWS[:4]
    )
    rest = [place for place in range(8) if place not in at]
    labels = torch.tensor(ANSWERS[4][0])
    answers = answers + F.nll_loss(law_AV[rest], labels[rest], reduction="sum")
    torch.testing.assert_close(out.terms["answer"].total, answers, rtol=1e-5, atol=1e-5)
    assert units["token"] == sum(len(ids) for ids, _ in ANSWERS) - 2
    assert units["tool_name"] == 4, "a call that was opened must still be right"


def test_a_text_that_has_said_all_is_told_to_end_and_no_other():
    """Rows 0 and 1 must say 3; what they draw is forced, since a fresh model says nothing on purpose."""
    weights = {"kd": 0, "answer": 0, "own": 1, "length": 2}
    settings = {"own": {"share": 1, "max_tokens": 9}, "length": {"hinge": 0.5}, "steps": False}
    method = student(teacher=taught(), weights=weights, **settings)
    texts = [
        [4, 3, 7, 4, 4, 3, 1, 2],  # 4 tokens would do, 6 are allowed; all is said after 3
        [3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 39],  # 6 would do, 9 are allowed
        [1] * 9,  # nothing must be said, so nothing tells that it has been
        [1, 39],
        [9, 3, 1, 1, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],  # 3 and 7 in its two runs: 3 7 does not stand there
    ]
    original = own.write
    own.write = lambda method, prompt_RP, keys_R: pad(texts)
    try:
        out, units = method(batch()), method.units(batch())
    finally:
        own.write = original
    term, wanted = out.terms["length"], 0.0
    assert (term.unit, term.weight, units) == ("own text", 2, {"own text": len(ROWS)})
    for row, late in ((0, [6, 7]), (1, [9, 10]), (4, [12, 13, 14])):  # of row 4: 8 would do
        told = replace(batch(), answer_BA=pad(texts))
        wanted = wanted - laws(method, told, row)[late, MARKERS.eos].mean()
    torch.testing.assert_close(term.total, wanted, rtol=1e-4, atol=1e-5)
    assert [int(x) for x in out.metrics["own_overlong"]] == [3, len(ROWS)]
    assert term.total.requires_grad and set(out.terms) == {"own", "length"}
    assert length.said_after([1, 2, 1, 2, 3], [(2, 3), (1,)]) == 5
    assert length.said_after([1, 2], [(2, 3)]) is None is length.said_after([1, 2], [])


def test_the_doctor_finds_all_three_healthy():
    weights = {"kd": 0.5, "answer": 0.5, "early_tool": 1, "direct_call": 1, "own": 1, "length": 1}
    settings = {"own": {"share": 0.4, "max_tokens": 4}, "length": {}, "early_tool": {"window": 3}}
    method = student(teacher=taught(), weights=weights, steps=False, **settings)
    given = replace(batch(), keys_B=torch.arange(30, 30 + len(ROWS)))  # row 2 writes a text of its own
    found = examine(method, given)
    assert found.healthy, [str(finding) for finding in found.findings]
    assert "term length is slack on these rows: nothing breaks its limit" in found.notes


def test_what_a_batch_or_the_markers_do_not_say_is_asked_for():
    weights = {"kd": 0, "answer": 0}
    for name in ("early_tool", "direct_call"):
        more = {"early_tool": {}} if name == "early_tool" else {}
        method = student(weights=weights | {name: 1}, **more)
        with pytest.raises(UserError, match=rf"weights\.{name} needs .* set data\.format\.spans\.dialect"):
            method.units(batch_of(ROWS))
    with pytest.raises(UserError, match=r"what opens a call: set data\.format\.spans\.dialect"):
        student(MARKERS, weights=weights | {"early_tool": 1}, early_tool={}).units(batch())
    with pytest.raises(UserError, match=r"weights\.length needs to know"):
        text = {"own": {"share": 1, "max_tokens": 2}, "length": {}}
        student(teacher=taught(), weights=weights | {"own": 1, "length": 1}, **text)(batch_of(ROWS))
