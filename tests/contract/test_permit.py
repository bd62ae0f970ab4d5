"""A method writes under a permit, or refuses it by name."""

import pytest
import torch
from contract_cases import FIRST, GRIDS, MARKERS, VOCAB, WORKSPACE, backbone_for, make, pad, row_of, scratch

REFUSE = (
    "cot",
    "bake",
    "thoughts",
    "distill",
    "cross",
    "reasoner",
)  # they write the answer prefix too, or all at once


@pytest.fixture(scope="module")
def shared():
    return scratch()


@pytest.mark.parametrize("case", [*FIRST, "distill-spans"])
def test_a_permit_is_obeyed_or_refused(case, shared):
    method = make(case, backbone_for(case) if case in (*WORKSPACE, *GRIDS) else shared).eval()
    prompt_BP = pad([row_of(row)[0] for row in (0, 1, 2, 4)], left=True)
    asked = []

    def permit(row, tokens):
        asked.append((row, tuple(tokens)))
        if row == 1:
            return None
        ids_V = torch.arange(VOCAB)
        return (ids_V % 5 == len(tokens)) & (ids_V != MARKERS.eos) & (row != 2)

    def written(**options):
        return method.generate(prompt_BP, max_new_tokens=4, **options).answers

    if case in REFUSE:
        with pytest.raises(ValueError, match=f"permit does not apply to {case}"):
            written(permit=permit)
        return
    free, held = written(), written(permit=permit)
    assert held[1] == free[1] and held[2] == []  # where nothing is allowed the answer ends
    for row in (0, 3):
        assert [id % 5 for id in held[row]] == [0, 1, 2, 3]
        assert all((row, tuple(held[row][:n])) in asked for n in range(4))
    assert all(tokens == () for row, tokens in asked if row == 2)
