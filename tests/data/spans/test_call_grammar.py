"""What may be written where tools are declared: all gold calls, and nothing but valid calls."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_calls import tools_and_calls

from quietreasoning.config import UserError
from quietreasoning.data.spans.call_grammar import CallGrammar
from quietreasoning.data.spans.dialects import dialect
from quietreasoning.evaluate.tool_scores import read_calls, valid_call

SOME = settings(deadline=None, max_examples=30)
OBJECT = {"type": "object", "additionalProperties": False}
TOOLS = [
    {"name": "get", "parameters": {**OBJECT, "properties": {"a": {"enum": [1]}}, "required": ["a"]}},
    {"name": "get_x", "parameters": {**OBJECT, "properties": {"b": {"enum": ["y"]}}}},
]


def fed(text, **options):
    return CallGrammar.start(TOOLS, **options).feed(text)


@SOME
@given(
    tools_and_calls(),
    st.sampled_from(["json", "hermes"]),
    st.sampled_from(["auto", "required"]),
    st.booleans(),
)
def test_gold_calls_live_and_are_complete_at_their_end_alone(drawn, name, mode, spaced):
    tools, calls = drawn
    text = dialect(name).write(calls, spaced=spaced)
    state = CallGrammar.start(tools, dialect=name, mode=mode)
    for at, char in enumerate(text):  # in json a proper beginning of a call is none
        assert not state.inside or state.complete == text[:at].strip().endswith("</tool_call>")
        state = state.feed(char)
        assert state is not None, text[: at + 1]
    assert state.complete and state.inside
    assert state == CallGrammar.start(tools, dialect=name, mode=mode).feed(text)
    assert state.feed(" \n").complete and state.feed(" so") is None


@SOME
@given(tools_and_calls(), st.data())
def test_damaged_calls_are_complete_exactly_where_they_are_still_valid(drawn, data):
    tools, calls = drawn
    text = dialect("json").write(calls)
    at = data.draw(st.integers(0, len(text) - 1))
    piece = data.draw(st.sampled_from(["", " ", *'{}[]",:\\0e1_axy', "get", "null", '"a": 1, ']))
    broken = text[:at] + piece + text[at + data.draw(st.integers(0, 3)) :]
    plain = [tool.get("function", tool) for tool in tools]
    said = read_calls(broken)
    valid = said is not None and all(valid_call(call, plain) for call in said)
    for name, around in (("json", broken), ("hermes", f"<tool_call>{broken}</tool_call>")):
        state = CallGrammar.start(tools, dialect=name, mode="required").feed(around)
        single = name == "json" or broken.lstrip().startswith("{")
        assert (state is not None and state.complete) == (valid and single)


@pytest.mark.parametrize("name", ["json", "hermes"])
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_from_every_state_that_lives_the_answer_can_be_completed(name, mode):
    first = CallGrammar.start(TOOLS, dialect=name, mode=mode)
    open_states, before = [first], {first: set()}
    while open_states:
        state = open_states.pop()
        for char in '{}[]:,"1 </>' + "abeglmnorstuy_cx":
            after = state.feed(char)
            if after is not None:
                if after not in before:
                    before[after] = set()
                    open_states.append(after)
                before[after].add(state)
    done = {state for state in before if state.complete}
    reach = list(done)
    while reach:
        more = before[reach.pop()] - done
        done |= more
        reach += more
    assert len(done) == len(before) > 80


def test_the_arguments_follow_the_tool_whose_name_was_read():
    assert {c for c in 'abx_"\\' if fed('{"name": "get' + c)} == {'"', "_", "\\"}  # neither name is favoured
    assert fed('{"name": "get", "arguments": {"a": 1}}').complete
    assert fed('{"name": "get\\u005fx", "arguments": {"b": "y"}}').complete
    for dies in (
        '{"name": "get", "arguments": {"b',
        '{"name": "get_x", "arguments": {"a',
        '{"name": "get", "arguments": {}',
        '{"name": "get", "n',
        '{"name": "get"}',
        '{"a',
        '{"name": "get_"',
        "[]",
        "[[",
        '[{"name": "get", "arguments": {"a": 1}}, {"name": "go',
    ):
        assert fed(dies[:-1]) is not None and fed(dies) is None, dies
    assert fed(' [\n{ "name" : "get" , "arguments" : { "a" : 1 } } \t]\r').complete


def test_text_that_opens_no_call_is_free_in_auto_and_forbidden_else():
    for text in ("no tool fits", 'the set {"a"}', "", " "):
        assert fed(text).complete and not fed(text).inside
        required = fed(text, mode="required")
        assert required is None or (not text.strip() and not required.complete and required.inside)
    call = '<tool_call>{"name": "get_x", "arguments": {}}</tool_call>'
    assert fed("{ what", dialect="hermes").complete
    held = fed("i look: <<tool_call>", dialect="hermes")
    assert held.inside and held.feed("{") and held.feed("x") is None
    assert fed(f"i look: <tool_{call}\n{call} ", dialect="hermes").complete
    assert fed(f"{call} so", dialect="hermes") is None
    assert fed("so", dialect="hermes", mode="required") is None


def test_equal_tools_give_equal_states_and_schemas_are_taken_as_far_as_they_go():
    again = json.loads(json.dumps(TOOLS))
    assert CallGrammar.start(again).feed('{"name": "get') == fed('{"name": "get')
    tools = [
        {"name": "f", "parameters": {"properties": {"a": {"type": "string", "pattern": "x+"}}}},
        {"name": "g", "parameters": {"type": "dict"}},
        {"name": "h", "parameters": {"type": "array"}},
        {"name": "i"},
    ]
    state = CallGrammar.start(tools)
    assert set(state.loose) == {"f", "g", "h"} and "'pattern'" in state.loose["f"]
    for name in "fghi":
        call = state.feed(f'{{"name": "{name}", "arguments": ')
        assert call.feed('{"b": [1]}}').complete and call.feed("1") is None and call.feed("[") is None
    assert state.feed('{"name": "f", "arguments": {"a": 1') is None


@pytest.mark.parametrize(
    ("tools", "options", "words"),
    [
        ([], {}, "no tool is declared"),
        ([{"parameters": {}}], {}, "tool 0 is .* which has no name"),
        ([*TOOLS, {"name": "get"}], {}, "'get' is declared twice"),
        (TOOLS, {"dialect": "pythonic"}, "dialect='pythonic': no grammar for it.*hermes, json"),
        (TOOLS, {"mode": "must"}, "mode='must' is no mode.*auto, required"),
    ],
)
def test_what_makes_no_grammar_is_refused(tools, options, words):
    with pytest.raises(UserError, match=words):
        CallGrammar.start(tools, **options)
