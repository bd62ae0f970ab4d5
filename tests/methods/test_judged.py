"""Self-evaluation of any method: its target is what greedy writing does, and the head only reads."""

from dataclasses import replace

import pytest
import torch
from contract_cases import MARKERS, batch_of, own_answers, prompts_of, scratch
from torch.nn import functional as F

from quietreasoning.methods import METHODS

ROWS = [0, 1, 2, 4, 5]
KINDS = {
    "plain": {},
    "pause": {"fillers": 2},
    "slots": {"blocks": 2, "loops": 2},
    "continuous": {"latents": 2},
    "distill": {"steps": False, "weights": {"kd": 0, "answer": 1}},
}


def built(kind, judge):
    torch.manual_seed(1)
    markers = replace(MARKERS, eos=-1)  # text never ends by itself
    method = METHODS[kind](scratch(), METHODS[kind].Config(**KINDS[kind], self_evaluation=judge), markers)
    if judge:
        with torch.no_grad():
            method.self_evaluation.out.weight.mul_(30)  # so that rows differ
    return method


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_cross_entropy_of_what_greedy_writing_does_and_said_with_the_answer(kind):
    method = built(kind, {"weight": 0.5}).eval()
    said = method.generate(prompts_of(ROWS), max_new_tokens=3)
    batch = own_answers(ROWS, said.answers)
    again = method.generate(batch.prompt_BP, max_new_tokens=batch.answer_BA.shape[1])
    gold = [[id for id in row if id >= 0] for row in batch.answer_BA.tolist()]
    right_B = torch.tensor([answer == row for answer, row in zip(again.answers, gold, strict=True)])
    assert 0 < right_B.sum() < len(ROWS)
    sure_B = torch.tensor(said.confidence)
    assert sure_B.std() > 0.01
    term = method(batch).terms["self_evaluation"]
    wanted = F.binary_cross_entropy(sure_B, right_B.float(), reduction="sum")
    torch.testing.assert_close(term.total, wanted, rtol=1e-4, atol=1e-4)
    assert (term.unit, term.weight) == ("sequence", 0.5) and method.units(batch)["sequence"] == len(ROWS)
    for b, row in enumerate(ROWS):
        alone = method.generate(prompts_of([row]), max_new_tokens=3)
        assert alone.confidence == pytest.approx([said.confidence[b]], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_learns_nothing_from_it_and_reads_no_more(kind):
    judged, plain = built(kind, {"weight": 1}), built(kind, None)
    with judged.backbone.tap() as calls:
        out = judged(batch_of(ROWS))
    with plain.backbone.tap() as others:
        plain(batch_of(ROWS))
    assert len(calls) == len(others)
    out.terms["self_evaluation"].total.backward()
    moved = {name.split(".")[0] for name, p in judged.named_parameters() if p.grad is not None}
    assert moved == {"self_evaluation"}
    assert plain.generate(prompts_of(ROWS), max_new_tokens=2).confidence is None
    kept = built(kind, {"weight": 0})
    assert kept.units(batch_of(ROWS)) == plain.units(batch_of(ROWS))
    assert kept.generate(prompts_of(ROWS), max_new_tokens=2).confidence is not None


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("plain", {"reward": {}}, "self_evaluation and reward exclude"),
        ("slots", {"weights": {"answer": 0}}, "self_evaluation judges the answer"),
        ("distill", {"steps": True}, r"set method\.steps=false"),
    ],
)
def test_refused(kind, settings, words):
    with pytest.raises(ValueError, match=words):
        METHODS[kind].Config(**KINDS[kind] | settings, self_evaluation={})
