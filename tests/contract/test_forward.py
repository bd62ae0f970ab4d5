"""What forward promises: sums over exactly its units, blind to padding, reaching every weight."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from contract_cases import (
    CARRYING,
    CASES,
    MARKERS,
    REWARDED,
    VOCAB,
    WORKSPACE,
    backbone_for,
    batch_of,
    make,
    row_of,
    rows_of,
    scratch,
)

from quietreasoning.backbone import role_of
from quietreasoning.contract import IGNORE, Role

ROWS = list(range(8))


def loss_of(method, batch):
    counts = method.units(batch)
    return sum(t.weight * t.total / max(counts[t.unit], 1) for t in method(batch).terms.values())


def heard(p):
    """Whether a parameter got a gradient."""
    values = p.grad.coalesce().values() if p.grad is not None and p.grad.is_sparse else p.grad
    return values is not None and bool(values.any())


@pytest.mark.parametrize("case", CASES)
def test_every_trainable_parameter_receives_a_gradient(case):
    method, batch = make(case), rows_of(case)(ROWS)
    loss_of(method, batch).backward()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    missed = [name for name, p in trained.items() if not heard(p)]
    # up is behind down, which starts at zero: it moves from the second step on
    assert not [name for name in missed if not name.startswith("feedback.up.")]
    with torch.no_grad():
        for name, p in method.named_parameters():
            if name.startswith("feedback.down"):
                p.normal_()
    loss_of(method, batch).backward()
    assert all(heard(p) == p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("case", [case for case in CASES if case not in REWARDED])
def test_units_are_what_forward_sums(case):
    """A head of zeros makes every label cost log V, so each sum tells how many labels it holds."""
    method = make(case)
    with torch.no_grad():
        method.backbone.model.get_output_embeddings().weight.zero_()
    for rows in (ROWS, [3], [1], [4, 5]):
        batch = rows_of(case)(rows)
        units, out = method.units(batch), method(batch)
        named = {term.unit for term in out.terms.values()}
        assert named <= set(units) if case in WORKSPACE else named == set(units)
        for name, term in out.terms.items():
            if case in WORKSPACE and name not in ("lm", "step"):
                continue  # of the workspace, not of labels: tests/methods/test_workspace.py counts them
            if (
                name in ("kd", "own", "hidden", "grammar", "tool_choice", "prefer", "unlikely")
                or name in ("exact", "rest", "chunk")  # tests/methods/test_cross.py
                or name in ("retrieve", "mixture", "rare")  # tests/methods/test_recall.py
                or case == "distill-spans"
            ):
                continue  # between two laws, or weighed by one: tests/methods/test_distill.py, test_prefer.py
            if term.unit in ("trajectory", "anchor", "thought"):
                each = {"anchor": 3, "thought": 6}.get(term.unit, 1)
                assert units[term.unit] == each * len(rows)
            elif name in ("match", "halt", "self_evaluation"):
                assert term.unit == "sequence" and units["sequence"] % len(rows) == 0
            else:
                assert term.total.item() == pytest.approx(units[term.unit] * math.log(VOCAB), rel=1e-5), name
        hits, counted = out.metrics.get("token_accuracy", (torch.zeros(()), None))
        assert not counted or units.get("token", 0) % int(counted) == 0  # metrics may be of the last step
        assert (out.carry is None) == (case not in CARRYING) and not hits.requires_grad


@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing(case):
    method, batch = make(case), rows_of(case)(ROWS)
    wider = {}
    for field in ("steps_BKS", "results_BKR"):
        ids = getattr(batch, field)
        wider[field] = torch.nn.functional.pad(ids, (0, 2, 0, 1), value=IGNORE)
    if batch.classes_BA.shape[1]:
        wider["classes_BA"] = torch.nn.functional.pad(batch.classes_BA, (0, 2), value=IGNORE)
        wider["allowed_BAW"] = torch.nn.functional.pad(batch.allowed_BAW, (0, 0, 0, 2))
    for field in ("rejected_BA", "rejected_classes_BA"):
        if getattr(batch, field).shape[1]:
            wider[field] = torch.nn.functional.pad(getattr(batch, field), (0, 3), value=IGNORE)
    wide = replace(
        batch,
        prompt_BP=torch.nn.functional.pad(batch.prompt_BP, (3, 0), value=IGNORE),
        answer_BA=torch.nn.functional.pad(batch.answer_BA, (0, 2), value=IGNORE),
        **wider,
    )
    assert method.units(batch) == method.units(wide)
    before, after = method(batch).terms, method(wide).terms
    for name, term in before.items():
        torch.testing.assert_close(after[name].total, term.total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_costs_what_its_rows_cost(case):
    method = make(case)
    rows = rows_of(case)
    some = ROWS[:5]  # of which one has no step and one no result
    together, alone = method(rows(some)).terms, [method(rows([row])).terms for row in some]
    for name, term in together.items():
        parts = sum(terms[name].total.item() for terms in alone)
        assert term.total.item() == pytest.approx(parts, rel=1e-4, abs=1e-6)


def naive(backbone, row: int, chain: bool) -> tuple[float, int]:
    """Cross-entropy of one row's answer, or chain, prefix and answer, token by token without a batch."""
    prompt, steps, _, answer = row_of(row)
    given = [*prompt] if chain else [*prompt, *MARKERS.answer_prefix]
    written = [*itertools.chain(*steps), *MARKERS.answer_prefix, *answer] if chain else answer
    total = 0.0
    for i, token in enumerate(written):
        ids_BT = torch.tensor([[*given, *written[:i]]])
        logits_V = backbone.logits(backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD)[0, -1]
        total -= float(logits_V.log_softmax(-1)[token])
    return total, len(written)


