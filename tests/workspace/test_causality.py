"""Change one token: no earlier logit moves by a bit, in any mode, with every module on."""

import pytest
import torch
from made_models import CHUNK, VOCAB, awake, close, ids_of, in_pieces, ragged

LENGTH = 3 * CHUNK + 3
CHANGED = [1, CHUNK - 1, CHUNK, 2 * CHUNK + 1, LENGTH - 1]


@pytest.fixture(scope="module")
def model():
    return awake()


def changed(ids_BT, row, t):
    other = ids_BT.clone()
    other[row, t] = (other[row, t] + 1 + row) % VOCAB
    return other


def inputs(kind):
    """Ids and what else forward is given."""
    ids_BT = ids_of(3, LENGTH)
    if kind == "left-padded":
        ids_BT, mask = ragged(ids_BT, [LENGTH, LENGTH - CHUNK - 1, LENGTH - 5])
        return ids_BT, {"attention_mask": mask}
    if kind == "gaps":
        mask = (torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(1)) > 0.3).long()
        return ids_BT, {"attention_mask": mask}
    if kind == "marked":
        starts = torch.zeros(3, LENGTH, dtype=torch.bool)
        starts[0, 5] = starts[1, CHUNK + 2] = starts[2, CHUNK] = True
        return ids_BT, {"starts": starts}
    if kind == "packed":
        joins = torch.tensor([[5, CHUNK + 6], [CHUNK, CHUNK + 1], [0, LENGTH]])
        documents = (torch.arange(LENGTH)[None, :, None] >= joins[:, None]).sum(-1)
        return ids_BT, {"document_ids": documents, "use_cache": False}
    return ids_BT, {}


KINDS = ("plain", "left-padded", "gaps", "marked", "packed")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_a_later_one(kind, training, model):
    model.train(training)
    ids_BT, extra = inputs(kind)
    valid_BT = extra.get("attention_mask", torch.ones_like(ids_BT)).bool()
    with torch.set_grad_enabled(training):
        before = model(ids_BT, **extra).logits.detach()
        for t in CHANGED:
            row = t % 3
            after = model(changed(ids_BT, row, t), **extra).logits.detach()
            assert torch.equal(after[row, :t], before[row, :t]), f"token {t} is seen before it stands"
            others = [r for r in range(3) if r != row]
            close(after[others], before[others])
            if valid_BT[row, t]:
                assert not torch.allclose(after[row, t], before[row, t])
            else:
                assert torch.equal(after[row], before[row]), "padding is read"
    assert not before[~valid_BT].any() if kind in ("left-padded", "gaps") else valid_BT.all()


def test_the_test_can_fail(model):
    """A token is heard in every later chunk, so a leak would be as well."""
    model.eval()
    ids_BT = ids_of(3, LENGTH)
    with torch.no_grad():
        moved = (model(changed(ids_BT, 0, 2)).logits - model(ids_BT).logits)[0].abs().amax(-1)
    assert (moved[2:] > 1e-3).all()


def test_later_tokens_do_not_reach_earlier_decoding(model):
    model.eval()
    ids_BT = ids_of(3, LENGTH)
    with torch.no_grad():
        before = in_pieces(model, ids_BT, [5, 1, 7])
        for t in (3, CHUNK, 2 * CHUNK + 1):
            after = in_pieces(model, changed(ids_BT, 1, t), [5, 1, 7])
            assert torch.equal(after[1, :t], before[1, :t]) and not torch.equal(after[1, t:], before[1, t:])


@pytest.mark.parametrize("training", [False, True])
def test_packed_documents_equal_separate_ones(training, model):
    model.train(training)
    ids_BT, extra = inputs("packed")
    documents = extra["document_ids"]
    with torch.set_grad_enabled(training):
        packed = model(ids_BT, **extra).logits
        for row in range(3):
            for document in documents[row].unique():
                own = documents[row] == document
                alone = model(ids_BT[row : row + 1, own], use_cache=False).logits[0]
                close(packed[row, own], alone)


@pytest.mark.parametrize("training", [False, True])
def test_a_row_reads_the_same_in_any_company(training, model):
    model.train(training)
    lengths = [LENGTH, 2, CHUNK, LENGTH - 4]
    padded, mask = ragged(ids_of(4, LENGTH), lengths)
    with torch.set_grad_enabled(training):
        together = model(padded, mask).logits
        wider = model(torch.nn.functional.pad(padded, (3, 2)), torch.nn.functional.pad(mask, (3, 2))).logits
        for row, length in enumerate(lengths):
            alone = model(ids_of(4, LENGTH)[row : row + 1, :length]).logits[0]
            close(together[row, -length:], alone)
            close(wider[row, -length - 2 : -2], alone)


def test_training_and_serving_say_the_same(model):
    """The forward values: halting, gates and choices follow one rule."""
    ids_BT = ids_of(3, LENGTH)
    trained = model.train()(ids_BT).logits.detach()
    with torch.no_grad():
        close(model.eval()(ids_BT).logits, trained)
        close(model(ids_BT, trace=True).logits, trained)


def test_documents_are_not_cached(model):
    from quietreasoning.config import UserError

    ids_BT, extra = inputs("packed")
    with pytest.raises(UserError, match="use_cache=False"):
        model.eval()(ids_BT, document_ids=extra["document_ids"])
