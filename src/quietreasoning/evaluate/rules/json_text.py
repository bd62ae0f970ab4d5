"""JSON with places: `read_json(text) -> Node`, every value with its span; and objects inside prose.

Stricter than the standard reader: no NaN and no infinity, no key twice, at most MAX_DEPTH levels: endless
brackets end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isinf
from typing import Any

MAX_DEPTH, MAX_DIGITS = 100, 300
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?", re.ASCII)
_WORDS = {"true": True, "false": False, "null": None}
_FENCED = re.compile(r"\A\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.S | re.I)
_string = json.decoder.scanstring


@dataclass(frozen=True)
class Node:
    """A value and its place. items: of an array its nodes, of an object its nodes by key."""

    value: Any
    start: int
    end: int
    items: dict[Any, Node]


class JsonFault(ValueError):
    """Not JSON: what is wrong, and where."""

    def __init__(self, message: str, at: int):
        super().__init__(message)
        self.at = at


def read_json(text: str, *, fenced: bool = True) -> Node:
    """The one JSON value that the text is; where `fenced`, a ```json fence around all of it may stay. Raises
    JsonFault."""
    inside = _FENCED.match(text) if fenced else None
    start, end = inside.span(1) if inside else (0, len(text))
    node = _value(text, _skip(text, start), 0)
    rest = _skip(text, node.end)
    if rest < end:
        raise JsonFault("something follows the JSON value", rest)
    return node


def objects_in(text: str) -> Iterator[Node]:
    """Whole JSON objects in a text, outermost ones, from left to right. One pass: of an object that never
    ends, those that ended inside it are given, and reading goes on at the fault."""
    at = 0
    while (at := text.find("{", at)) >= 0:
        ended: list[Node] = []
        try:
            node = _value(text, at, 0, ended)
        except JsonFault as fault:
            yield from ended
            at = max(at + 1, fault.at)
            continue
        yield node
        at = node.end


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def _value(text: str, at: int, depth: int, ended: list[Node] | None = None) -> Node:
    if depth > MAX_DEPTH:
        raise JsonFault(f"nested more than {MAX_DEPTH} deep", at)
    first = text[at : at + 1]
    if first == "{":
        return _object(text, at, depth, ended)
    if first == "[":
        return _array(text, at, depth, ended)
    if first == '"':
        value, end = _text(text, at)
        return Node(value, at, end, {})
    for word, value in _WORDS.items():
        if text.startswith(word, at):
            return Node(value, at, at + len(word), {})
    number = _NUMBER.match(text, at)
    if number is None:
        raise JsonFault("a JSON value should stand here" if first else "the JSON never ends", at)
    if len(number[0]) > MAX_DIGITS:
        raise JsonFault(f"a number of more than {MAX_DIGITS} digits", at)
    value = float(number[0]) if set(number[0]) & set(".eE") else int(number[0])
    if isinf(value):
        raise JsonFault("a number beyond all that can be held", at)
    return Node(value, at, number.end(), {})


def _text(text: str, at: int) -> tuple[str, int]:
    try:
        return _string(text, at + 1, True)
    except json.JSONDecodeError as error:
        raise JsonFault(error.msg[0].lower() + error.msg[1:], min(error.pos, len(text))) from None


def _array(text: str, start: int, depth: int, ended: list[Node] | None) -> Node:
    items: dict[Any, Node] = {}
    at = _skip(text, start + 1)
    if text.startswith("]", at):
        return Node([], start, at + 1, {})
    while True:
        node = _value(text, at, depth + 1, ended)
        items[len(items)] = node
        at = _skip(text, node.end)
        if text.startswith("]", at):
            return Node([item.value for item in items.values()], start, at + 1, items)
        at = _skip(text, _comma(text, at))


def _object(text: str, start: int, depth: int, ended: list[Node] | None) -> Node:
    items: dict[Any, Node] = {}
    at = _skip(text, start + 1)
    if text.startswith("}", at):
        return _ended(Node({}, start, at + 1, {}), ended)
    while True:
        if not text.startswith('"', at):
            raise JsonFault(
                "a key in double quotes should stand here" if at < len(text) else "the JSON never ends", at
            )
        key, end = _text(text, at)
        if key in items:
            raise JsonFault(f"the key {key!r:.40} stands twice", at)
        colon = _skip(text, end)
        if not text.startswith(":", colon):
            raise JsonFault("a colon should stand here", colon)
        items[key] = node = _value(text, _skip(text, colon + 1), depth + 1, ended)
        at = _skip(text, node.end)
        if text.startswith("}", at):
            values = {name: item.value for name, item in items.items()}
            return _ended(Node(values, start, at + 1, items), ended)
        at = _skip(text, _comma(text, at))


def _ended(node: Node, ended: list[Node] | None) -> Node:
    """Note an object that is whole, in place of those inside it."""
    if ended is not None:
        while ended and ended[-1].start > node.start:
            ended.pop()
        ended.append(node)
    return node


def _comma(text: str, at: int) -> int:
    if text.startswith(",", at):
        return at + 1
    raise JsonFault("a comma should stand here" if at < len(text) else "the JSON never ends", at)
