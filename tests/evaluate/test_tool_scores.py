"""Scores of calls: gold is 1, each planted fault costs what is documented, no text raises."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.data.example import Example
from quietreasoning.evaluate.rules.json_text import MAX_DEPTH
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.evaluate.tool_scores import CallScore, read_calls, same, score_calls, tool_rates, valid


def object_of(required, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


BOARD = {"type": "string", "enum": ["half", "full"]}
TOOLS = (
    {
        "name": "book",
        "parameters": object_of(
            ["where", "nights"],
            where=object_of(["city"], city={"type": "string"}),
            nights={"type": "integer"},
            board=BOARD,
            extras={"type": "array", "items": {"type": "string"}},
        ),
    },
    {"name": "convert", "parameters": object_of(["amount"], amount={"type": "number"})},
    {"name": "ping", "parameters": object_of([])},
)
BOOK = {"name": "book", "arguments": {"where": {"city": "rome"}, "nights": 3, "board": "half"}}
CONVERT = {"name": "convert", "arguments": {"amount": 4}}


def changed(**arguments):
    return {
        "name": "book",
        "arguments": {k: v for k, v in (BOOK["arguments"] | arguments).items() if v != ()},
    }


def score(said, *gold):
    return score_calls(said if isinstance(said, str) else json.dumps(said), gold or (BOOK,), TOOLS)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (BOOK, (1, 1, 1, 1, 1)),
        ([BOOK], (1, 1, 1, 1, 1)),
        (json.dumps(BOOK, indent=3) + "\n", (1, 1, 1, 1, 1)),
        (CONVERT, (1, 1, 0, 0, 0)),  # another declared tool
        (BOOK | {"name": "reserve"}, (1, 0, 0, 0, 0)),  # a tool that is not declared
        (changed(nights=()), (1, 0, 1, 4 / 5, 0)),  # a required key is missing
        (changed(board=()), (1, 1, 1, 4 / 5, 0)),  # one that is not
        (changed(guests=2), (1, 0, 1, 6 / 7, 0)),  # an unknown key
        (changed(nights="3"), (1, 0, 1, 2 / 3, 0)),  # wrong type
        (changed(nights=True), (1, 0, 1, 2 / 3, 0)),
        (changed(nights=3.0), (1, 0, 1, 1, 0)),  # of the right value, but no integer
        (changed(nights=4), (1, 1, 1, 2 / 3, 0)),  # wrong value
        (changed(board="none"), (1, 0, 1, 2 / 3, 0)),  # outside the enum
        (changed(where="rome"), (1, 0, 1, 2 / 3, 0)),  # flat where it should be nested
        ([BOOK, BOOK], (1, 1, 0, 2 / 3, 0)),  # repeated
        (BOOK | {"id": 1}, (1, 0, 1, 1, 0)),  # more than name and arguments
        ({"name": "book"}, (1, 0, 1, 0, 0)),
        ({"name": ["book"], "arguments": 3}, (1, 0, 0, 0, 0)),
        ({}, (1, 0, 0, 0, 0)),
    ],
)
def test_each_fault_costs_what_is_documented(said, expected):
    assert score(said) == pytest.approx(CallScore(*expected))


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "null", "3", '"book"', "[]", "[3]", "[[]]", "book(3)", "[NaN]", "no tool fits"),
        json.dumps(BOOK)[:-1],
        json.dumps(BOOK) * 2,
        f"call : {json.dumps(BOOK)}",
        json.dumps(BOOK).replace("3", "NaN"),
        json.dumps(BOOK).replace("3", "-Infinity"),
        json.dumps(BOOK).replace("3", "1e999"),
        json.dumps(BOOK).replace("3", "9" * 6000),
        json.dumps(BOOK).replace('"nights"', '"nights": 3, "nights"'),  # a key twice
        *("[" * 100_000, '{"a":' * 127, "[" * 127 + "]" * 127, '[{"a":' + "[" * 9999),
        json.dumps([CONVERT] * 2000),
        "\ud800",
    ],
)
def test_what_is_no_call_scores_nothing(text):
    assert read_calls(text) is None and score(text) == CallScore()


def test_the_deepest_json_that_is_read_scores_low_and_raises_nothing():
    deep = '{"name":"book","arguments":{"nights":' + "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2) + "}}"
    assert score(deep) == CallScore(parses=1, tool=1)


def test_parallel_calls_count_in_any_order_and_arrays_in_theirs():
    other = {"name": "book", "arguments": {"where": {"city": "oslo"}, "nights": 2}}
    gold = (BOOK, CONVERT, other)
    assert score([other, BOOK, CONVERT], *gold) == CallScore(1, 1, 1, 1, 1)
    assert score([BOOK, BOOK, CONVERT], *gold) == pytest.approx((1, 1, 1, 2 * 4 / 13, 0))
    assert score([BOOK, other], *gold) == pytest.approx((1, 1, 0, 2 * 5 / 11, 0))
    listed = changed(extras=["a", "b"])
    assert score(listed, listed).exact == 1
    assert score(changed(extras=["b", "a"]), listed) == CallScore(1, 1, 1, 1, 0)
    assert score({"name": "ping", "arguments": {}}, {"name": "ping", "arguments": {}}) == CallScore(
        1, 1, 1, 1, 1
    )
    assert (
        score({"name": "convert", "arguments": {"amount": 4.0}}, CONVERT).exact == 1
    )  # a number by its value


def test_schemas_and_equality():
    assert same({"a": [1, {"b": None}], "c": 2}, {"c": 2.0, "a": [1, {"b": None}]})
    assert not same([1, 2], [2, 1]) and not same(True, 1) and not same(0, None) and not same("1", 1)
    assert valid({"any": [1]}, {"type": "object"}) and valid("x", {}) and not valid(True, {"enum": [1]})
    assert not valid([1, "a"], {"type": "array", "items": {"type": "integer"}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["book", "rome", "half"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "arguments", "where", "city", "nights", "\0"]), inner)
    ),
    max_leaves=12,
)
CALLS = st.fixed_dictionaries({"name": st.sampled_from(["book", "convert", "x"]), "arguments": JSON})


@settings(max_examples=150, deadline=None)
@given(st.text() | JSON.map(json.dumps) | st.lists(CALLS, max_size=4).map(json.dumps) | st.text('[]{}",:1e'))
def test_no_text_raises_and_scores_stay_in_range(text):
    for gold in ((BOOK,), (CONVERT, BOOK)):
        found = score(text, *gold)
        assert all(0 <= value <= 1 for value in found)
        assert found.parses >= found.valid >= found.exact <= found.argument_f1 and found.exact <= found.tool
        if read_calls(text) is None:
            assert found == CallScore()


def row(kind, answer, *calls):
    return Example(
        kind, "?", (), (), answer, {"kind": kind, "calls": calls, "tools": TOOLS, "needs_tool": bool(calls)}
    )


def test_rates_count_over_calling_and_declines_where_no_call_is_due():
    rows = [
        row("call", json.dumps(BOOK), BOOK),
        row("call", json.dumps(BOOK), BOOK),
        row("decline", "no tool fits"),
        row("decline", "no tool fits"),
        row("told", "7"),
        row("answer", "it costs 7 .", BOOK),
    ]
    texts = [rows[0].answer, "no tool fits", " no tool  fits", json.dumps(CONVERT), "7", "it costs 7"]
    rates = tool_rates(texts, rows)
    assert {name: rates[name] for name in ("parses", "exact", "over_calling", "declined")} == {
        "parses": (1.0, 2),
        "exact": (1.0, 2),
        "over_calling": (1.0, 3),
        "declined": (1.0, 2),
    }
    bare = Example("x", "?", (), (), json.dumps(BOOK))  # of a file, without schemas
    assert SCORERS["call"](json.dumps([BOOK]), bare) and not SCORERS["call"](json.dumps(CONVERT), bare)
    assert not SCORERS["call"](json.dumps(changed(nights=3.0)), rows[0])
    right = [SCORERS["call"](text, example) for text, example in zip(texts, rows, strict=True)]
    assert right == [True, False, True, False, True, True]
