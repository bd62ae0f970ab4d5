"""Rows that stop apart and answers that say how sure they are: equal to loops over rows and thoughts."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from quietreasoning.build import resolve
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.losses.hazard import first_above, soft_survival_loss, utility_target
from quietreasoning.methods import METHODS
from quietreasoning.train.doctor import examine

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from contract_cases import CASES, MARKERS, batch_of, make, own_answers, prompts_of, scratch, sliding

ROWS = [0, 1, 2, 4, 5]
FEW = ROWS[:3]
LATENTS = 3
Config = METHODS["continuous"].Config


@cache
def method():
    """Rows 0 to 5 stop after one, two or three thoughts; text never ends by itself."""
    found = make("continuous-halt").eval()
    found.markers = replace(MARKERS, eos=-1)
    return found


def built(halt=None, judge=None, backbone=None, **settings):
    torch.manual_seed(1)
    config = Config(latents=LATENTS, halt=halt, self_evaluation=judge, **settings)
    return METHODS["continuous"](backbone or scratch(), config, MARKERS)


def test_each_row_stops_where_its_hazard_says_and_answers_as_if_told_to():
    """Twin: all thoughts, the first hazard above the threshold, then `effort` of that many, row by row."""
    found = method().generate(prompts_of(ROWS), max_new_tokens=3)
    hazard_BK = method().depths(batch_of(ROWS)).hazard_BK
    wanted = first_above(hazard_BK.logit(), method().config.halt.threshold).tolist()
    assert found.latent_steps == found.passes == wanted and set(wanted) == {1, 2, 3}
    for b, (row, k) in enumerate(zip(ROWS, wanted, strict=True)):
        told = method().generate(prompts_of([row]), max_new_tokens=3, effort=k)
        assert (told.tokens[0], told.passes[0]) == (found.tokens[b], k)
        assert told.confidence[0] == pytest.approx(found.confidence[b], abs=1e-5)


@pytest.mark.parametrize(("threshold", "steps"), [(0.0, 1), (1.0, LATENTS)])
def test_the_ends_of_the_threshold(threshold, steps):
    always = built({"threshold": threshold}, backbone=method().backbone).eval()
    with always.backbone.tap() as calls:
        found = always.generate(prompts_of(ROWS), max_new_tokens=1)
    assert found.passes == [steps] * len(ROWS) == [len(calls) - 1] * len(ROWS) and found.confidence is None


def test_thoughts_of_another_row_bring_their_number_along():
    with method().backbone.tap() as calls:
        found = method().generate(prompts_of(ROWS), max_new_tokens=1, control="shuffle")
    thoughts_B = (calls[-1].role_BT == Role.THOUGHT).sum(1).tolist()
    assert thoughts_B == found.latent_steps[-1:] + found.latent_steps[:-1] != found.latent_steps


@torch.no_grad()
def test_targets_come_from_the_answer_after_every_thought():
    """Twin: one row at a time, one token at a time."""
    said = method().generate(prompts_of(FEW), max_new_tokens=2, effort=LATENTS).answers
    batch = own_answers(FEW, said)
    terms = method()(batch).terms
    depths = method().depths(batch)
    logp_BK = torch.zeros(len(FEW), LATENTS)
    right_BK = torch.zeros(len(FEW), LATENTS, dtype=torch.bool)
    for b, row in enumerate(FEW):
        gold = batch.answer_BA[b][batch.answer_BA[b] != IGNORE].tolist()
        for k in range(1, LATENTS + 1):
            states = method().prepare(prompts_of([row]), None, k, 9).states
            hidden_D, past = states.hidden_BTD[:, -1], states.past
            for token in gold:
                logp_BK[b, k - 1] += method().backbone.logits(hidden_D).log_softmax(-1)[0, token]
                read = method().backbone(torch.tensor([[token]]), torch.tensor([[Role.ANSWER]]), past)
                hidden_D, past = read.hidden_BTD[:, -1], read.past
            told = method().generate(prompts_of([row]), max_new_tokens=len(gold), effort=k)
            right_BK[b, k - 1] = told.answers[0] == gold
    assert depths.right_BK.tolist() == right_BK.tolist() and right_BK.any() and not right_BK.all()
    halt = method().config.halt
    target_BK = utility_target(logp_BK.exp(), halt.cost, halt.temperature)
    every_B = torch.ones(len(FEW), dtype=torch.bool)
    total, _ = soft_survival_loss(depths.hazard_BK.logit(), target_BK, every_B)
    torch.testing.assert_close(terms["halt"].total, total, rtol=1e-4, atol=1e-4)
    c_BK = depths.confidence_BK
    lost = -(right_BK * c_BK.log() + ~right_BK * (1 - c_BK).log()).mean(1).sum()
    torch.testing.assert_close(terms["self_evaluation"].total, lost, rtol=1e-4, atol=1e-4)
    assert method().units(batch)["sequence"] == len(FEW)


def test_the_trunk_learns_nothing_unless_asked():
    for detach in (True, False):
        one = built({"detach": detach, "temperature": 1}, {"weight": 1})
        terms = one(batch_of(ROWS)).terms
        for name in ("halt", "self_evaluation"):
            one.zero_grad()
            terms[name].total.backward(retain_graph=True)
            moved = {
                key.split(".")[0] for key, p in one.named_parameters() if p.grad is not None and p.grad.any()
            }
            trunk = {"backbone", "feedback"} if name == "halt" and not detach else set()
            assert moved == {name} | trunk


def test_answers_after_fewer_thoughts_are_practised_as_they_are_given():
    """Twin: the answer's cross-entropy under `effort`, the mean over all but the last thought."""
    one, batch = built({"early": 1}), batch_of(ROWS)
    wanted = 0
    for k in range(1, LATENTS):
        fewer = METHODS["continuous"](one.backbone, Config(latents=k, weights={"step": 0}), MARKERS)
        fewer.feedback = one.feedback
        wanted += fewer(batch).terms["answer"].total / (LATENTS - 1)
    term = one(batch).terms["early"]
    torch.testing.assert_close(term.total, wanted, rtol=1e-4, atol=1e-4)
    term.total.backward()
    assert one.feedback.norm.weight.grad.any() and one.halt.out.weight.grad is None


