"""A subset of JSON Schema on values with places: `schema_faults(node, schema)`. Others are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from quietreasoning.config import suggest
from quietreasoning.evaluate.rules.base import Mark
from quietreasoning.evaluate.rules.json_text import Node

TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    "integer": int, "number": (int, float),
}  # fmt: skip
NOTES = ("title", "description", "$schema", "default", "examples")
SIZES = {
    "minItems": (list, 1), "maxItems": (list, -1), "minLength": (str, 1), "maxLength": (str, -1),
    "minProperties": (dict, 1), "maxProperties": (dict, -1),
}  # fmt: skip
BOUNDS = {"minimum": 1, "maximum": -1}
KEYWORDS = (
    *("type", "enum", "const", "required", "properties", "additionalProperties", "items", "pattern"),
    *SIZES, *BOUNDS, *NOTES,
)  # fmt: skip


def check_schema(schema: Any, path: str = "json_schema") -> None:
    """ValueError, with the key's path and a cure, where a schema says what is not understood here."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"{path} must be a mapping such as {{type: object}}")
    for key, value in schema.items():
        if key not in KEYWORDS:
            raise ValueError(f"{path}.{key}: no such keyword here. {suggest(str(key), KEYWORDS)}")
        if key == "type":
            for name in value if isinstance(value, list) else [value]:
                if name not in TYPES:
                    raise ValueError(f"{path}.type={name}: no such type. {suggest(str(name), TYPES)}")
        elif key == "required" and not (
            isinstance(value, list) and all(isinstance(one, str) for one in value)
        ):
            raise ValueError(f"{path}.required must be a list of names")
        elif key == "enum" and not isinstance(value, list):
            raise ValueError(f"{path}.enum must be a list of values")
        elif key in SIZES and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(f"{path}.{key} must be a whole number, at least 0")
        elif key in BOUNDS and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{path}.{key} must be a number")
        elif key == "pattern":
            check_pattern(value, f"{path}.pattern")
        elif key == "properties":
            if not isinstance(value, Mapping):
                raise ValueError(f"{path}.properties must be a mapping of schemas")
            for name, inner in value.items():
                check_schema(inner, f"{path}.properties.{name}")
        elif key == "items" or (key == "additionalProperties" and not isinstance(value, bool)):
            check_schema(value, f"{path}.{key}")


def check_pattern(pattern: Any, path: str) -> None:
    """ValueError where it is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{path}={pattern!r:.60}: no regular expression: {error}") from None


def schema_faults(node: Node, schema: Mapping[str, Any], name: str = "the value") -> Iterator[Mark]:
    """Every place where the value differs from the schema, marked there; a missing key at its object."""
    value = node.value

    def fault(message: str) -> Mark:
        return Mark(node.start, node.end, f"{name} {message}")

    if "type" in schema:
        wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, kind) for kind in wanted):
            yield fault(f"must be {' or '.join(wanted)}")
            return
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        yield fault(f"must be one of {', '.join(map(str, schema['enum']))}")
    if "const" in schema and not _same(value, schema["const"]):
        yield fault(f"must be {schema['const']}")
    for key, (kind, sign) in SIZES.items():
        if key in schema and isinstance(value, kind) and (len(value) - schema[key]) * sign < 0:
            yield fault(f"must have at {'least' if sign > 0 else 'most'} {schema[key]} {_counted(kind)}")
    for key, sign in BOUNDS.items():
        if key in schema and _is(value, "number") and (value - schema[key]) * sign < 0:
            yield fault(f"must be at {'least' if sign > 0 else 'most'} {schema[key]}")
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield fault(f"must match {schema['pattern']}")
    if isinstance(value, dict):
        yield from _object_faults(node, schema, name)
    if isinstance(value, list) and "items" in schema:
        for index, item in node.items.items():
            yield from schema_faults(item, schema["items"], f"item {index} of {name}")


def _object_faults(node: Node, schema: Mapping[str, Any], name: str) -> Iterator[Mark]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key in schema.get("required", ()):
        if key not in node.items:
            yield Mark(node.start, node.end, f"{name} lacks {key!r}")
    for key, item in node.items.items():
        if key in properties:
            yield from schema_faults(item, properties[key], f"{key!r}")
        elif others is False:
            yield Mark(item.start, item.end, f"{name} may not have {key!r:.40}")
        elif isinstance(others, Mapping):
            yield from schema_faults(item, others, f"{key!r:.40}")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind]) or (
        kind == "integer" and isinstance(value, float) and value.is_integer()
    )


def _same(value: Any, other: Any) -> bool:
    """1 is no true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _counted(kind: type) -> str:
    return {list: "items", str: "characters", dict: "keys"}[kind]
