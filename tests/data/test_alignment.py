"""Two tokenisations of one text: chunks are equal, whole and smallest; what stands for the same; coverage."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quietreasoning.config import UserError
from quietreasoning.data.alignment import Coverage, Tokens, align
from quietreasoning.data.token_text import id_map, same_roles, token_keys
from quietreasoning.data.tokenizers import train_bpe, train_words

FINE = train_bpe(["the cat sat on the mat in the hat"], 268)
COARSE = train_bpe(["the cat sat, ünï 🙂🙂 the catalogue  \n of hats and thé mat"] * 3, 330)
WORDS = train_words(["the cat sat on mat in hat"])
SELF = id_map(COARSE, COARSE)
TO_COARSE, KEYS = id_map(FINE, COARSE), (token_keys(FINE), token_keys(COARSE))
TEXT = st.text(st.sampled_from("the catsonm \n🙂éü鱼"), max_size=24)


def ranges(pair_C2):
    return [range(*pair) for pair in pair_C2.tolist()]


@settings(max_examples=80, deadline=None)
@given(TEXT)
def test_chunks_are_the_same_bytes_in_order_and_none_can_be_cut(text):
    taught, student = Tokens.of(FINE, text), Tokens.of(COARSE, text)
    found = align(taught, student, TO_COARSE)
    mine, other = ranges(found.taught_C2), ranges(found.student_C2)
    assert [i for run in mine for i in run] == list(range(len(taught.ids)))
    assert [i for run in other for i in run] == list(range(len(student.ids)))
    whole = {len(text[:end].encode()) for end in range(len(text) + 1)}
    at = 0
    for a, b in zip(mine, other, strict=True):
        pieces = [KEYS[0][taught.ids[i]] for i in a], [KEYS[1][student.ids[i]] for i in b]
        assert b"".join(pieces[0]) == b"".join(pieces[1])
        inner = [{at + len(b"".join(side[:n])) for n in range(1, len(side))} for side in pieces]
        assert not inner[0] & inner[1] & whole, "a border of both, between characters"
        at += len(b"".join(pieces[0]))
    assert at == len(text.encode()) and found.coverage.covered == len(text)


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_one_tokenizer_twice_makes_every_token_a_chunk(text):
    tokens = Tokens.of(COARSE, text, after=["<eos>"])
    found = align(tokens, tokens, SELF)
    every_N2 = np.arange(len(tokens.ids))[:, None] + [0, 1]
    assert (found.taught_C2 == every_N2).all() and (found.student_C2 == every_N2).all()
    assert found.same_C.all() and found.coverage.same_share == found.coverage.covered_share == 1


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_ids_that_were_sampled_have_the_same_borders(text):
    """Followed by decoding, as a tokenizer without offsets is."""
    read, student = Tokens.of(FINE, text), Tokens.of(COARSE, text)
    written = Tokens.of(FINE, text, list(read.ids))
    first, second = (align(tokens, student, TO_COARSE) for tokens in (read, written))
    assert all((a == b).all() for a, b in zip(first[:4], second[:4], strict=True))


def test_dropped_white_space_belongs_to_the_next_word_and_unknown_words_are_left_out():
    text = "the cat\n sat zzz the mat \n"
    taught, student = Tokens.of(FINE, text, after=["<eos>"]), Tokens.of(WORDS, text, after=["<eos>"])
    map_V = id_map(FINE, WORDS, same_roles(FINE, WORDS))
    found = align(taught, student, map_V)
    spans = [text[a:b] for a, b in found.characters_C2.tolist()]
    assert spans == ["the", " cat", "\n", " sat", " the", " mat", " \n", ""]
    names = [WORDS.convert_ids_to_tokens(list(student.ids[a:b])) for a, b in found.student_C2.tolist()]
    assert [" ".join(each) for each in names] == ["the", "cat", "\n", "sat", "the", "mat", "\n", "<eos>"]
    # the first word has no space before it; "\n" is written with one where words are joined by spaces
    same = [name for (name,), same in zip(names, found.same_C, strict=True) if same]
    assert "<eos>" in same and " the" in [s for s, same in zip(spans, found.same_C, strict=True) if same]
    assert found.coverage.covered == len(text) - len(" zzz")
    assert 0 < found.coverage.same < found.coverage.single <= found.coverage.chunks == 8


def spelled(vocab: list[str], decoder, eos: str = "</s>") -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({token: id for id, token in enumerate(vocab)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token=eos)


def test_ids_are_mapped_by_what_they_stand_for_however_it_is_spelled():
    sentencepiece = spelled(
        ["<unk>", "</s>", "<0x20>", "▁the", "the", "▁"],
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )
    gpt = spelled(["<unk>", "<|end|>", "the", "Ġthe", "Ġ", "Ċ"], decoders.ByteLevel(), "<|end|>")
    pieces = spelled(["<unk>", "[SEP]", "##the", "the"], decoders.WordPiece(), "[SEP]")
    assert id_map(sentencepiece, gpt, {"</s>": "<|end|>"}).tolist() == [0, 1, -1, 3, 2, 4]
    assert id_map(gpt, pieces).tolist() == [0, -1, 2, 3, -1, -1]
    assert id_map(sentencepiece, sentencepiece).tolist() == list(range(6))
    assert id_map(sentencepiece, gpt, {"</s>": None, "<unk>": None}).tolist()[:2] == [-1, -1]
    gaps = json.loads(gpt.backend_tokenizer.to_str())
    gaps["model"]["vocab"]["Ċ"] = 9
    gapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(gaps)))
    assert id_map(gpt, gapped).tolist() == [0, 1, 2, 3, 4, 9] and token_keys(gapped)[6] is None


def test_special_tokens_without_a_counterpart_are_refused_with_the_cure():
    other = spelled(["<unk>", "</s>", "the"], None)
    ended = Tokens.of(FINE, "the", after=["<eos>"])
    with pytest.raises(UserError, match=r"'<eos>' stands where the student has '</s>'.*specials="):
        align(ended, Tokens.of(other, "the", after=["</s>"]), id_map(FINE, other))
    with pytest.raises(UserError, match=r"teacher's special token '<eos>' has no counterpart"):
        align(ended, Tokens.of(other, "the"), id_map(FINE, other))
    with pytest.raises(UserError, match=r"the student's '</s>' has no counterpart"):
        align(Tokens.of(FINE, "the"), Tokens.of(other, "the", after=["</s>"]), id_map(FINE, other))
    with pytest.raises(UserError, match=r"no token '<end>'.*Choices: <eos>, <pad>"):
        id_map(FINE, other, {"<end>": "</s>"})
    with pytest.raises(UserError, match="no token '<s>'"):
        Tokens.of(FINE, "the", before=["<s>"])
    with pytest.raises(ValueError, match="different texts"):
        align(ended, Tokens.of(other, "then"), id_map(FINE, other))


def test_coverage_adds_up_and_too_little_names_the_cure():
    whole = Coverage(4, 2, 1, 10, 8, 3) + Coverage(6, 4, 3, 10, 10, 5)
    assert whole.same_share == 0.4 and whole.covered_share == 0.9
    whole.require(0.4)
    with pytest.raises(UserError, match=r"40\.0% of 10 chunks.*90\.0% of 20 characters.*50% .*quiet migrate"):
        whole.require(0.5)
