"""A teacher with another tokenizer: the formula row by row, one tokenizer as in distill, refusals."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quietreasoning.backbone import role_of
from quietreasoning.build import resolve
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.losses.cross_vocabulary import SharedIds, as_event, by_ids
from quietreasoning.losses.kd import heat, measure
from quietreasoning.methods import METHODS
from quietreasoning.methods.sequence import visible_part

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, TAUGHT_AS, VOCAB, batch_of, crossed_of, make, row_of, scratch, teacher

ROWS = [0, 3, 5]


def student(**settings):
    config = METHODS["cross"].Config(**{"teacher": teacher(), "chunk": 5} | settings)
    method = METHODS["cross"](scratch(layers=1, width=16, mlp=16), config, MARKERS)
    method.shared = make("cross").shared
    return method.double().train()


def said(model, ids):
    ids_1T = torch.tensor([ids])
    return model.logits(model(ids_1T, role_of(ids_1T, Role.PROMPT)).hidden_BTD)[0]


def naive(method, row, steps):
    """(exact, rest, chunk) of one row by itself: the chunks of `crossed_of`, told from its text."""
    prompt, gold, _, answer = row_of(row)
    parts = [*gold, MARKERS.answer_prefix, answer] if steps else [MARKERS.answer_prefix, answer]
    mine, other, found = [*prompt], [*prompt, *prompt], []
    for number, part in enumerate(parts):
        cuts = [part[:2], *([id] for id in part[2:])] if len(part) > 2 else [[id] for id in part]
        for cut in cuts:
            if steps or number:  # without steps the prefix is given
                found.append((len(other), len(mine), len(cut)))
            mine, other = [*mine, *cut], [*other, TAUGHT_AS[cut[0]]]
    taught_TV, own_TV = said(method.teacher, other), said(method.backbone, mine)
    sums, choice, t = [0.0, 0.0, 0.0], method.choice, method.choice.temperature
    next_S, next_T = torch.tensor([*other[1:], 0]), torch.tensor([*mine[1:], 0])
    for s, at, length in found:
        if length == 1 and method.shared.student_of_V[other[s]] == mine[at]:
            parts = by_ids(taught_TV[s - 1 : s], own_TV[at - 1 : at], method.shared, choice)
            sums[:2] = [a + b.sum() for a, b in zip(sums, parts, strict=False)]
            continue
        rows = torch.tensor([[s - 1]]), torch.arange(at - 1, at - 1 + length)[None]
        events = as_event(taught_TV, rows[0], next_S, t), as_event(own_TV, rows[1], next_T, t)
        sums[2] += (measure(choice)(*events) * heat(choice, t)).sum()
    return sums


@pytest.mark.parametrize("steps", [True, False])
def test_terms_and_gradients_are_those_of_each_row_by_itself(steps):
    """Under left padding, in company, in groups of five rows of logits; gradients are of these rows alone."""
    method = student(steps=steps, divergence={"beta": 0.3, "temperature": 2})
    batch = crossed_of(ROWS)
    terms = method(batch).terms
    wanted = [sum(each) for each in zip(*(naive(method, row, steps) for row in ROWS), strict=True)]
    params = [p for p in method.parameters() if p.requires_grad]
    for name, value in zip(("exact", "rest", "chunk"), wanted, strict=True):
        assert terms[name].total.item() == pytest.approx(value.item(), rel=1e-9)
        ours = torch.autograd.grad(terms[name].total, params, retain_graph=True)
        for mine, theirs in zip(ours, torch.autograd.grad(value, params, retain_graph=True), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)
    kind = METHODS["cot" if steps else "plain"]
    plain = kind(method.backbone, kind.Config(), MARKERS)
    assert terms["answer"].total.item() == pytest.approx(plain(batch).terms["answer"].total.item(), rel=1e-6)
    written, expected = (m.eval().generate(batch.prompt_BP, max_new_tokens=4) for m in (method, plain))
    assert written.tokens == expected.tokens and written.answers == expected.answers


@pytest.mark.parametrize("steps", [True, False])
def test_one_tokenizer_is_distillation(steps):
    method, batch = student(steps=steps, divergence={"temperature": 2}), batch_of(ROWS)
    method.shared = SharedIds(torch.arange(VOCAB), VOCAB)
    settings = {"teacher": teacher(), "steps": steps, "divergence": {"temperature": 2}, "chunk": 5}
    twin = METHODS["distill"](method.backbone, METHODS["distill"].Config(**settings), MARKERS).double()
    visible, start_B = visible_part(batch, MARKERS, 0), (batch.prompt_BP != IGNORE).sum(1)
    whole_BT = torch.cat([batch.prompt_BP, visible.ids_BT], 1)
    role_BT = torch.cat([role_of(batch.prompt_BP, Role.PROMPT), visible.role_BT], 1)
    order_BT = (
        (whole_BT == IGNORE).to(torch.uint8).argsort(dim=1, stable=True)
    )  # a teacher's row starts at its left
    place_BT = torch.arange(visible.ids_BT.shape[1]).expand_as(visible.ids_BT)
    ends = [(place_BT + start_B[:, None], place_BT)[side] + more for side in (0, 1) for more in (0, 1)]
    chunks_BC4 = torch.stack(ends, -1).where((visible.ids_BT != IGNORE)[..., None], IGNORE)
    taught = {"taught_BT": whole_BT.gather(1, order_BT), "taught_role_BT": role_BT.gather(1, order_BT)}
    same = replace(batch, chunks_BC4=chunks_BC4, **taught)
    ours, theirs = method(same).terms, twin(batch).terms
    assert method.units(same) == {"shared token": twin.units(batch)["token"], "chunk": 0, **twin.units(batch)}
    assert ours["exact"].total.item() == pytest.approx(theirs["kd"].total.item(), abs=1e-10)
    assert ours["answer"].total.item() == pytest.approx(theirs["answer"].total.item(), abs=1e-10)
    assert ours["rest"].total == ours["chunk"].total == 0 and ours["rest"].total.requires_grad


def test_only_the_student_learns_and_the_teacher_is_named():
    method = student()
    assert not any(name.startswith("teacher.") for name in method.state_dict() if name not in method.borrowed)
    sum(term.total for term in method(crossed_of(ROWS)).terms.values()).backward()
    assert all(p.grad is None for p in method.teacher.parameters()) and not method.teacher.training


def test_what_a_batch_of_a_teacher_lacks_is_named():
    method, batch = student(), crossed_of(ROWS)
    with pytest.raises(UserError, match=r"data\.format\.taught\.tokenizer"):
        method.units(batch_of(ROWS))
    method.teacher.context = 5
    with pytest.raises(UserError, match="its context is 5"):
        method(batch)
    method.shared = None
    with pytest.raises(UserError, match=r"data\.format\.taught\.tokenizer"):
        method.ids(torch.device("cpu"))


@pytest.mark.parametrize(
    ("recipe", "settings", "says"),
    [
        ("distill/cross", ["data.format.taught=null"], r"set data\.format\.taught\.tokenizer"),
        ("distill/kd", ["data.format.taught.least=0.5"], "no effect on method distill.*use cross"),
        ("distill/cross", ["method.weights={exact: 0, rest: 0, chunk: 0}"], "no teacher is asked"),
        ("distill/cross", ["method.teacher.dtype=bfloat16"], r"set method\.teacher\.path"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(recipe, settings, says):
    with pytest.raises(UserError, match=says):
        resolve(recipe, ["data.path=rows.jsonl", *settings])


def test_without_a_teacher_the_cure_is_named():
    with pytest.raises(UserError, match=r"set method\.teacher\.path"):
        METHODS["cross"](scratch(), METHODS["cross"].Config(), MARKERS)
