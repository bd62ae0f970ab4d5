"""How right written tool calls are, from the text alone: `{"name": ..., "arguments": {...}}`, or several in a
list.

A text is read whole, as JSON and nothing else. One that is neither an object nor a list of objects scores 0
everywhere and never raises: what `evaluate/rules/json_text.py` refuses (NaN and infinities, a key that stands
twice in an object, numbers and nesting without end), more than MAX_CHARACTERS characters or MAX_BRACKETS
opening brackets are no JSON here. Calls of one text are matched to the gold ones in any order; the order
within an array counts for `exact` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from quietreasoning.data.example import Example
from quietreasoning.evaluate.rules.json_text import JsonFault, read_json

MAX_CHARACTERS = 20_000
MAX_BRACKETS = 128

Calls = Sequence[Mapping[str, Any]]


class CallScore(NamedTuple):
    """Each in [0, 1]; only argument_f1 is ever in between."""

    parses: float = 0.0  # JSON: an object, or a list of at least one
    valid: float = 0.0  # every call names a declared tool and keeps its schema
    tool: float = 0.0  # the called names are the gold ones, each as often
    argument_f1: float = (
        0.0  # of leaves (keys down to it, value) in matched calls of one name; others are wrong
    )
    exact: float = 0.0  # valid, and equal to the gold calls


def score_calls(text: str, gold: Calls, tools: Sequence[Mapping[str, Any]]) -> CallScore:
    """What a text scores against the gold calls, at least one, under the declared schemas.

    A number equals another of its value (4 and 4.0, of which an integer's schema takes the first); true is no
    number. A call made once too often costs `tool`, `exact` and the precision of its arguments.
    """
    said = read_calls(text)
    if said is None:
        return CallScore()
    valid = all(valid_call(call, tools) for call in said)
    tool = Counter(_name(call) for call in said) == Counter(call["name"] for call in gold)
    return CallScore(
        parses=1.0,
        valid=float(valid),
        tool=float(tool),
        argument_f1=_argument_f1(said, gold, tool),
        exact=float(valid and tool and same_calls(said, gold)),
    )


def read_calls(text: str) -> tuple[dict[str, Any], ...] | None:
    """The objects of a text, valid calls or not; None where it is anything else."""
    if len(text) > MAX_CHARACTERS or text.count("{") + text.count("[") > MAX_BRACKETS:
        return None
    try:
        value = read_json(text, fenced=False).value
    except JsonFault:
        return None
    objects = value if isinstance(value, list) else [value]
    return tuple(objects) if objects and all(isinstance(one, dict) for one in objects) else None


def valid_call(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it has a name and arguments and nothing else, and the tool of that name takes them."""
    if set(call) != {"name", "arguments"}:
        return False
    schema = next((tool["parameters"] for tool in tools if tool["name"] == call["name"]), None)
    return schema is not None and valid(call["arguments"], schema)


def valid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value keeps a JSON schema of type, enum, properties, required, additionalProperties, items.

    An integer is written without point and exponent: 4.0 is a number.
    """
    kind = "integer" if type(value) is int else _kind(value)
    wanted = schema.get("type", kind)
    if kind != wanted and (kind, wanted) != ("integer", "number"):
        return False
    if "enum" in schema and not any(same(value, choice) for choice in schema["enum"]):
        return False
    if kind == "array":
        return all(valid(item, schema.get("items", {})) for item in value)
    if kind != "object":
        return True
    known = schema.get("properties", {})
    if schema.get("additionalProperties", True) is False and not known.keys() >= value.keys():
        return False
    return value.keys() >= set(schema.get("required", ())) and all(
        valid(value[key], known[key]) for key in known if key in value
    )


def same(a: Any, b: Any) -> bool:
    """Equal as JSON: keys in any order, numbers by value, booleans apart from numbers."""
    if _kind(a) != _kind(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def asks_call(example: Example) -> bool:
    """Whether the row's answer is a call, and no words."""
    return read_calls(example.answer) is not None


def exact_call(text: str, example: Example) -> bool:
    """Whether the text makes the calls of the row's answer, each once, in any order, and no others.

    `meta["tools"]`, where a task gives it, declares the schemas that they must keep as well.
    """
    said, gold, tools = read_calls(text), read_calls(example.answer), example.meta.get("tools")
    if said is None or gold is None or not same_calls(said, gold):
        return False
    return tools is None or all(valid_call(call, tools) for call in said)


def tool_rates(texts: Sequence[str], examples: Sequence[Example]) -> dict[str, tuple[float, int]]:
    """(sum, rows counted) of each figure, over one text a row.

    parses, valid, tool, argument_f1, exact: rows that ask for a call. over_calling: rows that need no tool
    and got a call. declined: rows that no tool fits and that say so. Rows are those of the task `tools`.
    """
    found: dict[str, list[float]] = {name: [] for name in (*CallScore._fields, "over_calling", "declined")}
    for text, example in zip(texts, examples, strict=True):
        kind = example.meta["kind"]
        if asks_call(example):
            score = score_calls(text, example.meta["calls"], example.meta["tools"])
            for name, value in score._asdict().items():
                found[name].append(value)
        if not example.meta["needs_tool"]:
            found["over_calling"].append(read_calls(text) is not None)
        if kind == "decline":
            found["declined"].append(text.split() == example.answer.split())
    return {name: (float(sum(values)), len(values)) for name, values in found.items()}


def _argument_f1(said: Calls, gold: Calls, tool: bool) -> float:
    ours, theirs = [Counter(_arguments(call)) for call in said], [Counter(_arguments(call)) for call in gold]
    total = sum(leaves.total() for leaves in (*ours, *theirs))
    if not total:
        return float(tool)
    shared = {
        (i, j): (ours[i] & theirs[j]).total()
        for i, call in enumerate(said)
        for j, wanted in enumerate(gold)
        if _name(call) == wanted["name"]
    }
    right = 0
    while shared:  # greedily, the pair with most in common first
        i, j = max(shared, key=lambda pair: (shared[pair], -pair[0], -pair[1]))
        right += shared[i, j]
        shared = {pair: n for pair, n in shared.items() if pair[0] != i and pair[1] != j}
    return 2 * right / total


def same_calls(said: Calls, gold: Calls) -> bool:
    """Whether they are the gold calls, each once, in any order, and no others."""
    left = list(said)
    for wanted in gold:
        index = next((i for i, call in enumerate(left) if same(call, wanted)), None)
        if index is None:
            return False
        left.pop(index)
    return not left


def _name(call: Mapping[str, Any]) -> str | None:
    name = call.get("name")
    return name if isinstance(name, str) else None


def _arguments(call: Mapping[str, Any]) -> Iterator[tuple]:
    given = call.get("arguments", {})
    return iter(()) if given == {} else _leaves(given, ())


def _leaves(value: Any, path: tuple) -> Iterator[tuple]:
    """(keys down to it, kind, value) of each leaf; an item of an array has the key None, in any order."""
    if value and isinstance(value, Mapping | list):
        pairs = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
        for key, item in pairs:
            yield from _leaves(item, (*path, key))
    else:
        yield path, _kind(value), None if isinstance(value, Mapping | list) else value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    if value is None:
        return "null"
    return "object" if isinstance(value, Mapping) else "array"
