"""Eight thinking tokens: one id each in any tokenizer, told to methods, kept for judges."""

import pytest
from tokenizers import AddedToken

from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tags import THINKING, untagged
from quietreasoning.data.thinking import new_rows, thinking_ids, with_thinking
from quietreasoning.data.tokenizers import (
    build_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    train_words,
)

TEXT = "<think> <step> 3 + 4 = 7\n<step> so 7 </think>"


def some(kind: str):
    if kind == "words":
        return train_words(["think step reason #### 3 + 4 = 7 so"])
    tokenizer = train_bpe(["think step by step #### 3 + 4"] * 9, 290)
    if kind == "holds":  # as some models do: added, but not special
        tokenizer.add_tokens([AddedToken(token, special=False) for token in THINKING[:2]])
    return tokenizer


@pytest.mark.parametrize("kind", ["words", "bpe", "holds"])
def test_each_is_one_special_id_after_a_save_too(kind, tmp_path):
    tokenizer = some(kind)
    held = {token: id for token, id in tokenizer.get_vocab().items() if token in THINKING}
    before = len(tokenizer)
    tokenizer = with_thinking(tokenizer)
    assert len(tokenizer) == before + 8 - len(held)
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(str(tmp_path))
    for made in (tokenizer, again):
        ids = thinking_ids(made)
        assert len(set(ids)) == 8 and [made.decode([id]) for id in ids] == list(THINKING)
        assert all(ids[THINKING.index(token)] == id for token, id in held.items())
        written = made(TEXT, add_special_tokens=False).input_ids
        assert set(written) & set(ids) == {ids[0], ids[1], ids[2]}
        encoder = Encoder(made)
        assert encoder.text([*written, made.eos_token_id], tags=True).split() == TEXT.split()
        assert encoder.text(written).split() == untagged(TEXT).split()
        assert encoder.markers().thinking == ids
    assert new_rows(again) == new_rows(tokenizer) and len(new_rows(again)) == 8 - len(held)


def test_rows_start_at_the_pieces_of_their_words():
    words, bpe = with_thinking(some("words")), with_thinking(some("bpe"))
    think, close, step, _, mece, *_ = thinking_ids(words)
    (only,) = words("think", add_special_tokens=False).input_ids
    assert new_rows(words)[think] == new_rows(words)[close] == (only,)
    assert len(new_rows(words)[step]) == 1 and new_rows(words)[mece] == ()  # a word it does not know
    assert all(bpe.decode(list(pieces)) in "think step reason mece falsify expert doubt".split()
               for pieces in new_rows(bpe).values())  # fmt: skip


def test_without_the_setting_there_are_none():
    assert thinking_ids(some("holds")) == () and Encoder(some("words")).markers().thinking == ()
    words = train_words([TEXT, "#### " + " ".join(THINKING)])  # words that look like them are none
    assert thinking_ids(words) == () and Encoder(words).text(words(TEXT).input_ids).split() == TEXT.split()


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_a_trained_tokenizer_counts_them_in_its_size(kind):
    config = DataConfig(
        task="strategies", train=30, tokenizer={"train": kind, "vocab": 320, "thinking": True}
    )
    tokenizer = build_tokenizer(config, build_task(config))
    ids = thinking_ids(tokenizer)
    assert sorted(ids) == list(range(len(tokenizer) - 8, len(tokenizer)))
    assert len(tokenizer) <= 320 or kind == "words"


def test_a_models_own_tokens_are_not_new_but_those_of_a_named_tokenizer_stay(tmp_path):
    """A folder whose tokenizer holds them has trained their rows; a run's tokenizer tells what it added."""
    save_tokenizer(with_thinking(some("bpe")), tmp_path)
    config = DataConfig(tokenizer={"thinking": True})
    assert new_rows(build_tokenizer(config, build_task(config), str(tmp_path))) == {}
    config = DataConfig(tokenizer={"thinking": True, "path": str(tmp_path)})
    found = build_tokenizer(config, build_task(config), "elsewhere")
    assert sorted(new_rows(found)) == sorted(thinking_ids(found))
