"""Dialects: what is written is read back, every character accounted for. Repeated results."""

import ast
import json
import keyword

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.config import UserError
from quietreasoning.data.spans.calls import Call
from quietreasoning.data.spans.code import code_spans
from quietreasoning.data.spans.dialects import DIALECTS, dialect, parse_any
from quietreasoning.data.spans.integration import integration_spans
from quietreasoning.data.spans.span import Kind, Span

TEXTS = st.text(st.sampled_from("ab {}[]()\"',:\\\n\r\té😀\u2028=✿<>/-"), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.sampled_from([0.5, -2.0, 1e-7]) | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.text(st.sampled_from("abcxyz_"), min_size=1, max_size=6).filter(lambda n: not keyword.iskeyword(n))
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3)
PROSE = st.sampled_from(
    ["", "Let me see: ", "I [really] {think} so.\n", 'See {"a": [1, "x"]} or f(1).\n', "☃ é\n"]
)


def leaves(value):
    """Keys and leaf values below, in order: ("key" or "leaf", value)."""
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in [("key", k), *leaves(v)]]
    return [pair for item in value for pair in leaves(item)] if isinstance(value, list) else [("leaf", value)]


def said(name, text):
    """What a span's text says in its dialect; a bare word says itself."""
    if name == "qwen-coder":
        try:
            return json.loads(text)
        except ValueError:
            return text
    if name == "pythonic":
        return (
            text if text.isidentifier() and text not in ("None", "True", "False") else ast.literal_eval(text)
        )
    return json.loads(text)


@pytest.mark.parametrize("name", DIALECTS)
@settings(deadline=None, max_examples=25)
@given(calls=CALLS, spaced=st.booleans(), before=PROSE, after=PROSE)
def test_what_is_written_is_read_back_with_every_span_in_its_place(name, calls, spaced, before, after):
    text = before + dialect(name).write(calls, spaced=spaced) + "\n" + after
    parsed = dialect(name).parse(text)
    assert list(parsed.calls) == calls and not parsed.faults
    kinds = {kind: [span.of(text) for span in parsed.spans if span.kind is kind] for kind in Kind}
    assert kinds[Kind.TOOL_NAME] == [call.name for call in calls]
    found = [s for s in parsed.spans if s.kind in (Kind.ARG_KEY, Kind.ARG_VALUE)]
    written = [("key" if s.kind is Kind.ARG_KEY else "leaf", said(name, s.of(text))) for s in found]
    assert written == [pair for call in calls for pair in leaves(dict(call.arguments))]
    whole = "".join(span.of(text) for span in parsed.spans)  # no gap, no overlap
    assert before + whole + "\n" + after == text
    assert parse_any(text).calls == parsed.calls


def test_arguments_as_text_have_spans_in_the_outer_text():
    arguments = {"q": 'say "é😀" \\ {now}', "n": [1, {"k": "\n"}]}
    wrapped = {"type": "function", "function": {"name": "ask", "arguments": json.dumps(arguments)}}
    text = f"Well: {json.dumps([wrapped, wrapped])}."
    parsed = dialect("json").parse(text)
    assert parsed.calls == (Call("ask", arguments),) * 2
    assert [s.of(text) for s in parsed.spans if s.kind is Kind.TOOL_NAME] == ["ask", "ask"]
    values = [s.of(text) for s in parsed.spans if s.kind is Kind.ARG_VALUE]
    assert [json.loads(json.loads(f'"{v}"')) for v in values] == ['say "é😀" \\ {now}', 1, "\n"] * 2


def test_an_argument_that_looks_like_a_call_is_an_argument():
    calls = [Call("f", {"inner": {"name": "g", "arguments": {"a": 1}}})]
    for name in DIALECTS:
        text = dialect(name).write(calls)
        assert list(parse_any(text).calls) == list(dialect(name).parse(text).calls) == calls


