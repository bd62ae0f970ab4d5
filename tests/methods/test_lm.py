"""The language model learns every token but the first of a row, and writes on from where a row ends."""

import pytest
import torch
from torch.nn import functional as F
from whole_rows import MARKERS, small_model, solutions, text

from quietreasoning.contract import IGNORE
from quietreasoning.methods.lm import LanguageModel
from quietreasoning.methods.whole import next_labels, whole


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_its_sum_is_that_of_rows_without_padding(model):
    method = LanguageModel(model, LanguageModel.Config(), MARKERS)
    for batch in (text(5), solutions(5)):
        ids_BT, _ = whole(batch, MARKERS)
        rows = [ids_T[ids_T != IGNORE] for ids_T in ids_BT]
        wanted = sum(
            float(F.cross_entropy(model.model(row[None]).logits[0, :-1], row[1:], reduction="sum").detach())
            for row in rows
        )
        out = method(batch)
        torch.testing.assert_close(float(out.terms["lm"].total.detach()), wanted, rtol=1e-4, atol=1e-3)
        assert method.units(batch)["token"] == sum(len(row) - 1 for row in rows)
        assert int(out.metrics["token_accuracy"][1]) == method.units(batch)["token"]


def test_a_row_is_prompt_steps_prefix_and_answer():
    batch = solutions(2)
    ids_BT, _ = whole(batch, MARKERS)
    rows = [ids_T[ids_T != IGNORE].tolist() for ids_T in ids_BT]
    for row, found in enumerate(rows):
        parts = [batch.prompt_BP[row], batch.steps_BKS[row].flatten(), torch.tensor(MARKERS.answer_prefix)]
        parts.append(batch.answer_BA[row])
        assert found == [int(i) for part in parts for i in part if i != IGNORE]
    assert next_labels(ids_BT)[0, -1] == IGNORE and whole(text(2), MARKERS)[0].shape == (2, 11)


def test_it_writes_on(model):
    method = LanguageModel(model, LanguageModel.Config(), MARKERS).eval()
    prompt_BP = text(1).prompt_BP
    row = prompt_BP[0].tolist()
    with torch.no_grad():
        for _ in range(3):
            row.append(int(model.model(torch.tensor([row])).logits[0, -1].argmax()))
    assert method.generate(prompt_BP, max_new_tokens=3).tokens[0] == row[11:]
