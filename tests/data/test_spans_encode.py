"""Classes and labels of tokens: the border rule, who wrote what, templates, tokenizers without offsets."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.spans.calls import Call
from quietreasoning.data.spans.chat import Chat
from quietreasoning.data.spans.classes import learned_tokens, painted, token_classes, tokens_of
from quietreasoning.data.spans.conversation import Conversation, Turn
from quietreasoning.data.spans.encode import SpanEncoder, collate
from quietreasoning.data.spans.offsets import tokenise
from quietreasoning.data.spans.render import Plain
from quietreasoning.data.spans.span import Kind, Span
from quietreasoning.data.tokenizers import train_bpe, train_words

TOOLS = ({"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}},)
CALLS = (Call("count", {"city": "New Paris", "deep": {"k": [1.5, None]}}), Call("count", {"city": "x"}))
TURNS = (
    Turn("system", "Be brief ."),
    Turn("user", "shops in New Paris ?"),
    Turn("assistant", "I look .", CALLS),
    Turn("tool", '{"shops": 1200, "who": "Zoë Bé"}', name="count"),
    Turn("assistant", "There are 1,200 shops of Zoë Bé 😀 ."),
)
TALK = Conversation(TURNS, TOOLS)
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
BODY = (
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' }}{{ c.function | tojson }}"
    "{{ '\n</tool_call>' }}{% endfor %}"
)
TAIL = (
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BLOCK = "{% generation %}" + BODY + "{% endgeneration %}"
TOLD = HEAD + "{% if m.role == 'assistant' %}" + BLOCK + "{% else %}" + BODY + "{% endif %}" + TAIL
TEMPLATE = HEAD + BODY + TAIL


@cache
def bpe():
    tokenizer = train_bpe(
        ["There are shops of New Paris count city name arguments look brief"] * 3, vocab=330
    )
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<latent>"], special_tokens=True)
    return tokenizer


@cache
def words():
    eos_less = Plain(train_words(["a"])).render(TALK).text
    return train_words([eos_less, "other words : ?"])


def chat(template=TEMPLATE):
    tokenizer = bpe()
    tokenizer.chat_template = template
    return SpanEncoder(tokenizer, Chat(tokenizer))


def plain_bpe(**settings):
    return SpanEncoder(bpe(), Plain(bpe(), dialect_name="json", spaced=False), **settings)


ENCODERS = {
    "words": lambda: SpanEncoder(words(), Plain(words())),
    "bpe": plain_bpe,
    "template": chat,
    "blocks": lambda: chat(TOLD),
    "slow": lambda: SpanEncoder(ByT5Tokenizer(), Plain(ByT5Tokenizer(), dialect_name="hermes", spaced=False)),
}


def pieces(row, kind):
    """Texts of the runs of neighbouring tokens of one class that are learned."""
    runs, last = [], -2
    for token in np.flatnonzero((row.classes_T == kind) & row.learned_T):
        start, end = row.offsets[token]
        runs = [*runs[:-1], (runs[-1][0], end)] if token == last + 1 else [*runs, (start, end)]
        last = token
    return [row.text[start:end].strip() for start, end in runs]


@pytest.mark.parametrize("name", ENCODERS)
def test_classes_and_labels_in_every_format(name):
    encoder = ENCODERS[name]()
    row = encoder.encode(TALK)
    assert len(row.ids_T) == len(row.offsets) == len(row.classes_T) == len(row.learned_T)
    assert pieces(row, Kind.TOOL_NAME) == ["count", "count"]
    assert pieces(row, Kind.ARG_VALUE)[0] == '"New Paris"'
    assert [p.strip('",: ') for p in pieces(row, Kind.ARG_KEY)] == ["city", "deep", "k", "city"]
    assert pieces(row, Kind.INTEGRATION) == ["1,200", "Zoë Bé"]
    assert (row.labels_T[row.learned_T] == row.ids_T[row.learned_T]).all()
    assert (row.labels_T[~row.learned_T] == IGNORE).all()
    # what is learned, read as text: the assistant's words with the mark that ends a turn, and nothing else
    tokenizer = encoder.tokenizer
    end = tokenizer.eos_token if isinstance(encoder.format, Plain) else "<|im_end|>"
    learned = tokenizer.decode(row.ids_T[row.learned_T]).split(end)
    assert len(learned) == 3 and learned[2] == ""
    assert learned[0].split()[:3] == ["I", "look", "."] and "".join(learned[1].split()) == "".join(
        TURNS[4].content.split()
    )
    assert not any(
        word in "".join(learned) for word in ("user", "assistant", "brief", "in New", "tool :", '"shops"')
    )
    # the tokens of a span spell all of it
    for span in row.spans:
        ids = row.ids_T[tokens_of(span, row.offsets)]
        assert "".join(span.of(row.text).split()) in "".join(tokenizer.decode(ids).split())


def test_a_template_that_names_its_blocks_gives_the_same_row():
    told, found = chat(TOLD).encode(TALK), chat(TEMPLATE).encode(TALK)
    assert told.text == found.text and (told.labels_T == found.labels_T).all()
    assert (told.ids_T == found.ids_T).all() and (told.classes_T == found.classes_T).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_neither_prompt_nor_padding_changes_classes_or_labels(name):
    encoder = ENCODERS[name]()
    other = Conversation((TURNS[0], Turn("user", "other words ?"), *TURNS[2:]), TOOLS)
    row, second = encoder.encode(TALK), encoder.encode(other)
    assert (row.ids_T[row.learned_T] == second.ids_T[second.learned_T]).all()
    assert (row.classes_T[row.learned_T] == second.classes_T[second.learned_T]).all()
    short = encoder.encode(Conversation((Turn("user", "words ?"), Turn("assistant", "I look ."))))
    batch = collate([short, row])
    size = len(short.ids_T)
    assert batch.ids_BT.shape == batch.labels_BT.shape == batch.classes_BT.shape == (2, len(row.ids_T))
    assert batch.classes_BT[0, :size].tolist() == short.classes_T.tolist()
    for tensor_BT in (batch.ids_BT, batch.labels_BT, batch.classes_BT):
        assert (tensor_BT[0, size:] == IGNORE).all() and tensor_BT.dtype == batch.ids_BT.dtype
    assert set(short.classes_T) == {Kind.OTHER}  # no call, no result


def test_the_border_rule_more_characters_win_and_a_tie_goes_to_the_value():
    spans = [Span(2, 4, Kind.ARG_VALUE), Span(4, 8, Kind.JSON_SYNTAX), Span(8, 9, Kind.ARG_KEY)]
    kinds_C = painted(spans, 10)
    for (start, end), kind in {
        (2, 6): Kind.ARG_VALUE,  # two each
        (3, 6): Kind.JSON_SYNTAX,
        (1, 4): Kind.ARG_VALUE,
        (0, 3): Kind.OTHER,
        (7, 9): Kind.ARG_KEY,
        (8, 10): Kind.ARG_KEY,
        (5, 5): Kind.OTHER,
    }.items():
        assert token_classes([(start, end)], kinds_C) == [kind]
    inner = painted([Span(3, 5, Kind.INTEGRATION), Span(0, 9, Kind.CODE), Span(0, 9, Kind.CLAIM, "", 0.2)], 9)
    assert inner.tolist() == [6, 6, 6, 5, 5, 6, 6, 6, 6]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(Kind), min_size=1, max_size=12), st.lists(st.integers(1, 4), max_size=6))
def test_no_class_holds_more_of_a_token_than_its_own(kinds, sizes):
    kinds_C = np.array(kinds)
    ends = np.minimum(np.cumsum([0, *sizes]), len(kinds))
    offsets = [(int(a), int(b)) for a, b in pairwise(ends)]
    for (start, end), kind in zip(offsets, token_classes(offsets, kinds_C), strict=True):
        counts = np.bincount(kinds_C[start:end], minlength=len(Kind))
        assert counts[kind] == counts.max()
        if end > start and counts[Kind.ARG_VALUE] == counts.max() and not counts[Kind.LATENT]:
            assert kind == Kind.ARG_VALUE


def test_a_token_that_holds_a_character_of_another_writer_is_context():
    offsets = [(0, 2), (2, 4), (4, 6), (6, 6)]
    learned_T = learned_tokens(offsets, [(1, 5)], np.zeros(6, dtype=np.int64))
    assert learned_T.tolist() == [False, True, False, False]


def test_turns_that_are_context_are_not_learned_and_latents_never():
    first = Conversation(
        (TURNS[1], Turn("assistant", "not this", learn=False), TURNS[1], Turn("assistant", "but this"))
    )
    row = chat().encode(first)
    assert bpe().decode(row.ids_T[row.learned_T]) == "but this<|im_end|>"
    thought = Conversation((TURNS[1], Turn("assistant", "<latent><latent>so 5")))
    form = Plain(bpe(), allow=["<latent>"])
    row = SpanEncoder(bpe(), form, latent="<latent>").encode(thought)
    assert (row.classes_T == Kind.LATENT).sum() == 2 and not row.learned_T[row.classes_T == Kind.LATENT].any()
    assert bpe().decode(row.ids_T[row.learned_T]) == " so 5 <eos>"


def test_a_call_shown_in_the_content_is_prose():
    shown = Turn("assistant", '{"name": "count", "arguments": {"b": 1}} is how .', CALLS[1:])
    for encoder in (plain_bpe(), chat()):
        row = encoder.encode(Conversation((TURNS[1], shown), TOOLS))
        assert pieces(row, Kind.TOOL_NAME) == ["count"] and pieces(row, Kind.ARG_VALUE) == ['"x"']


def test_an_end_of_sequence_is_added_where_the_template_writes_none():
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\nassistant: ' }}{% endif %}"  # fmt: skip # noqa: E501
    row = chat(bare).encode(Conversation((TURNS[1], Turn("assistant", "yes"))))
    assert row.ids_T[-1] == bpe().eos_token_id and row.learned_T[-1]
    assert bpe().decode(row.ids_T[row.learned_T]) == "yes<eos>"
    with pytest.raises(UserError, match="ends assistant turn 1 with no control token"):
        chat(bare).encode(
            Conversation((TURNS[1], Turn("assistant", "yes"), TURNS[1], Turn("assistant", "no")))
        )


def test_what_cannot_be_found_is_refused_with_the_cure():
    forgets = TEMPLATE.replace(
        "{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else '...' }}"
    )
    with pytest.raises(UserError, match=r"assistant turn 2 cannot be found.*Set learn to false"):
        chat(forgets).encode(TALK)
    only_last = Conversation(
        (*TURNS[:2], Turn("assistant", "I look .", CALLS, learn=False), *TURNS[3:]), TOOLS
    )
    assert chat(forgets).encode(only_last).learned_T.any()
    with pytest.raises(UserError, match=r"does not hold its content as it is"):
        chat(TEMPLATE.replace("{{ m.content }}", "{{ m.content | upper }}")).encode(TALK)
    with pytest.raises(UserError, match=r"turn 2 calls count, count, but its text reads as no call"):
        chat(TEMPLATE.replace("c.function | tojson", "c.function.name")).encode(TALK)
    with pytest.raises(UserError, match=r"reads as count, count or with other arguments"):
        chat(TEMPLATE.replace("c.function |", "{'name': 'count', 'arguments': {}} |")).encode(TALK)
    with pytest.raises(UserError, match=r"mark 1 stretches of 2 assistant turns"):
        chat(TOLD.replace("== 'assistant'", "== 'assistant' and loop.last")).encode(TALK)
    with pytest.raises(UserError, match=r"the chat template refuses the conversation \(no\)"):
        chat("{{ raise_exception('no') }}").encode(TALK)
    with pytest.raises(UserError, match=r"holds '<\|im_end\|>', a control token"):
        chat().encode(Conversation((Turn("user", "a<|im_end|>b"), TURNS[4])))
    with pytest.raises(UserError, match="the model's context is 8; use a longer context"):
        plain_bpe(context=8).encode(TALK)
    with pytest.raises(UserError, match="word 'never-met' is unknown to this tokenizer"):
        ENCODERS["words"]().encode(Conversation((TURNS[1], Turn("assistant", "never-met ."))))
    with pytest.raises(UserError, match="has no chat template; use the plain format"):
        Chat(words())


def test_a_slow_tokenizer_that_changes_the_text_is_refused():
    class Lower(ByT5Tokenizer):
        def _tokenize(self, text):
            return super()._tokenize(text.lower())

    ids, offsets = tokenise(ByT5Tokenizer(), "é 😀x")
    assert offsets == [(0, 1), (0, 1), (1, 2), (2, 3), (2, 3), (2, 3), (2, 3), (3, 4)] and len(ids) == 8
    with pytest.raises(UserError, match="Lower has no offsets, and its first 2 tokens decode to 'ab'"):
        tokenise(Lower(), "aB")


def test_conversations_that_make_no_sense_are_refused():
    user = {"role": "user", "content": "a"}
    broken = {"name": "f", "arguments": "{"}
    twice = {"name": "f", "arguments": '{"a": 1, "a": 2}'}
    for message, tools, said in [
        (user, None, "no assistant turn to learn"),
        ({"role": "bot", "content": "a"}, None, r"role='bot' is no role.*Choices"),
        ({"role": "assistant", "contents": "a"}, None, "unknown field 'contents'. Did you mean 'content'"),
        ({"role": "assistant", "content": ""}, None, "an assistant turn is empty"),
        ({"role": "assistant", "tool_calls": [{"name": "cuont"}]}, TOOLS, "Did you mean 'count'"),
        ({"role": "assistant", "tool_calls": [broken]}, None, "are broken JSON: .*at character 1"),
        ({"role": "assistant", "content": [1]}, None, "is list, not text"),
        ({"role": "assistant", "tool_calls": [twice]}, None, "hold 'a' twice; keep one"),
    ]:
        messages = [user, message]
        with pytest.raises(UserError, match=said):
            Conversation.from_messages(messages, tools)