@pytest.mark.parametrize(
    ("name", "text", "place", "words"),
    [
        ("json", 'so {"name": "f", "arguments": {"a": 1,}}', '}}', "a key in quotes"),
        ("json", '{"name": "f", "arguments": [1]}', "[1]", "is list, not an object"),
        ("json", '{"name": "", "arguments": {}}', '""', "name is empty"),
        ("json", '{"name": "f", "arguments": {"a": 1, "a": 2}}', '"a": 2', "stands twice"),
        ("json", '{"name": "f", "arguments": "{a}"}', "a}", "text, but not JSON"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}', "", "</tool_call> expected"),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', "<tool_call>{", "no name and arguments"),
        ("hermes", "<tool_call>g()</tool_call>", "g()", "a value expected"),
        ("qwen", "✿FUNCTION✿: f\n{}", "f\n", "then a line with"),
        ("qwen-coder", "<tool_call><function=f><parameter=a>1</function>", "", "</parameter> expected"),
        ("qwen-coder", "<tool_call><function=f>a</function>", "a<", "</function> expected"),
        ("pythonic", "[f(1)]", "f(1)", "without a name"),
        ("pythonic", "[f(a=g)]", "g)", "no JSON value"),
        ("pythonic", "[f(a=1), 2]", "2]", "no call"),
        ("pythonic", "[f(a=1", "", "not closed"),
        ("pythonic", "[f(a=1 b=2)]", None, "not a list of calls"),
    ],
)  # fmt: skip
def test_a_broken_call_is_a_fault_with_its_place(name, text, place, words):
    parsed = dialect(name).parse(text)
    assert not parsed.found and len(parsed.faults) == 1 and words in str(parsed.faults[0])
    if place is not None:
        assert parsed.faults[0].offset == (text.index(place) if place else len(text))


def test_a_broken_call_does_not_hide_the_next_one():
    good = Call("g", {"a": [1]})
    for name in ("hermes", "qwen", "json"):
        text = (
            dialect(name).write([Call("f", {"a": 1})]).replace("1}", "1,}")
            + "\n"
            + dialect(name).write([good])
        )
        parsed = dialect(name).parse(text)
        assert parsed.calls == (good,) and len(parsed.faults) == 1


def test_what_a_dialect_cannot_write_is_refused():
    for name, call in [
        ("pythonic", Call("f", {"from": 1})),
        ("pythonic", Call("my tool")),
        ("qwen", Call("two\nlines")),
        ("qwen-coder", Call("f", {"a": "</parameter>"})),
        ("json", Call("f", {"a": float("nan")})),
        ("pythonic", Call("f", {"a": {1}})),
    ]:
        with pytest.raises(UserError, match=r"use another dialect|cannot write it|use plain JSON values"):
            dialect(name).write([call])
    with pytest.raises(UserError, match=r"no dialect of tool calls\. Did you mean 'hermes'"):
        dialect("herms")


def repeated(answer, *results, least=0.5):
    spans = integration_spans(answer, results)
    return [span.of(answer) for span in spans if span.confidence >= least]


@pytest.mark.parametrize("written", ["1200", "1,200", "1200.0", "1.2e3"])
@pytest.mark.parametrize("value", [1200, 1200.0, "1,200", '{"n": 1200}'])
def test_numbers_match_by_value(written, value):
    assert repeated(f"There are {written}, or 12000, 11,200 or a1200.", value) == [written]


def test_signs_dates_and_versions_are_not_torn_apart():
    assert repeated("-35 or 10-35, 2024-01-35, v1.35.2, 35", {"t": -35}) == ["-35"]
    assert repeated("35 and 35.5 and 35.", {"t": 35}) == ["35", "35"]


def test_texts_match_whole_words_whatever_their_case():
    assert repeated("In new  york, New Yorkers and NEW YORK", {"city": "New York"}) == [
        "new  york",
        "NEW YORK",
    ]
    assert repeated("a New York Times in New York", ["New York", "New York Times"]) == [
        "New York Times",
        "New York",
    ]


def test_trivial_values_match_nothing():
    assert repeated("7 True none ok null a0 -3 0", {"a": [7, True, None, "ok", "", "none", -3, "0"]}) == []
    assert repeated("0.5 and 10", [0.5, 10]) == ["0.5", "10"]


def test_numbers_within_a_longer_result_are_less_sure_and_lead_ins_only_hints():
    spans = integration_spans("According to it 21.5 degrees.", ["It is 21.5 C in Paris"])
    assert [(s.confidence, s.reason) for s in spans] == [(0.2, "lead-in"), (0.8, "value of result 0, inside")]
    assert integration_spans("According to it 21.5 degrees.", []) == ()


def test_code_stands_between_fences():
    text = "so\n```python\nx = 1\n\n```\nand\n~~~\n~~~\n```\nopen"
    assert [span.of(text) for span in code_spans(text)] == ["x = 1\n\n", "open"]


def test_a_span_holds_something():
    for start, end in ((1, 1), (2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="holds no character"):
            Span(start, end, Kind.OTHER)