@pytest.mark.parametrize("case", ["plain", "cot"])
def test_baselines_equal_a_loop_over_tokens(case):
    method = make(case)
    with torch.no_grad():
        expected = [naive(method.backbone, row, case == "cot") for row in ROWS]
        term = method(batch_of(ROWS)).terms["answer"]
    assert term.total.item() == pytest.approx(sum(total for total, _ in expected), rel=1e-4)
    assert method.units(batch_of(ROWS)) == {"token": sum(count for _, count in expected)}


@pytest.mark.parametrize(
    ("null", "twin"),
    [
        ("pause-none", "plain"),
        ("continuous-none", "plain"),
        ("slots-none", "plain"),
        ("coconut-start", "cot"),
    ],
)
def test_without_thoughts_it_is_the_baseline(null, twin):
    backbone, batch = scratch(), batch_of(ROWS)
    method, baseline = make(null, backbone), make(twin, backbone)
    assert {n for n, _ in method.named_parameters()} == {n for n, _ in baseline.named_parameters()}
    assert method.units(batch) == baseline.units(batch)
    ours, theirs = method(batch), baseline(batch)
    assert ours.terms.keys() == theirs.terms.keys()
    torch.testing.assert_close(ours.terms["answer"].total, theirs.terms["answer"].total)
    assert ours.metrics["token_accuracy"] == theirs.metrics["token_accuracy"]
    said, expected = (m.eval().generate(batch.prompt_BP, max_new_tokens=6) for m in (method, baseline))
    assert said.tokens == expected.tokens and said.answers == expected.answers
    assert said.visible_tokens == expected.visible_tokens and said.latent_steps == [0] * len(ROWS)


@pytest.mark.parametrize("case", CASES)
def test_weights_held_in_bfloat16(case):
    method, batch = make(case, backbone_for(case, dtype="bfloat16")), rows_of(case)(ROWS)
    loss = loss_of(method, batch)
    loss.backward()
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    assert len(method.eval().generate(batch.prompt_BP, max_new_tokens=2).tokens) == len(ROWS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(loss_of(make(case), batch))