def test_what_it_costs_and_that_nothing_is_built_by_default():
    """Utilities read the answer after every thought but the last; a curriculum reads nothing more."""

    def reads(one):
        with one.backbone.tap() as calls:
            one(batch_of(ROWS))
        return len(calls)

    backbone = scratch()
    plain = built(backbone=backbone)
    assert reads(built({"weight": 1}, backbone=backbone)) == reads(plain) + LATENTS - 1
    for halt in ({"target": "curriculum", "stage": 1}, {"weight": 0}):
        assert reads(built(halt, backbone=backbone)) == reads(plain)
    assert reads(built(judge={"weight": 1}, backbone=backbone)) == reads(plain)
    headed = built({"weight": 1}, {"weight": 1}, backbone=backbone)
    own = headed.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[0] for name in own} == {"halt", "self_evaluation"}
    assert all(torch.equal(t, headed.state_dict()[name]) for name, t in plain.state_dict().items())
    assert not {"halt", "self_evaluation"} & plain.config.model_dump().keys()
    assert headed.config.model_dump()["halt"]["cost"] == 0.02
    curriculum = built({"target": "curriculum", "stage": 2}, backbone=backbone)(batch_of(ROWS))
    aim, count = curriculum.metrics["halt_aim"]
    assert aim / count == 1  # int(0.5 * 3)


def test_rows_say_where_to_stop_and_those_that_do_not_say_nothing_at_all():
    """Row 0 stops after its second thought, row 1 went on after its first; of the others nothing is known."""
    told = torch.full((len(ROWS), 2), IGNORE)
    told[0], told[1] = torch.tensor([2, 1]), torch.tensor([1, 0])
    one, batch = built({"target": "rows"}), replace(batch_of(ROWS), halt_B2=told)
    z_BK = one.depths(batch).hazard_BK.logit()
    term, units = one(batch).terms["halt"], one.units(batch)
    wanted = -(F.logsigmoid(z_BK[0, 1]) + F.logsigmoid(-z_BK[0, 0])) - F.logsigmoid(-z_BK[1, 0])
    torch.testing.assert_close(term.total, wanted, rtol=1e-4, atol=1e-5)
    assert term.unit == "halt_row" and units["halt_row"] == 2 and "sequence" not in units
    nobody = replace(batch, halt_B2=torch.full((len(ROWS), 2), IGNORE))
    nothing = one(nobody).terms["halt"].total
    nothing.backward()
    assert (
        float(nothing.detach()) == 0 == one.units(nobody)["halt_row"] and not one.halt.out.weight.grad.any()
    )
    every = replace(batch, halt_B2=torch.tensor([[2, 1]]).expand(len(ROWS), 2))
    share = built({"target": "curriculum", "stage": 1}, backbone=one.backbone)  # int(0.75 * 3)
    share.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(every).terms["halt"].total, share(every).terms["halt"].total)
    with pytest.raises(UserError, match=r"after thought 4, and the method has 3: set method\.latents"):
        one(replace(batch, halt_B2=told + 2))
    with pytest.raises(UserError, match=r"set data\.format\.halt\.source"):
        one.units(batch_of(ROWS))


def test_the_doctor_finds_nothing():
    name, settings = CASES["continuous-halt"]
    torch.manual_seed(1)
    found = examine(METHODS[name](scratch(), METHODS[name].Config(**settings), MARKERS), batch_of(range(8)))
    assert found.healthy, found.findings
    assert {"halt", "self_evaluation"} <= {term.name for term in found.terms}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"halt": {"target": "curriculum", "cost": 0.1}}, "cost has no effect with target=curriculum"),
        ({"halt": {"stage": 1}}, "stage has no effect with target=utility"),
        ({"halt": {"weight": 1}, "latents": 1}, "2 latents or more"),
        ({"halt": {"threshold": 1.5}}, "less than or equal to 1"),
        ({"halt": {"weight": 1}, "visible_from": 1}, "halt and visible_from exclude"),
        ({"self_evaluation": {"weight": 1}, "reward": {}}, "self_evaluation and reward exclude"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Config.model_validate(settings)


def test_a_model_that_counts_columns_is_refused():
    with pytest.raises(UserError, match=r"method\.halt: rows that stop apart"):
        built({"weight": 1}, backbone=sliding())
    with pytest.raises(ValueError, match=r"method\.halt is null"):
        built(backbone=method().backbone).depths(batch_of(ROWS))


def test_a_format_that_no_method_reads_is_refused():
    with pytest.raises(UserError, match=r"data\.format\.halt has no effect.*method\.halt\.target=rows"):
        resolve("plain/pointer", ["data.format.halt.source=judge"])
