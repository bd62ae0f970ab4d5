"""The automaton and the parser against the json module; schemas; the vocabulary."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.config import UserError
from quietreasoning.data.spans.automaton import Automaton
from quietreasoning.data.spans.json_text import JsonError, JsonParser, parse_json, string_offsets
from quietreasoning.data.spans.schema import compile_schema
from quietreasoning.data.spans.vocabulary import Vocabulary

TEXTS = st.text(st.sampled_from('ab {}[]",:\\/\n\té😀\u2028\x7f1-'), max_size=6)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, width=32) | TEXTS
)
VALUES = st.recursive(
    LEAVES.filter(lambda x: x not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
WRITTEN = st.builds(
    lambda value, ascii, indent: json.dumps(value, ensure_ascii=ascii, indent=indent),
    VALUES,
    st.booleans(),
    st.sampled_from([None, 0, 2]),
)
MANY = settings(deadline=None, max_examples=40)


def load(text):
    """json.loads without the words that are no JSON."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def valid(text):
    try:
        load(text)
    except ValueError:
        return False
    return True


@MANY
@given(WRITTEN)
def test_valid_json_never_dies_and_completes_exactly_at_its_end(text):
    state, whole = Automaton.start(), Automaton.start().feed(text)
    for index, char in enumerate(text):
        assert state.complete == valid(text[:index])
        state = state.feed(char)
        assert state is not None
    assert state.complete and state == whole
    if text[-1] in '}]"':
        assert not any(state.feed(more) for more in '}],:"0a')


@MANY
@given(WRITTEN, st.data())
def test_both_agree_with_the_json_module_on_damaged_text(text, data):
    at = data.draw(st.integers(0, len(text)))
    piece = data.draw(
        st.sampled_from(["", *'{}[]",:\\0-.eEtu \x01+', "NaN", "Infinity", "01", "1.", "\\u12", "'"])
    )
    broken = text[:at] + piece + text[at + data.draw(st.integers(0, 2)) :]
    state = Automaton.start().feed(broken)
    assert (state is not None and state.complete) == valid(broken)
    if valid(broken):
        assert parse_json(broken).close() == load(broken)
    else:
        with pytest.raises(JsonError) as caught:
            parse_json(broken)
        alive = Automaton.start().feed(broken[: caught.value.offset])
        assert alive is not None, "the fault is not before the place that is named"
        assert caught.value.offset == len(broken) or alive.feed(broken[caught.value.offset]) is None


@MANY
@given(WRITTEN, st.integers(1, 5))
def test_the_parser_gives_every_key_and_leaf_its_place(text, size):
    parser = JsonParser()
    for at in range(0, len(text), size):
        parser.feed(text[at : at + size])
    value = parser.close()
    assert value == load(text)
    for node in parser.nodes:
        assert load(text[node.start : node.end]) == node.value
        inner = value
        for step in node.path[: -1 if node.role == "key" else None]:
            inner = inner[step]
        assert (node.value in inner) if node.role == "key" else (inner == node.value)
    scalars = sorted(node[:2] for node in parser.nodes if node.role != "container")
    assert all(left[1] <= right[0] for left, right in pairwise(scalars))
    between = "".join(c for i, c in enumerate(text) if not any(a <= i < b for a, b in scalars))
    assert set(between) <= set("{}[]:, \n")


@MANY
@given(TEXTS, st.booleans())
def test_each_character_of_a_string_has_its_place(value, ascii):
    raw = json.dumps(value, ensure_ascii=ascii)
    places = string_offsets(raw)
    assert len(places) == len(value) + 1 and places[-1] == len(raw) - 1
    assert [load(f'"{raw[a:b]}"') for a, b in pairwise(places)] == list(value)


def test_faults_name_their_place_and_keys_that_stand_twice_are_known():
    for text, offset, words in [
        ('{"a": 1,}', 8, "a key in quotes expected"),
        ('{"a" 1}', 5, "a colon expected"),
        ("[1 2]", 3, "a comma or the end"),
        ('{"a": "\\x"}', 8, "after a backslash"),
        ("{} {}", 3, "nothing more expected"),
        ('{"a": 1', 7, "ends too early"),
    ]:
        with pytest.raises(JsonError, match=words) as caught:
            parse_json(text)
        assert caught.value.offset == offset
    assert [node.start for node in parse_json('{"a": 1, "b": {"a": 2}, "a": 3}').duplicates] == [24]


