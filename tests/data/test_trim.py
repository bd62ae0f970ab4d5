"""Vocabularies cut to a corpus: it is written as before, and so is what else could be written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from quietreasoning.config import UserError
from quietreasoning.data.token_text import token_strings
from quietreasoning.data.tokenizers import train_bpe, train_words
from quietreasoning.data.trim import read_texts, trimmed

TEXTS = ["the cat sat on the mat and the catalogue listed dogs"] * 4 + ["a hat on the log, ünder thé mat"]
SPECIAL = ["<unk>", "<eos>", "<s>"]


def made(kind: str) -> PreTrainedTokenizerFast:
    if kind == "words":
        return train_words(TEXTS)
    if kind == "bytes":
        return train_bpe(TEXTS, 320)
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Replace(" ", "▁")
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    elif kind == "pieces":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL)
        backend.decoder = decoders.WordPiece()
    else:  # merges that write a mark before every inner piece
        backend = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL, continuing_subword_prefix="##")
    trainer.show_progress = False
    backend.train_from_iterator(TEXTS, trainer)
    ends = [("<eos>", backend.token_to_id("<eos>")), ("<s>", backend.token_to_id("<s>"))]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", bos_token="<s>"
    )


def names(tokenizer, text, **how):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, **how).input_ids)


@pytest.mark.parametrize("kind", ["words", "bytes", "unigram", "pieces", "marked"])
def test_the_corpus_is_written_as_before_in_fewer_tokens(tmp_path, kind):
    whole = made(kind)
    whole.add_tokens(["<call>"])
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat\n sat on\nthe log ,\n" if kind != "words" else "the cat\n sat on\nthe hat\n")
    small, old_N = trimmed(whole, corpus)
    assert len(small) == len(old_N) < len(whole)
    assert token_strings(small) == [token_strings(whole)[old] for old in old_N]
    text = corpus.read_text()
    assert names(small, text) == names(whole, text)  # with its special tokens, by name
    assert names(small, "the<call>cat") == names(whole, "the<call>cat")
    assert kind == "words" or whole.unk_token_id is None or "<unk>" not in names(small, "dogs mat")
    assert small.eos_token == whole.eos_token and small.eos_token_id < len(small)
    again, same_N = trimmed(small, corpus)
    assert len(again) == len(small) == len(same_N)


SMALL = {}


@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from("the cats\n🙂éü"), max_size=16))
def test_bytes_still_write_any_text(tmp_path_factory, text):
    if not SMALL:
        corpus = tmp_path_factory.mktemp("corpus") / "corpus.txt"
        corpus.write_text("the cat")
        SMALL["bytes"] = trimmed(made("bytes"), corpus)[0]
    assert SMALL["bytes"].decode(SMALL["bytes"](text).input_ids) == text


def test_texts_are_read_in_stretches_and_faults_name_file_and_line(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("a line\n" * 2500)
    found = list(read_texts(path))
    assert len(found) == 3 and "".join(found) == path.read_text()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "one", "n": 3, "more": ["two"]}\n{"q": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: no JSON"):
        list(read_texts(rows))
    rows.write_text('{"q": "one", "n": 3, "more": ["two"]}\n')
    assert list(read_texts(rows)) == ["one", "two"]
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(UserError, match="holds no text"):
        trimmed(made("words"), empty)
