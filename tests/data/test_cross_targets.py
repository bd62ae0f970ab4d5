"""Texts to rows of both models' logits, and from there to a student that learns from another vocabulary."""

from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.cross_targets import Crossing
from quietreasoning.data.tokenizers import train_bpe, train_words
from quietreasoning.losses.cross_vocabulary import cross_vocabulary
from quietreasoning.losses.kd import Divergence, divergence

FINE = train_bpe(["one cat and one dog sat"], 264)
COARSE = train_bpe(["one cat and one dog sat on the mat"] * 3, 290)
PAIRS = [("two cats", " sat on one mat"), ("a dog", " and the cat 🙂"), ("x", " one")]


@cache
def model(seed: int, vocab: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(shape).double()


def said(model, ids_BT):
    """Logits of every token, flattened; padding stands on the right, where nothing reads it."""
    return model(input_ids=ids_BT.clamp(min=0)).logits.flatten(0, 1)


def crossed(teacher, student, crossing, targets):
    with torch.no_grad():
        taught_NV = said(teacher, targets.taught_BT)
    student_MU = said(student, targets.student_BS)
    return cross_vocabulary(taught_NV, student_MU, targets.chunks, crossing.shared(), Divergence())


def test_the_same_tokenizer_gives_distillation_within_one_vocabulary():
    crossing = Crossing(COARSE, COARSE)
    targets = crossing.targets(PAIRS)
    assert torch.equal(targets.taught_BT, targets.student_BS) and targets.coverage.same_share == 1
    teacher, student = model(0, len(COARSE)), model(1, len(COARSE))
    found = crossed(teacher, student, crossing, targets)
    wanted, count = 0.0, 0
    for row, (prompt, answer) in enumerate(PAIRS):
        start = len(COARSE(prompt).input_ids)
        ids = COARSE(prompt).input_ids + COARSE(answer).input_ids + [COARSE.eos_token_id]
        assert targets.taught_BT[row][targets.taught_BT[row] != IGNORE].tolist() == ids
        ids_1T = torch.tensor([ids])
        both = [m(input_ids=ids_1T).logits[0, start - 1 : -1] for m in (teacher, student)]
        wanted, count = wanted + divergence(*both, Divergence()).sum(), count + len(ids) - start
    torch.testing.assert_close(found.exact, wanted, rtol=0, atol=1e-10)
    assert found.exact_count == count and found.rest == found.chunk == 0


def test_a_chunk_of_several_tokens_is_what_both_models_say_of_these_characters():
    crossing = Crossing(FINE, COARSE)
    targets = crossing.targets([("a", " on")])
    names = [
        [tokenizer.convert_ids_to_tokens(int(id)) for id in ids_BT[0]]
        for tokenizer, ids_BT in ((FINE, targets.taught_BT), (COARSE, targets.student_BS))
    ]
    assert names == [["a", "Ġ", "o", "n", "<eos>"], ["a", "Ġon", "<eos>"]]
    teacher, student = model(0, len(FINE)), model(1, len(COARSE))
    found = crossed(teacher, student, crossing, targets)
    logp_T, logq_T = (
        said(m, ids).log_softmax(-1).gather(1, ids.roll(-1, 1)[0, :, None])[:, 0].detach()
        for m, ids in ((teacher, targets.taught_BT), (student, targets.student_BS))
    )
    p, q = logp_T[:3].sum().exp(), logq_T[0].exp()
    wanted = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(found.chunk.detach(), wanted)
    assert (found.exact_count, found.chunk_count) == (1, 1)  # the end of sequence


def test_what_a_student_sampled_keeps_its_ids():
    """Spelled in bytes, as no tokenizer would write it."""
    crossing = Crossing(FINE, COARSE)
    ids = COARSE.convert_tokens_to_ids(["Ġ", "o", "n"])
    targets = crossing.targets([("a", " on")], sampled=[ids])
    assert targets.student_BS[0].tolist() == [*COARSE("a").input_ids, *ids, COARSE.eos_token_id]
    assert targets.coverage.same_share == 1 and len(targets.chunks) == 4
    with pytest.raises(UserError, match="decode to ' on', not to the text"):
        crossing.targets([("a", " one")], sampled=[ids])


def test_a_student_learns_from_a_teacher_of_another_vocabulary():
    crossing = Crossing(FINE, COARSE)
    targets, teacher = crossing.targets(PAIRS), model(0, len(FINE))
    student = model(2, len(COARSE) + 3)
    assert 0.3 < targets.coverage.same_share < 1 and targets.coverage.covered_share == 1
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    values = []
    for _ in range(15):
        found = crossed(teacher, student, crossing, targets)
        loss = found.exact + found.rest + found.chunk
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append([float(each.detach()) for each in found[:3]])
    assert all(last < 0.7 * first for first, last in zip(values[0], values[-1], strict=True))


def test_too_little_in_common_is_refused_with_what_to_do_instead():
    with pytest.raises(UserError, match=r"too little in common: .* of \d+ chunks.*sequence-level"):
        Crossing(FINE, COARSE).targets(PAIRS, least=0.99)
    with pytest.raises(UserError, match="no token of the teacher stands for the same"):
        Crossing(train_words(["aa"]), COARSE, {"<eos>": None, "<pad>": None})
    with pytest.raises(UserError, match="prompt '' has no tokens"):
        Crossing(FINE, COARSE).targets([("", " one")])
