"""Tool calls, and what a dialect of them promises."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from quietreasoning.config import UserError
from quietreasoning.data.spans.json_text import JsonError, Node, parse_json, string_offsets, words_of
from quietreasoning.data.spans.span import Kind, Span, filled

ARGUMENTS = ("arguments", "parameters")  # both names are in use


@dataclass(frozen=True)
class Call:
    """One call of a tool: its name and its arguments, plain JSON values."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A call in a text: the block of characters it fills, and the spans of all of them."""

    call: Call
    start: int
    end: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class CallFault:
    """Text that begins as a call and is none: where it goes wrong, and how."""

    offset: int
    message: str

    def __str__(self) -> str:
        return f"{self.message} (character {self.offset})"


@dataclass(frozen=True)
class Parsed:
    """The calls of a text in order, and the places where one is broken."""

    found: tuple[Found, ...] = ()
    faults: tuple[CallFault, ...] = ()

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(found.call for found in self.found)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Names, keys, values and syntax, without gaps or overlaps within a block."""
        return tuple(span for found in self.found for span in found.spans)

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        return tuple((found.start, found.end) for found in self.found)


class Dialect(Protocol):
    """One way to write tool calls as text. `parse(write(calls)).calls == calls`."""

    name: str

    def write(self, calls: Sequence[Call], *, spaced: bool = False) -> str:
        """The calls as text; spaced: white space between all tokens, for tokenizers of whole words.
        UserError where this dialect cannot write them."""

    def parse(self, text: str) -> Parsed:
        """The calls that stand anywhere in the text, with spans in its characters. Prose is passed over;
        what begins as a call and breaks is a fault."""


class NotACall(ValueError):
    """Valid syntax that is no call: where, and why."""

    def __init__(self, offset: int, message: str):
        super().__init__(message)
        self.fault = CallFault(offset, message)


def argument_spans(nodes: Iterable[Node], path: tuple, reason: str) -> list[Span]:
    """Keys and leaf values below `path`."""
    kinds = {"key": Kind.ARG_KEY, "leaf": Kind.ARG_VALUE}
    size = len(path)
    return [
        Span(node.start, node.end, kinds[node.role], reason)
        for node in nodes
        if node.role in kinds and len(node.path) > size and node.path[:size] == path
    ]


def calls_of(text: str, nodes: Sequence[Node], reason: str) -> list[tuple[Call, Node, list[Span]]]:
    """The calls in a parsed JSON value: objects with a text `name` and `arguments` (or `parameters`).

    Arguments are an object, or the text of one as some servers send it. Each comes with its object's node and
    the spans of name, keys and values. NotACall where the arguments are something else, a name is empty, or
    a key stands twice.
    """
    leaves = {node.path: node for node in nodes if node.role == "leaf"}
    whole = {node.path: node for node in nodes if node.role == "container"}
    found, taken = [], -1
    for node in sorted(whole.values(), key=lambda node: node.start):
        if node.start < taken or not isinstance(node.value, dict):
            continue
        named = leaves.get((*node.path, "name"))
        key = next((key for key in ARGUMENTS if key in node.value), None)
        if named is None or key is None or not isinstance(named.value, str):
            continue
        if not named.value:
            raise NotACall(named.start, "the call's name is empty")
        path = (*node.path, key)
        arguments, spans = _arguments(text, nodes, path, whole.get(path) or leaves[path], reason)
        name = Span(named.start + 1, named.end - 1, Kind.TOOL_NAME, reason)
        found.append((Call(named.value, arguments), node, [name, *spans]))
        taken = node.end
    return found


def _arguments(
    text: str, nodes: Sequence[Node], path: tuple, node: Node, reason: str
) -> tuple[dict[str, Any], list[Span]]:
    if isinstance(node.value, dict):
        return node.value, argument_spans(nodes, path, reason)
    if not isinstance(node.value, str):
        raise NotACall(node.start, f"{path[-1]} is {type(node.value).__name__}, not an object")
    places = string_offsets(text[node.start : node.end])
    try:
        inner = parse_json(node.value)
    except JsonError as error:
        raise NotACall(node.start + places[error.offset], f"{path[-1]} is text, but not JSON") from None
    _once(inner.duplicates, lambda offset: node.start + places[offset])
    value = inner.close()
    if not isinstance(value, dict):
        raise NotACall(node.start, f"{path[-1]} is text of {type(value).__name__}, not of an object")
    spans = argument_spans(inner.nodes, (), f"{reason}, arguments as text")
    moved = [Span(node.start + places[s.start], node.start + places[s.end], s.kind, s.reason) for s in spans]
    return value, moved


def _once(duplicates: Sequence[Node], place: Any = lambda offset: offset) -> None:
    if duplicates:
        raise NotACall(place(duplicates[0].start), f"key '{duplicates[0].value:.40}' stands twice")


def found_in(text: str, parser: Any, start: int, end: int, reason: str) -> list[Found]:
    """The calls in a parsed container, as blocks that share out `start` to `end`; NotACall as above."""
    calls = calls_of(text, parser.nodes, reason)
    if calls:
        _once(parser.duplicates)
    found = []
    for index, (call, _, spans) in enumerate(calls):
        until = end if index + 1 == len(calls) else calls[index + 1][1].start
        found.append(Found(call, start, until, filled(start, until, spans, reason)))
        start = until
    return found


def merged(text: str, found: Sequence[Found]) -> tuple[Found, ...]:
    """White space between one call and the next belongs to the second as syntax."""
    joined: list[Found] = []
    for one in found:
        if joined and one.start > joined[-1].end and not text[joined[-1].end : one.start].strip():
            start = joined[-1].end
            one = Found(one.call, start, one.end, filled(start, one.end, one.spans, one.spans[0].reason))
        joined.append(one)
    return tuple(joined)


def written(value: Any, spaced: bool) -> str:
    """A value as JSON; UserError where it holds what JSON cannot say."""
    spell = partial(json.dumps, ensure_ascii=False, allow_nan=False)
    try:
        return " ".join(words_of(value, spell)) if spaced else spell(value)
    except (ValueError, TypeError) as error:
        raise UserError(f"the arguments {value!r:.60} are no JSON ({error}); use plain JSON values") from None
