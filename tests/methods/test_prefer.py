"""Preferences: the loss of a naive twin, a reference that stays, both answers alone, openers that fall."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from quietreasoning.backbone import BackboneConfig, LoraConfig, load_backbone, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.kinds import Kind
from quietreasoning.methods import METHODS
from quietreasoning.methods.sequence import read_visible, visible_part
from quietreasoning.train.doctor import examine

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import MARKERS, VOCAB, make, pairs_of, scratch

ROWS = list(range(5))
Prefer = METHODS["prefer"]


def real(ids):
    return ids[ids != IGNORE].tolist()


def naive(backbone, batch):
    """For each row log p of the wanted and of the rejected answer, each with its length, one by one."""
    found = []
    for prompt, *sides in zip(batch.prompt_BP, batch.answer_BA, batch.rejected_BA, strict=True):
        given, row = [*real(prompt), *MARKERS.answer_prefix], []
        for answer in map(real, sides):
            ids_1T = torch.tensor([[*given, *answer]])
            logp_TV = backbone.logits(backbone(ids_1T, role_of(ids_1T, Role.PROMPT)).hidden_BTD)[
                0
            ].log_softmax(-1)
            row += [sum(logp_TV[len(given) - 1 + i, token] for i, token in enumerate(answer)), len(answer)]
        found.append(row)
    return found


def moved(method):
    """The method, a step away from where its stage began."""
    method.pace(0.0)
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    return method


def test_dpo_is_that_of_a_naive_twin_and_the_reference_stays():
    start, batch = make("prefer").double(), pairs_of(ROWS)
    method = moved(make("prefer").double())
    method.pace(0.5)  # the reference is that of the start
    before, now = naive(start.backbone, batch), naive(method.backbone, batch)
    margins = [
        0.1 * ((a - old_a) - (b - old_b))
        for (a, _, b, _), (old_a, _, old_b, _) in zip(now, before, strict=True)
    ]
    out = method(batch)
    assert out.terms["prefer"].total.item() == pytest.approx(
        -sum(map(float, map(logsigmoid, margins))), rel=1e-6
    )
    assert out.terms["answer"].total.item() == pytest.approx(-float(sum(row[0] for row in now)), rel=1e-6)
    assert int(out.metrics["ahead"][0]) == sum(margin > 0 for margin in margins)
    for name, place in (("chosen_logp", 0), ("rejected_logp", 2)):
        assert float(out.metrics[name][0]) == pytest.approx(float(sum(row[place] for row in now)), rel=1e-6)
    method.pace(0.0)  # a new stage begins here
    assert method(batch).terms["prefer"].total.item() == pytest.approx(
        len(ROWS) * -float(logsigmoid(torch.zeros(())))
    )


def test_simpo_is_that_of_a_naive_twin_and_keeps_no_copy():
    method, batch = make("prefer-simpo").double(), pairs_of(ROWS)
    assert method.reference is None
    margins = [2 * (a / long - b / short) - 1 for a, long, b, short in naive(method.backbone, batch)]
    total = method(batch).terms["prefer"].total.item()
    assert total == pytest.approx(-sum(map(float, map(logsigmoid, margins))), rel=1e-6)


@pytest.mark.parametrize("case", ["prefer", "prefer-simpo"])
def test_it_learns_from_the_positions_of_both_answers_alone_whatever_stands_beside(case):
    """The doctor looks: prompts, padding, other rows, the future, and what generate writes."""
    method, batch = moved(make(case)), pairs_of(ROWS)
    diagnosis = examine(method, batch)
    assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]
    tokens = sum(len(real(ids)) for ids in (batch.answer_BA, batch.rejected_BA))
    (pair,) = [term for term in diagnosis.terms if term.name == "prefer"]
    assert pair.positions == {"marker": 2 * len(ROWS), "answer": tokens - 2 * len(ROWS)}


def test_fresh_adapters_refer_to_the_model_without_them(tmp_path):
    scratch().model.save_pretrained(tmp_path)
    config = BackboneConfig(path=str(tmp_path), tune="lora", lora=LoraConfig(rank=2))
    method, batch = Prefer(load_backbone(config, VOCAB), Prefer.Config(), MARKERS), pairs_of(ROWS)
    assert {name.rpartition("lora_")[2][0] for name in method.reference.names} == {"A", "B"}
    with torch.no_grad():
        for name, p in method.named_parameters():
            if "lora_" in name:
                p.normal_()
    visible = visible_part(batch, method.markers, None)
    found = method.at_start(batch.prompt_BP, visible)
    torch.testing.assert_close(
        found, torch.stack([row[0] for row in naive(scratch(), batch)]), rtol=1e-4, atol=1e-4
    )


def test_openers_become_unlikely_and_nothing_else_is_pushed():
    batch = pairs_of(ROWS)
    method = Prefer(scratch(), Prefer.Config(weights={"prefer": 0, "unlikely": 1}), MARKERS)
    is_BA = batch.rejected_classes_BA == Kind.DIRECT_CALL
    first_BA = is_BA.clone()
    first_BA[:, 1:] &= ~is_BA[:, :-1]
    assert method.units(batch) == {"unlikely": int(first_BA.sum())} and not torch.equal(first_BA, is_BA)

    def said():
        text = visible_part(replace(batch, answer_BA=batch.rejected_BA), method.markers, None)
        logits_BTV = method.backbone.logits(read_visible(method.backbone, batch.prompt_BP, text))
        return (
            logits_BTV[:, len(MARKERS.answer_prefix) :]
            .softmax(-1)
            .gather(2, batch.rejected_BA.clamp(min=0)[..., None])[..., 0]
        )

    before, (diagnosis,) = said().detach()[first_BA], examine(method, batch).terms
    assert sum(diagnosis.positions.values()) == int(first_BA.sum())
    optimizer = torch.optim.SGD(method.parameters(), lr=0.3)
    for _ in range(4):
        optimizer.zero_grad()
        method(batch).terms["unlikely"].total.backward()
        optimizer.step()
    after = said()[first_BA]
    assert after.sum() < 0.5 * before.sum()


def test_weights_rise_and_the_answer_keeps_its_own():
    weights = {"prefer": 0.3, "answer": 0.2, "unlikely": 0.6}
    method = Prefer(scratch(), Prefer.Config(ramp={"start": 0.25, "until": 0.5}, weights=weights), MARKERS)
    for progress, share in ((0.0, 0.25), (0.25, 0.625), (0.5, 1.0), (0.9, 1.0)):
        method.pace(progress)
        found = {name: term.weight for name, term in method(pairs_of(ROWS)).terms.items()}
        assert found == pytest.approx({"prefer": 0.3 * share, "answer": 0.2, "unlikely": 0.6 * share})


def test_rows_without_a_rejected_answer_are_in_no_pair():
    method, batch = moved(make("prefer")), pairs_of(ROWS)
    alone = replace(batch, rejected_BA=batch.rejected_BA.clone())
    alone.rejected_BA[2:] = IGNORE
    found, pairs = method(alone), method(pairs_of(ROWS[:2]))
    assert method.units(alone)["pair"] == 2
    assert found.terms["prefer"].total.item() == pytest.approx(pairs.terms["prefer"].total.item(), rel=1e-4)
    assert found.terms["answer"].total.item() == pytest.approx(
        method(batch).terms["answer"].total.item(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weights": {"prefer": 0, "code": 1}}, "nothing reads the rejected answers"),
        ({"gamma": 1}, "gamma is of loss simpo"),
        ({"weights": {"prefer": 0, "unlikely": 1}, "beta": 0.2}, "beta has no effect"),
        ({"weights": {"prefer": 0, "unlikely": 1}, "loss": "simpo"}, "loss has no effect"),
    ],
)
def test_settings_without_effect_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Prefer.Config(**settings)


def test_a_batch_without_pairs_or_classes_is_refused():
    batch = pairs_of(ROWS)
    none = batch.answer_BA[:, :0]
    with pytest.raises(UserError, match=r"no rejected answers: .*task preferences"):
        make("prefer")(replace(batch, rejected_BA=none))
    with pytest.raises(UserError, match=r"weights\.code needs .*data\.format\.spans"):
        make("prefer-simpo").units(replace(batch, classes_BA=none))
