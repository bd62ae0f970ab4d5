"""Openers of calls and sentences that may be checked, as spans and as classes of tokens."""

import pytest

from quietreasoning.data.spans.calls import Call
from quietreasoning.data.spans.claim import claim_spans
from quietreasoning.data.spans.conversation import Conversation, Turn
from quietreasoning.data.spans.dialects import DIALECTS, dialect
from quietreasoning.data.spans.direct_call import direct_calls, with_direct_calls
from quietreasoning.data.spans.encode import SpanEncoder
from quietreasoning.data.spans.render import Plain
from quietreasoning.data.spans.span import Kind
from quietreasoning.data.tokenizers import train_words

CALLS = (Call("find", {"city": "Rome", "n": [1, 2]}), Call("book", {}))
OPENERS = {
    "json": ['[{"name": "', '{"name": "'],
    "hermes": ['<tool_call>\n{"name": "'] * 2,
    "qwen": ["✿FUNCTION✿: "] * 2,
    "pythonic": ["[", ", "],
    "qwen-coder": ["<tool_call>\n<function="] * 2,
}


@pytest.mark.parametrize("name", DIALECTS)
def test_what_opens_a_call_is_marked_and_nothing_else(name):
    text = f"Let me look.\n{dialect(name).write(CALLS)}"
    before = dialect(name).parse(text).spans
    after = direct_calls(before, text)
    marked = [span for span in after if span.kind is Kind.DIRECT_CALL]
    assert [span.of(text) for span in marked] == OPENERS[name]
    assert "".join(span.of(text) for span in after) == "".join(span.of(text) for span in before)
    kept = [span for span in before if span.kind is not Kind.JSON_SYNTAX]
    assert [span for span in after if span.kind not in (Kind.JSON_SYNTAX, Kind.DIRECT_CALL)] == kept
    assert direct_calls((), "") == ()


def test_classes_of_a_row_change_at_the_openers_alone():
    turns = (Turn("user", "a room in Rome ?"), Turn("assistant", "I look .", CALLS))
    conversation = Conversation(turns)
    tokenizer = train_words([Plain(train_words(["a"])).render(conversation).text])
    row = SpanEncoder(tokenizer, Plain(tokenizer)).encode(conversation)
    marked = with_direct_calls(row)
    same = marked.classes_T != Kind.DIRECT_CALL
    assert [row.text[slice(*row.offsets[at])] for at in (~same).nonzero()[0]] == ["[", ","]
    assert (marked.classes_T[same] == row.classes_T[same]).all() and (row.classes_T[~same] == 4).all()
    assert marked.labels_T.tolist() == row.labels_T.tolist()


def test_sentences_that_may_be_checked():
    text = "Sure thing! It costs 12 euro in Rome. Is it 12? He likes the town.\n"
    text += "```\nx = 12 more\n```\n- see `f()` now"
    found = claim_spans(text)
    assert [(span.of(text), span.confidence > 0.5) for span in found] == [
        ("It costs 12 euro in Rome.", True),
        ("He likes the town.", False),
        ("see `f()` now", True),
    ]
    assert {span.kind for span in found} == {Kind.CLAIM}
