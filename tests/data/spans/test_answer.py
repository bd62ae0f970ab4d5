"""Classes and allowed ids of answer tokens, as a batch carries them."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import Format, SpanFormat
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.spans.vocabulary import unpacked
from quietreasoning.data.tasks.tools import Tools, ToolsConfig
from quietreasoning.data.tokenizers import train_bpe, train_words
from quietreasoning.kinds import Kind


@cache
def rows():
    task = Tools(ToolsConfig(tools=(2, 3), parallel=0.4))
    return task, task.split("train", 24)[:]


@cache
def encoder(kind, grammar=True, dialect="json"):
    task, examples = rows()
    texts = [f"{e.prompt} {e.answer} ####" for e in examples]
    tokenizer = train_words([*task.vocabulary(), "####"]) if kind == "words" else train_bpe(texts, 600)
    return Encoder(tokenizer, Format(spans=SpanFormat(dialect=dialect, grammar=grammar)))


def spelled(coder, row, kind):
    """The text of the answer's tokens of one class."""
    return coder.tokenizer.decode(row.answer[row.tokens.classes_A == kind])


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_every_answer_token_has_its_class_and_every_gold_one_is_allowed(kind):
    coder, (task, examples) = encoder(kind), rows()
    groups = {task.group(e) for e in examples}
    assert {"call", "call of 2", "answer"} <= groups
    coded = coder.encode_many(examples)
    for example, row in zip(examples, coded, strict=True):
        classes_A, bits_AW = row.tokens
        assert len(classes_A) == len(bits_AW) == len(row.answer) and classes_A[-1] == Kind.OTHER
        assert coder.text(row.answer[:-1]) == example.answer
        allowed_AV = unpacked(bits_AW, len(coder.tokenizer))
        told_A = bits_AW.any(1)
        assert allowed_AV[np.arange(len(row.answer)), row.answer][told_A].all()
        if example.meta["kind"] != "call":
            assert not set(classes_A) & {Kind.TOOL_NAME, Kind.ARG_KEY, Kind.ARG_VALUE, Kind.JSON_SYNTAX}
            continue
        names = [call["name"] for call in example.meta["calls"]]
        assert [word.strip('", ') for word in spelled(coder, row, Kind.TOOL_NAME).split()] == names or (
            kind == "bpe"
            and spelled(coder, row, Kind.TOOL_NAME).replace(" ", "").strip('"').startswith(names[0])
        )
        values = "".join(str(v) for call in example.meta["calls"] for v in call["arguments"].values())
        said = spelled(coder, row, Kind.ARG_VALUE)
        assert "".join(c for c in said if c.isalnum()) == "".join(c for c in values if c.isalnum())
        assert set(classes_A[:-1]) >= {Kind.TOOL_NAME, Kind.ARG_KEY, Kind.ARG_VALUE, Kind.JSON_SYNTAX}
        assert told_A[1:].all(), "a call is held to its grammar from its second token to its end"
        named = told_A & (classes_A == Kind.TOOL_NAME)
        assert named.any() and (allowed_AV[named].sum(1) <= 20).all(), "few ids begin a declared name"
    repeats = [r for e, r in zip(examples, coded, strict=True) if e.meta["kind"] == "answer"]
    assert sum((row.tokens.classes_A == Kind.INTEGRATION).any() for row in repeats) > len(repeats) / 2


def test_a_batch_carries_both_padded():
    coder, (_, examples) = encoder("words"), rows()
    coded = coder.encode_many(examples[:6])
    batch = coder.collate(coded, list(range(6)))
    assert batch.classes_BA.shape == batch.answer_BA.shape == batch.allowed_BAW.shape[:2]
    assert torch.equal(batch.classes_BA == IGNORE, batch.answer_BA == IGNORE)
    assert batch.allowed_BAW.dtype == torch.uint8
    assert not batch.allowed_BAW[batch.answer_BA == IGNORE].any()
    for row, one in enumerate(coded):
        size = len(one.answer)
        assert batch.classes_BA[row, :size].tolist() == one.tokens.classes_A.tolist()
        assert batch.allowed_BAW[row, :size].numpy().tolist() == one.tokens.allowed_AW.tolist()
    plain = encoder("words", grammar=False)
    without = plain.collate(plain.encode_many(examples[:2]), [0, 1])
    assert without.classes_BA.shape[1] and not without.allowed_BAW.numel()


def test_a_row_whose_answer_reads_as_other_calls_is_refused():
    _, examples = rows()
    call = next(e for e in examples if e.meta["kind"] == "call" and len(e.meta["calls"]) == 1)
    name, coder = call.meta["calls"][0]["name"], encoder("words")
    words = replace(call, answer="no tool fits")
    with pytest.raises(
        UserError, match=rf"example {call.id}: its answer reads as no call, .* says {name}; mend"
    ):
        coder.encode(words)
    other = replace(call, meta={**call.meta, "calls": [{"name": name, "arguments": {"x": 1}}]})
    with pytest.raises(
        UserError, match=rf"says {name} with other arguments; mend the row, or set data\.format"
    ):
        coder.encode(other)
    with pytest.raises(UserError, match=r"reads as no call.*set data\.format\.spans\.dialect"):
        encoder("words", dialect="hermes").encode(call)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_openers_begin_every_call_and_direct_ones_are_told_where_a_program_is_due(kind):
    _, examples = rows()
    plain = encoder(kind)
    coder = Encoder(plain.tokenizer, Format(spans=SpanFormat(dialect="json", direct_calls=2)))
    openers = set(coder.markers().openers)
    assert openers and not Encoder(plain.tokenizer, Format(spans=SpanFormat())).markers().openers
    seen = set()
    for example in examples:
        if example.meta["kind"] != "call":
            continue
        calls = len(example.meta["calls"])
        seen.add(calls)
        for said, due in ((None, calls >= 2), (True, True), (False, False)):
            meta = example.meta | ({} if said is None else {"metadata": {"code_mode": said}})
            row = coder.encode(replace(example, meta=meta))
            direct_A = row.tokens.classes_A == Kind.DIRECT_CALL
            firsts = np.flatnonzero(direct_A & ~np.append(False, direct_A[:-1]))
            assert len(firsts) == (calls if due else 0)
            assert row.answer[0] in openers and (not due or firsts[0] == 0)
        same_A = plain.encode(example).tokens.classes_A == row.tokens.classes_A
        assert same_A.all(), "a row that says no keeps its classes"
    assert seen == {1, 2}
