"""Random tools with calls that keep their schemas, and two tokenizers, for the tests beside it."""

import functools

from hypothesis import strategies as st

from quietreasoning.data.spans.calls import Call
from quietreasoning.data.spans.dialects import Json
from quietreasoning.data.tokenizers import train_bpe, train_words

NAMES = ("get", "get_x", "get_xy", "né", 'q"t')
TEXTS = st.text(st.sampled_from('ab {}[]",:\\\n<é1'), max_size=5)


def leaf(words):
    """A strategy of (schema, strategy of values)."""
    texts = st.just(({"type": "string"}, st.sampled_from(words) if words else TEXTS))
    return st.one_of(
        texts,
        st.just(({"type": "integer"}, st.integers(-20, 120))),
        st.just(({"type": "number"}, st.sampled_from([0, 1.5, -2.25, 30]))),
        st.just(({"type": "boolean"}, st.booleans())),
        st.just(({"enum": ["red", "re", 1, 12, None]}, st.sampled_from(["red", "re", 1, 12, None]))),
    )


@st.composite
def objects(draw, inner, keys):
    chosen = draw(st.lists(st.sampled_from(keys), unique=True, max_size=3))
    drawn = {key: draw(inner) for key in chosen}
    required = [key for key in chosen if draw(st.booleans())]
    schema = {
        "type": "object",
        "properties": {key: schema for key, (schema, _) in drawn.items()},
        "required": required,
        "additionalProperties": False,
    }
    values = {key: values for key, (_, values) in drawn.items()}
    optional = {key: values.pop(key) for key in chosen if key not in required}
    return schema, st.fixed_dictionaries(values, optional=optional)


@st.composite
def tools_and_calls(draw, names=NAMES, keys=("a", "ab", "é"), words=()):
    """Declared tools and one to three calls of them."""
    lists = leaf(words).map(lambda one: ({"type": "array", "items": one[0]}, st.lists(one[1], max_size=2)))
    inner = st.one_of(leaf(words), lists, objects(leaf(words), keys))
    chosen = draw(st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=3))
    drawn = {name: draw(objects(inner, keys)) for name in chosen}
    tools = [{"name": name, "parameters": schema} for name, (schema, _) in drawn.items()]
    if draw(st.booleans()):
        tools = [{"type": "function", "function": tool} for tool in tools]
    called = draw(st.lists(st.sampled_from(chosen), min_size=1, max_size=3))
    return tools, [Call(name, draw(drawn[name][1])) for name in called]


EXAMPLES = [
    Call("get_x", {"a": "red", "ab": [1, 12, -20, 1.5, None, True]}),
    Call("get", {"a": {"ab": "re", "b": False}}),
]


@functools.cache
def tokenizers():
    """bpe, whose pieces cross the borders of JSON tokens, and words, joined by spaces."""
    texts = [Json().write(EXAMPLES, spaced=spaced) for spaced in (False, True)] * 3
    digits = " ".join(str(n) for n in (*range(-20, 121), 0, 1.5, -2.25, 30))
    words = [
        *texts,
        digits,
        '"paris" "get_xy" "red" "re" "a" "ab" "name" "arguments"',
        "true false null",
    ]
    return {"bpe": train_bpe([*texts, "paris"], 330), "words": train_words(words)}
