"""A JSON schema as the automaton reads it: which types, keys and spellings a value may have.

Known keywords: type (one or several of object, array, string, number, integer, boolean, null), properties,
required, additionalProperties, items, enum and const of plain values. Notes such as `description` say
nothing about validity. Any other keyword narrows more than the automaton can: it is refused, or with
`loose=True` left out, and what is allowed is then more than what is valid, never less.
Keywords: JSON Schema 2020-12, https://json-schema.org.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quietreasoning.config import UserError, suggest

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NOTES = frozenset(
    "$schema $id $comment title description default examples format deprecated readOnly writeOnly strict"
    "".split()
)
_KNOWN = frozenset("type properties required additionalProperties items enum const".split())


@dataclass(frozen=True, eq=False)  # one rule is one node of the schema: states compare it by identity
class Rule:
    """What one value may be."""

    types: frozenset[str] = frozenset(TYPES)
    properties: Mapping[str, Rule] = field(default_factory=dict)  # key in UTF-16 units -> rule of its value
    required: frozenset[str] = frozenset()  # of those keys
    extra: Rule | None = None  # of any other key; None: there is none. ANYTHING allows itself
    items: Rule | None = None  # of an array's items; None: anything
    words: tuple[str, ...] | None = None  # an enum's strings, in UTF-16 units; None: any string
    literals: tuple[str, ...] | None = None  # an enum's other values as JSON writes them; None: any
    free: bool = False  # anything at all: keys need not be read


ANYTHING = Rule(free=True)


def units(text: str) -> str:
    """The text with each character beyond U+FFFF as its two surrogates, as JSON escapes spell it."""
    if text.isascii():
        return text
    pairs = (
        char
        if ord(char) < 0x10000
        else f"{chr(0xD7C0 + (ord(char) >> 10))}{chr(0xDC00 + (ord(char) & 0x3FF))}"
        for char in text
    )
    return "".join(pairs)


def compile_schema(schema: Mapping[str, Any] | bool, *, loose: bool = False, where: str = "schema") -> Rule:
    """The rule of a JSON schema; UserError names the place of a keyword or type that it cannot hold.

    loose: leave out keywords that narrow more than the automaton can, instead of refusing them.
    """
    if schema is True or schema == {}:
        return ANYTHING
    if not isinstance(schema, Mapping):
        raise UserError(f"{where}: a schema is an object, not {schema!r:.40}")
    unknown = [key for key in schema if key not in _KNOWN and key not in _NOTES]
    if unknown and not loose:
        raise UserError(
            f"{where}: keyword '{unknown[0]}' is not supported; drop it, or leave it out with loose=True. "
            f"{suggest(unknown[0], _KNOWN)}"
        )
    types = _types(schema, where)
    words, literals = _values(schema, types, where)
    extra = _extra(schema, loose, where)
    properties = {
        units(key): compile_schema(inner, loose=loose, where=f"{where}.properties.{key}")
        for key, inner in _mapping(schema, "properties", where).items()
    }
    required = _required(schema, properties, extra, where)
    items = schema.get("items", True)
    return Rule(
        types=types,
        properties=properties,
        required=required,
        extra=extra,
        items=compile_schema(items, loose=loose, where=f"{where}.items"),
        words=words,
        literals=literals,
    )


def _types(schema: Mapping[str, Any], where: str) -> frozenset[str]:
    given = schema.get("type", TYPES)
    listed = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    for name in listed or [given]:
        if name not in TYPES:
            raise UserError(f"{where}.type={name!r} is no type of JSON; {suggest(str(name), TYPES)}")
    return frozenset(listed)


def _mapping(schema: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = schema.get(key, {})
    if not isinstance(found, Mapping):
        raise UserError(f"{where}.{key} is {type(found).__name__}, not an object")
    return found


def _extra(schema: Mapping[str, Any], loose: bool, where: str) -> Rule | None:
    given = schema.get("additionalProperties", True)
    if given is False:
        return None
    return compile_schema(given, loose=loose, where=f"{where}.additionalProperties")


def _required(
    schema: Mapping[str, Any], properties: dict[str, Rule], extra: Rule | None, where: str
) -> frozenset[str]:
    """The required keys; one that is not declared gets the rule of further keys."""
    names = schema.get("required", [])
    if not isinstance(names, list | tuple) or any(not isinstance(name, str) for name in names):
        raise UserError(f"{where}.required={names!r:.60} is no list of names")
    for name in names:
        if units(name) not in properties and extra is None:
            raise UserError(
                f"{where}.required names '{name}', which additionalProperties=false forbids; "
                f"declare it under properties. {suggest(name, properties)}"
            )
        properties.setdefault(units(name), extra or ANYTHING)
    return frozenset(units(name) for name in names)


def _values(
    schema: Mapping[str, Any], types: frozenset[str], where: str
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """The strings and the other values of enum or const, those of the wrong type left out."""
    if "enum" not in schema and "const" not in schema:
        return None, None
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{where}.enum={values!r:.60} is no list of values")
    if any(isinstance(value, list | dict) for value in values):
        raise UserError(f"{where}.enum holds an object or a list; only plain values can be told apart here")
    kept = [value for value in values if _type_of(value) & types]
    if not kept:
        raise UserError(f"{where}.enum={values!r:.60} holds no value of type {', '.join(sorted(types))}")
    words = tuple(units(value) for value in kept if isinstance(value, str))
    return words, tuple(json.dumps(value) for value in kept if not isinstance(value, str))


def _type_of(value: Any) -> set[str]:
    if isinstance(value, str):
        return {"string"}
    if isinstance(value, bool):
        return {"boolean"}
    if value is None:
        return {"null"}
    return {"number", "integer"} if isinstance(value, int) else {"number"}
