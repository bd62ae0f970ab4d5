"""Which tokens a grammar allows, against the naive way: feed each token's text."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_calls import tokenizers, tools_and_calls

from quietreasoning.config import UserError
from quietreasoning.data.spans.allowed import CallPermit, allowed_tokens
from quietreasoning.data.spans.call_grammar import CallGrammar
from quietreasoning.data.spans.dialects import Json, dialect
from quietreasoning.data.spans.offsets import tokenise
from quietreasoning.data.spans.vocabulary import Vocabulary, unpacked
from quietreasoning.evaluate.tool_scores import read_calls, valid_call

VOCABULARIES = {name: Vocabulary.of(tokenizer) for name, tokenizer in tokenizers().items()}
SPOKEN = {
    "bpe": tools_and_calls(),
    "words": tools_and_calls(("get", "get_x", "get_xy"), ("a", "ab"), ("paris", "red")),
}


def naive(state, vocabulary, eos):
    allowed_V = [text is not None and state.feed(text) is not None for text in vocabulary.texts]
    allowed_V[eos] = state.complete
    return np.array(allowed_V)


@pytest.mark.parametrize("name", ["bpe", "words"])
@settings(deadline=None, max_examples=8)
@given(st.data())
def test_every_gold_token_is_allowed_and_others_where_the_text_with_them_lives(name, data):
    tokenizer, vocabulary = tokenizers()[name], VOCABULARIES[name]
    tools, calls = data.draw(SPOKEN[name])
    tongue = "json" if name == "words" else data.draw(st.sampled_from(["json", "hermes"]))
    mode = data.draw(st.sampled_from(["auto", "required"]))
    head = "a" if name == "words" else "before {"
    answer = " " + dialect(tongue).write(calls, spaced=name == "words" or data.draw(st.booleans()))
    ids, offsets = tokenise(tokenizer, answer)
    lead = len(tokenizer(head).input_ids)
    ids = [*tokenizer(head).input_ids, *ids, tokenizer.eos_token_id, tokenizer.eos_token_id]
    offsets = [(0, len(head))] * lead + [(a + len(head), b + len(head)) for a, b in offsets]
    text = head + answer
    offsets += [(len(text), len(text))] * 2
    grammar = CallGrammar.start(tools, dialect=tongue, mode=mode)
    bits, said = allowed_tokens(
        grammar, vocabulary, text, ids, offsets, eos=tokenizer.eos_token_id, start=len(head)
    )
    assert bits.dtype == np.uint8 and bits.shape == (len(ids), (len(vocabulary) + 7) // 8)
    allowed = unpacked(bits, len(vocabulary))
    state = grammar
    for token in range(lead, len(ids) - 1):
        whole = vocabulary.texts[ids[token]] is not None or token == len(ids) - 2
        assert said[token] == (state.inside and whole)
        if said[token]:
            assert allowed[token, ids[token]]
            assert (allowed[token] == naive(state, vocabulary, tokenizer.eos_token_id)).all()
        state = grammar.feed(text[len(head) : offsets[token][1]])
    assert state.complete and said[-2] and not said[-1] and not said[:lead].any()
    assert not bits[~said].any()


def test_where_the_text_is_free_or_has_left_the_grammar_nothing_is_said():
    tokenizer, vocabulary = tokenizers()["bpe"], VOCABULARIES["bpe"]
    tools = [{"name": "get", "parameters": {"properties": {"a": {"type": "string"}}}}]

    def said(text):
        ids, offsets = tokenise(tokenizer, text)
        found = allowed_tokens(
            CallGrammar.start(tools), vocabulary, text, ids, offsets, eos=tokenizer.eos_token_id
        )
        return found.said_A, ids, offsets

    assert not said("no tool {}")[0].any()
    said_A, _, offsets = said('{"name": "got", "arguments": {}}')
    assert all(one == (0 < offsets[i][0] and offsets[i][1] <= 11) for i, one in enumerate(said_A))
    said_A, ids, _ = said('{"name": "get", "arguments": {"a": "😀"}}')
    parts = [vocabulary.texts[id] is None for id in ids]
    assert sum(parts) > 1 and said_A[1:].tolist() == [not part for part in parts[1:]]
    with pytest.raises(ValueError, match="1 ids have 2 offsets"):
        allowed_tokens(CallGrammar.start(tools), vocabulary, "ab", [1], [(0, 1), (1, 2)], eos=1)


def test_the_texts_of_a_vocabulary_are_what_its_tokens_add():
    text = ' { "name" : "get_x" , "arguments" : { "a" : 12 } }'
    for name, tokenizer in tokenizers().items():
        vocabulary, ids = VOCABULARIES[name], tokenizer(text).input_ids
        assert "".join(vocabulary.texts[id] for id in ids) == text
        assert all(vocabulary.texts[id] is None for id in tokenizer.all_special_ids)
        assert len(Vocabulary.of(tokenizer, len(tokenizer) + 3)) == len(tokenizer) + 3
        allowing = Vocabulary.of(tokenizer, allow=[tokenizer.eos_token])
        assert allowing.texts[tokenizer.eos_token_id].strip() == tokenizer.eos_token
    parts = [id for id, text in enumerate(VOCABULARIES["bpe"].texts) if text is None]
    assert 128 <= len(parts) <= 140  # the bytes above 127, and the special tokens
    assert {text[0] for text in VOCABULARIES["words"].texts if text} == {" "}
    with pytest.raises(UserError, match="the model has 5 tokens"):
        Vocabulary.of(tokenizers()["bpe"], 5)


@pytest.mark.parametrize("name", ["bpe", "words"])
def test_whatever_is_drawn_under_a_permit_is_a_valid_call_or_free_text(name):
    """Each row draws among the permitted tokens, those preferred that come nearer to the end."""
    tokenizer, vocabulary = tokenizers()[name], VOCABULARIES[name]
    schema = {"type": "object", "properties": {"a": {"enum": ["red", "re"]}}, "additionalProperties": False}
    tools = [{"name": one, "parameters": schema} for one in ("get", "get_x")]
    eos, rng = tokenizer.eos_token_id, random.Random(0)
    modes = ["required", "auto", None]
    grammars = [mode and CallGrammar.start(tools, mode=mode) for mode in modes]
    calls = 0
    for _ in range(10):
        permit = CallPermit(grammars, vocabulary, eos)
        rows = [[], [], []]
        for row, tokens in enumerate(rows):
            while len(tokens) < 120 and tokens[-1:] != [eos]:
                allowed_V = permit(row, tokens)
                if allowed_V is None:
                    assert modes[row] != "required"
                    break
                choices = allowed_V.nonzero()[:, 0].tolist()
                assert choices
                dense = [id for id in choices if (vocabulary.texts[id] or "").strip()]
                tokens.append(eos if eos in choices and tokens else rng.choice(dense or choices))
        said = tokenizer.decode(rows[0], skip_special_tokens=True)
        if rows[0][-1] == eos:
            calls += 1
            assert all(valid_call(call, tools) for call in read_calls(said))
    assert calls >= 5
    permit = CallPermit(grammars, vocabulary, eos)
    prefix = tokenizer(Json().write([], spaced=True) if name == "bpe" else "[").input_ids
    with pytest.raises(ValueError, match="left the grammar"):
        permit(0, [*prefix, *prefix, *tokenizer("}").input_ids])
    free = permit(1, [])
    assert free[eos] and all(free[id] for id, text in enumerate(vocabulary.texts) if text is None)
