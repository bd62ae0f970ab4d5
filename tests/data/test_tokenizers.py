"""Tokenizers trained offline, saved, loaded, and SentencePiece models carried over exactly."""

import json

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerFast

from quietreasoning.config import UserError
from quietreasoning.data.config import DataConfig, TokenizerConfig, build_task
from quietreasoning.data.tokenizers import (
    build_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    train_words,
)

TEXTS = [
    f"Ada has {n} apples, buys {n % 7} more, gives {n % 3} to Ben: {n}+{n % 7}-{n % 3}={n + n % 7 - n % 3}."
    for n in range(200)
]


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_words_are_single_tokens():
    tokenizer = train_words(["a > b , c 12\n", "#### zz"])
    assert len(ids(tokenizer, "zz > 12\n#### a")) == 6
    assert tokenizer.decode(ids(tokenizer, "a > b")) == "a > b"
    assert tokenizer.unk_token_id in ids(tokenizer, "never met")


def test_bpe_writes_any_text_with_single_digits():
    tokenizer = train_bpe(TEXTS, vocab=400)
    assert 258 <= len(tokenizer) <= 400
    for text in ("Zoë paid €12½\n\tfor naïve fish 鱼 🙂", "  x = 1234  ", TEXTS[17]):
        assert tokenizer.decode(ids(tokenizer, text)) == text
    assert len(ids(tokenizer, "123456")) == 6


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_saved_and_loaded_are_equal(tmp_path, kind):
    tokenizer = train_words(TEXTS) if kind == "words" else train_bpe(TEXTS, vocab=350)
    save_tokenizer(tokenizer, tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    again = load_tokenizer(str(tmp_path))
    assert again.eos_token_id == tokenizer.eos_token_id and len(again) == len(tokenizer)
    for text in TEXTS[:20]:
        assert ids(again, text) == ids(tokenizer, text)
        assert again.decode(ids(again, text)) == tokenizer.decode(ids(tokenizer, text))


def test_training_twice_gives_the_same(tmp_path):
    first, second = (train_bpe(iter(TEXTS), vocab=350).backend_tokenizer.to_str() for _ in range(2))
    assert json.loads(first)["model"] == json.loads(second)["model"]


def test_a_missing_end_of_sequence_is_refused_with_the_cure(tmp_path):
    backend = train_bpe(TEXTS, vocab=300).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"has no end-of-sequence token; set eos_token in its tokenizer_config.json"
    ):
        load_tokenizer(str(tmp_path))


def test_nothing_to_load_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no tokenizer could be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_which_tokenizer_a_recipe_gets(tmp_path):
    save_tokenizer(train_words(["own a b"]), tmp_path / "own")
    save_tokenizer(train_words(["named a b c d"]), tmp_path / "named")

    def size(backbone: str | None, **wanted) -> int:
        config = DataConfig(train=50, tokenizer=wanted)
        return len(build_tokenizer(config, build_task(config), backbone))

    assert size(str(tmp_path / "own")) == 4 + 3
    assert size(str(tmp_path / "own"), path=str(tmp_path / "named")) == 4 + 5
    assert size(None, train="words") == 4 + 16 + 4 + 4  # symbols; > , ? ####; hop counts
    assert size(None, vocab=300) > 256
    with pytest.raises(ValueError, match="exclude each other"):
        TokenizerConfig(path="x", train="bpe")


def test_a_trained_tokenizer_knows_the_text_of_every_stage():
    first = DataConfig(train=50, tokenizer={"train": "words"})
    facts = DataConfig(task="encyclopaedia", options={"facts": 40, "mentions": 80})
    alone = build_tokenizer(first, build_task(first))
    both = build_tokenizer(first, build_task(first), later=[first, facts, facts])
    words = {word for e in build_task(facts).split("valid") for word in f"{e.prompt} {e.answer}".split()}
    assert set(alone.get_vocab()) | words <= set(both.get_vocab()) and not words <= set(alone.get_vocab())
    again = build_tokenizer(
        first, build_task(first), later=[first.model_copy(update={"max_prompt_tokens": 9})]
    )
    assert again.get_vocab() == alone.get_vocab()


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe"},
        {"model_type": "unigram"},
        {"model_type": "bpe", "byte_fallback": True, "split_digits": True},
        {"model_type": "bpe", "add_dummy_prefix": False, "user_defined_symbols": ["<sep>"]},
        {"model_type": "unigram", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_sentencepiece_models_are_carried_over(tmp_path, options):
    path = train_sentencepiece(tmp_path, vocab_size=360 if options.get("byte_fallback") else 100, **options)
    tokenizer = load_tokenizer(path)
    reference = sentencepiece.SentencePieceProcessor(model_file=path)
    assert tokenizer.eos_token_id == reference.eos_id() and len(tokenizer) == len(reference)
    for text in [*TEXTS, " two  spaces ", "<sep>a", "unknown: 鱼"]:
        assert ids(tokenizer, text) == reference.encode(text)
    for text in TEXTS:
        assert tokenizer.decode(reference.encode(text)) == reference.decode(reference.encode(text))
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert ids(load_tokenizer(str(tmp_path / "saved")), TEXTS[0]) == reference.encode(TEXTS[0])


def train_sentencepiece(folder, **options) -> str:
    settings = {"vocab_size": 100, "hard_vocab_limit": False, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "m"), **settings
    )
    return str(folder / "m.model")


def test_sentencepiece_faults_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"has no end of sequence; train it again with --eos_id"):
        load_tokenizer(train_sentencepiece(tmp_path, eos_id=-1))
    with pytest.raises(UserError, match="only SentencePiece models of type unigram or bpe"):
        load_tokenizer(train_sentencepiece(tmp_path, model_type="char"))
    (tmp_path / "junk.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="is no SentencePiece model"):
        load_tokenizer(str(tmp_path / "junk.model"))
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(str(tmp_path / "absent.model"))
