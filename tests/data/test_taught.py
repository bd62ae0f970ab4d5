"""Rows as a teacher with another tokenizer reads them: its own encoding, cut like the student's."""

from dataclasses import fields

import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.data.batches import Batches
from quietreasoning.data.config import Format
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.tokenizers import save_tokenizer, train_bpe, train_words
from quietreasoning.equip import coverage_note, crossed

TEXT = "how many cats are there ? 12 + 30 = 42 #### there are 42 cats\n and 7 dogs"
EXAMPLES = [
    Example("a", "how many cats are there ?", ("12 + 30 = 42", "42 + 7 = 49"), ("42", "49"), "49 cats"),
    Example("b", "cats ?", (), (), "there are 42 cats and 7 dogs"),
    Example("c", "how many dogs are there ? 7 ?", ("7 = 7",), ("",), "dogs 🙂 7"),
]
FINE, COARSE = train_bpe([TEXT], 262), train_bpe([TEXT] * 3, 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    save_tokenizer(COARSE, path)
    return str(path)


def encoder(folder, student=FINE, **taught):
    given = {"instruction": "be brief . "} if taught.pop("instructed", False) else {}
    return Encoder(student, Format(taught={"tokenizer": folder, **taught}, **given))


def text_of(tokenizer, ids):
    return tokenizer.decode([id for id in ids if id != tokenizer.eos_token_id])


@pytest.mark.parametrize("instructed", [False, True])
def test_a_row_is_the_teachers_own_encoding_and_chunks_are_the_same_text(folder, instructed):
    own = Encoder(COARSE, Format(instruction="be brief . ") if instructed else Format())
    for row, its in zip(
        encoder(folder, instructed=instructed).encode_many(EXAMPLES), own.encode_many(EXAMPLES), strict=True
    ):
        prefix = list(own.markers().answer_prefix)
        parts = [its.instructed if instructed else its.prompt, its.steps, prefix, its.answer]
        assert row.taught.ids_T.tolist() == [id for part in parts for id in part]
        roles = zip((Role.PROMPT, Role.STEP, Role.MARKER, Role.ANSWER), map(len, parts), strict=True)
        assert row.taught.role_T.tolist() == [role for role, count in roles for _ in range(count)]
        mine = [*row.steps, *FINE("####").input_ids, *row.answer]
        chunks = row.taught.chunks_C4.tolist()
        for first, end, start, stop in chunks:
            assert text_of(COARSE, row.taught.ids_T[first:end]) == text_of(FINE, mine[start:stop])
        assert [c[0] for c in chunks[1:]] == [c[1] for c in chunks[:-1]]  # nothing between them
        assert [c[2] for c in chunks[1:]] == [c[3] for c in chunks[:-1]]
        assert chunks[0][::2] == [len(parts[0]), 0] and chunks[-1][1::2] == [len(row.taught.ids_T), len(mine)]


def test_a_batch_holds_its_rows_and_moves_whole(folder):
    maker = encoder(folder)
    batch = maker.batch(EXAMPLES)
    for row, example in enumerate(EXAMPLES):
        alone = maker.batch([example])
        for name in ("taught_BT", "taught_role_BT", "chunks_BC4"):
            wide, narrow = getattr(batch, name)[row], getattr(alone, name)[0]
            assert torch.equal(wide[: len(narrow)], narrow) and (wide[len(narrow) :] == IGNORE).all()
    moved = batch.to("meta")
    assert all(getattr(moved, f.name).shape == getattr(batch, f.name).shape for f in fields(batch))
    without = Encoder(FINE).batch(EXAMPLES)
    assert without.taught_BT.shape == without.taught_role_BT.shape == (3, 0)
    assert without.chunks_BC4.shape == (3, 0, 4)


def test_coverage_is_told_and_too_little_refused(folder):
    for least in (0.1, 0.9):
        batches = Batches(EXAMPLES, encoder(folder, least=least), 3)
        batches.prepare()
        told = coverage_note(batches, refuse=False)
        assert told == [f"two tokenizers: {batches.coverage()}"] and "100.0% of" in told[0]
        if least == 0.9:
            with pytest.raises(UserError, match=r"too little in common.*asked for are 90%.*quiet migrate"):
                coverage_note(batches)
    assert coverage_note(Batches(EXAMPLES, Encoder(FINE), 3)) == []


def test_what_is_missing_is_named(folder):
    with pytest.raises(UserError, match=r"data\.format\.taught\.tokenizer is not set"):
        encoder(None).encode(EXAMPLES[0])
    with pytest.raises(UserError, match=f"has {len(COARSE)} ids, the teacher's table 99 rows"):
        crossed(99, encoder(folder))
    with pytest.raises(UserError, match=r"data\.format\.taught is not set"):
        crossed(99, Encoder(FINE))
    with pytest.raises(ValueError, match=r"format\.tags"):
        Format(taught={"tokenizer": folder}, tags=True)
    words = train_words(["cats"])
    words.chat_template = "{{ messages[0]['content'] }}"
    chat = Encoder(words, Format(taught={"tokenizer": folder}, chat=True, answer_prefix="cats"))
    with pytest.raises(UserError, match=r"taught\.tokenizer=.*has no chat template"):
        chat.taught.rows(EXAMPLES)
