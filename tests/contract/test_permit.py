"""A permit holds what a method writes behind the answer prefix, whoever wrote that, and nothing before it."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from contract_cases import FIRST, GRIDS, MARKERS, VOCAB, WORKSPACE, backbone_for, make, pad, row_of, scratch

from quietreasoning.evaluate.lm_eval_adapter import Forced

IDS_V = torch.arange(VOCAB)


@pytest.fixture(scope="module")
def shared():
    return scratch()


@pytest.mark.parametrize("case", [*FIRST, "distill-spans"])
def test_a_permit_is_obeyed_behind_the_answer_prefix(case, shared):
    method = make(case, backbone_for(case) if case in (*WORKSPACE, *GRIDS) else shared).eval()
    prompt_BP = pad([row_of(row)[0] for row in (0, 1, 2, 4)], left=True)
    asked = []

    def permit(row, tokens, logits_V):
        asked.append((row, tuple(tokens)))
        if row == 1:
            return None
        return (IDS_V % 5 == len(tokens)) & (IDS_V != MARKERS.eos) & (row != 2)

    def numbers(row, tokens, logits_V):
        allowed_V = permit(row, tokens, logits_V)
        return None if allowed_V is None else torch.zeros(VOCAB).masked_fill(~allowed_V, -torch.inf)

    def written(**options):
        return method.generate(prompt_BP, max_new_tokens=4, **options)

    free = written()
    given = all(tuple(row[:2]) == MARKERS.answer_prefix for row in free.tokens)
    if not given:  # it writes the prefix itself: one that it does write, by chance
        likely = Counter(id for row in free.tokens for id in row[:2]).most_common(1)[0][0]
        method.markers = replace(method.markers, answer_prefix=(likely,))
        free = written()
        assert any(likely in row for row in free.tokens[::3]) and any(free.visible_tokens)
    held = written(permit=permit)
    assert held.tokens[1] == free.tokens[1]
    assert held.answers[2] == []  # where nothing is allowed the answer ends
    for row in (0, 3):
        answer = held.answers[row]
        assert [id % 5 for id in answer] == list(range(len(answer)))
        before = len(held.tokens[row]) - len(answer)
        assert held.tokens[row][:before] == free.tokens[row][:before]
        assert len(answer) == (4 if given or before == 0 else max(0, 4 - before)) or case in GRIDS
        assert all((row, tuple(answer[:n])) in asked for n in range(len(answer)))
    assert all(tokens == () for row, tokens in asked if row == 2)
    assert written(permit=numbers).tokens == held.tokens
    assert written(permit=lambda row, tokens, logits_V: torch.zeros(VOCAB)).tokens == free.tokens

    # what is scored is what is written: one token each, all of which are as likely as anything
    row = next(row for row in (0, 3, 1, 2) if free.answers[row])
    forced = Forced([[id] for id in range(VOCAB)])
    method.generate(prompt_BP[row : row + 1].expand(VOCAB, -1), max_new_tokens=5, permit=forced)
    likely, greedy = zip(*forced.scores(), strict=True)
    assert torch.tensor(likely).exp().sum() == pytest.approx(1, abs=1e-4)
    assert [id for id in range(VOCAB) if greedy[id]] == free.answers[row][:1]