def test_depth_has_no_limit():
    text = "[" * 5000 + "]" * 5000
    assert Automaton.start().feed(text).complete and not Automaton.start().feed(text[:-1]).complete


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["cel", "celsius", "fähr😀"]},
        "days": {"type": "integer"},
        "level": {"enum": [1, 12, None]},
        "tags": {"type": "array", "items": {"type": ["boolean", "null"]}},
        "at": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
RULE = compile_schema(SCHEMA)
MEMBERS = {
    "city": TEXTS,
    "unit": st.sampled_from(SCHEMA["properties"]["unit"]["enum"]),
    "days": st.integers(),
    "level": st.sampled_from([1, 12, None]),
    "tags": st.lists(st.none() | st.booleans(), max_size=3),
    "at": st.dictionaries(TEXTS, st.booleans(), max_size=1).map(lambda d: {**d, "x": 1.5}),
}  # fmt: skip


@MANY
@given(
    st.fixed_dictionaries({"city": TEXTS}, optional={k: v for k, v in MEMBERS.items() if k != "city"}),
    st.booleans(),
)
def test_what_fits_the_schema_never_dies(value, ascii):
    assert Automaton.start(RULE).feed(json.dumps(value, ensure_ascii=ascii)).complete


@pytest.mark.parametrize(
    ("lives", "dies"),
    [
        ('{"c', "o"),  # no key begins so
        ('{"city": ', "1"),
        ('{"unit": "cel', "c"),
        ('{"unit": "f\\u00e', "5"),
        ('{"unit": "celsius', "\\"),  # no more may follow, however it is spelled
        ('{"unit": "celsi', '"'),
        ('{"days": 1', "."),
        ('{"days": 1', "e"),
        ('{"level": 1', "3"),
        ('{"level": ', "t"),
        ('{"tags": [true, ', "1"),
        ('{"at": {', "}"),  # x is missing
        ('{"days": 1', "}"),  # city is missing
        ('{"city": "", "', "c"),  # a second time
        ('{"city": "", "unit": "cel", "days": 1, "level": 1, "tags": [], "at": {"x": 1}', ","),  # no key left
        ("", "["),
    ],
)
def test_what_breaks_the_schema_dies_at_once(lives, dies):
    state = Automaton.start(RULE).feed(lives)
    assert state is not None and state.feed(dies) is None


def test_from_every_state_that_lives_the_text_can_be_completed():
    """All states of a small schema, and backwards from those that are complete."""
    rule = compile_schema(
        {
            "type": "object",
            "properties": {"a": {"enum": ["x", "xé"]}, "ab": {"type": "array", "items": {"const": 12}}},
            "required": ["ab"],
            "additionalProperties": False,
        }
    )
    first = Automaton.start(rule)
    open_states, before = [first], {first: set()}
    while open_states:
        state = open_states.pop()
        for char in '{}[]:,"\\0126789 abexéu':
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
    assert len(done) == len(before) > 70


def test_a_declared_key_stands_once_where_others_are_free():
    state = Automaton.start({"properties": {"a": {"type": "integer"}}}).feed('{"a": 1, "a')
    assert state.feed('"') is None and state.feed('b": "x", "b": {"a": 1, "a": 2}}').complete


def test_schemas_that_cannot_be_held_are_refused_with_the_cure():
    for schema, words in [
        ({"type": "text"}, "is no type of JSON.*Choices: array"),
        ({"type": "string", "pattern": "a+"}, "keyword 'pattern' is not supported.*loose=True"),
        ({"properties": {"a": {"enum": [[1]]}}}, r"schema\.properties\.a\.enum holds an object or a list"),
        ({"required": ["b"], "additionalProperties": False}, "required names 'b', which"),
        ({"type": "integer", "enum": ["x"]}, "holds no value of type integer"),
    ]:
        with pytest.raises(UserError, match=words):
            compile_schema(schema)
    loose = Automaton.start({"type": "string", "pattern": "a+"}, loose=True)
    assert loose.feed('"b"').complete and loose.feed("1") is None


def test_the_vocabulary_allows_what_the_automaton_allows():
    texts = [
        '{"',
        '"',
        "city",
        '":',
        ' "',
        "un",
        "unit",
        '": "',
        "cel",
        "days",
        " 1",
        "}",
        '"}',
        None,
        "",
        "cit",
    ]
    vocabulary, state = Vocabulary(texts), Automaton.start(RULE)
    for step in ('{"', "city", '": "', "un", '"', "}"):
        alone = [id for id, text in enumerate(texts) if text and state.feed(text) is not None]
        assert list(vocabulary.allowed(state)) == alone and texts.index(step) in alone
        state = state.feed(step)
    assert state.complete and vocabulary.allowed(state) == ()
