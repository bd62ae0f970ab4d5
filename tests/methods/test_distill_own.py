"""Text of the student's own: whose it is, what it costs, and when the teacher writes instead."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from quietreasoning.backbone import role_of
from quietreasoning.backbone.sampling import draw
from quietreasoning.contract import IGNORE, Role
from quietreasoning.methods import METHODS
from quietreasoning.methods.distill import own
from quietreasoning.methods.distill.settings import DistillConfig
from quietreasoning.methods.grpo import uniforms

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, batch_of, batches, configs, make, scratch, spans_of, train

from quietreasoning.train.state import TrainState

ROWS = [0, 1, 3, 5]


@cache
def taught():
    return make("distill").config.teacher.model_dump()


def student(steps=True, weights=None, **text):
    torch.manual_seed(1)
    text = {"share": 0.5, "max_tokens": 5} | text
    weights = {"own": 1, "kd": 0.5, "answer": 0.5} if weights is None else weights
    config = DistillConfig(teacher=taught(), steps=steps, own=text, weights=weights)
    return METHODS["distill"](scratch(layers=1, width=16, mlp=16), config, MARKERS).train()


def laws(model, prompt_P, ids):
    """Logits [T, V] that predict each of `ids` behind a prompt, with no padding, and no cache."""
    ids_1T = torch.cat([prompt_P[prompt_P != IGNORE], torch.tensor(ids, dtype=torch.long)])[None]
    hidden_BTD = model(ids_1T, role_of(ids_1T, Role.PROMPT)).hidden_BTD
    return model.logits(hidden_BTD[0, -len(ids) - 1 :])


@torch.no_grad()
def naive_text(method, prompt_P, key):
    """A row's text, a token at a time, each read from the beginning."""
    config, text = method.config.own, []
    given = [] if method.config.steps else list(MARKERS.answer_prefix)
    numbers = uniforms(torch.tensor([key]), 1 + 2 * config.max_tokens)[:, 1:]
    for at in range(config.max_tokens):
        at_draw = 2 * at if config.interleave else at
        own_1V = laws(method.backbone, prompt_P, [*given, *text])[-1:]
        token = int(draw(own_1V, config.temperature, numbers[:, at_draw]))
        if config.interleave:
            taught_1V = laws(method.teacher, prompt_P, [*given, *text])[-1:]
            if token not in taught_1V[0].topk(config.interleave).indices:
                token = int(draw(taught_1V, config.temperature, numbers[:, at_draw + 1]))
        text.append(token)
        if token == MARKERS.eos:
            break
    return text


def written(method, batch):
    rows = own.write(method, batch.prompt_BP, batch.keys_B)
    return [[id for id in row if id != IGNORE] for row in rows.tolist()]


@pytest.mark.parametrize(("steps", "interleave"), [(True, None), (False, 1), (True, 4)])
def test_texts_are_drawn_by_key_alone_and_corrected_by_the_teacher(steps, interleave):
    """Batch, order and padding change no text; both rules are their twin's, token by token."""
    method = student(steps, interleave=interleave, temperature=1.5).eval()
    batch = batch_of(ROWS)
    texts = written(method, batch)
    assert texts == [
        naive_text(method, *each) for each in zip(batch.prompt_BP, batch.keys_B.tolist(), strict=True)
    ]
    assert written(method, batch_of(ROWS[::-1])) == texts[::-1]
    assert [written(method, batch_of([row]))[0] for row in ROWS] == texts
    if interleave == 1:  # whatever else is drawn, the likeliest of the teacher always stays
        again = written(student(steps, interleave=1, temperature=1e-4).eval(), batch)
        given = [] if steps else list(MARKERS.answer_prefix)
        for prompt_P, text in zip(batch.prompt_BP, again, strict=True):
            best_T = laws(method.teacher, prompt_P, [*given, *text]).argmax(-1)
            assert best_T[len(given) : -1].tolist() == text
    other = replace(batch, keys_B=batch.keys_B + 1000)
    assert written(method, other) != texts, "a row that returns draws anew"


@pytest.mark.parametrize(("steps", "beta"), [(True, 1.0), (False, 0.0)])
def test_the_term_is_the_mean_divergence_of_each_text(steps, beta):
    method, batch = student(steps, beta=beta), batch_of(ROWS)
    chosen_B = own.chosen(batch.keys_B, method.config.own)
    assert 0 < int(chosen_B.sum()) < len(ROWS)
    given, wanted = [] if steps else list(MARKERS.answer_prefix), 0.0
    for row in chosen_B.nonzero()[:, 0].tolist():
        prompt_P = batch.prompt_BP[row]
        text = naive_text(method, prompt_P, int(batch.keys_B[row]))
        both = [
            laws(m, prompt_P, [*given, *text])[len(given) : -1] for m in (method.teacher, method.backbone)
        ]
        p_TV, q_TV = (each.log_softmax(-1) for each in both)
        first, second = (q_TV, p_TV) if beta else (p_TV, q_TV)
        wanted = wanted + (first.exp() * (first - second)).sum(-1).mean()
    out, units = method(batch), method.units(batch)
    term = out.terms["own"]
    assert term.unit == "own text" and units["own text"] == int(chosen_B.sum())
    torch.testing.assert_close(term.total, wanted, rtol=1e-4, atol=1e-5)
    params = list(method.backbone.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(term.total, params, retain_graph=True),
        torch.autograd.grad(wanted, params),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    # the gold terms are those of the other rows
    gold = DistillConfig(teacher=taught(), steps=steps)
    alone = METHODS["distill"](method.backbone, gold, MARKERS)
    rest = batch_of([row for row, is_own in zip(ROWS, chosen_B.tolist(), strict=True) if not is_own])
    for name in ("kd", "answer"):
        torch.testing.assert_close(out.terms[name].total, alone(rest).terms[name].total, rtol=1e-4, atol=1e-4)
    assert units["token"] == alone.units(rest)["token"]


def test_the_share_of_own_text_alone_trains_without_gold_and_without_nan():
    weights = {"own": 1, "kd": 0.5, "answer": 0.5, "tool_name": 1}
    method, batch = student(share=1, weights=weights), spans_of(ROWS)
    out, units = method(batch), method.units(batch)
    assert units == {"token": 0, "tool_name": 0, "own text": len(ROWS)}
    assert all(float(out.terms[name].total.detach()) == 0 for name in ("kd", "answer", "tool_name"))
    assert float(out.terms["own"].total.detach()) > 0
    records = []
    for lanes in (1, 2):
        config, optim = configs(steps=2, accumulate=lanes, batch_size=4)
        state = TrainState.create(student(share=1, max_tokens=3), config, optim)
        records.append([r.loss for r in train(state, batches(4), config, optim)])
    assert all(torch.isfinite(torch.tensor(each)).all() for each in records)
    assert records[0] == pytest.approx(records[1], rel=1e-4)


def test_without_a_term_of_gold_text_nobody_reads_it():
    method = student(share=1, weights={"own": 1, "kd": 0, "answer": 0})
    with method.backbone.tap() as calls:
        assert set(method(spans_of(ROWS)).terms) == {"own"}
    assert set(calls[0].role_BT.flatten().tolist()) <= {int(Role.PAD), int(Role.PROMPT)}
