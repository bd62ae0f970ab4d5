"""An incremental JSON parser that says where every key and every value stands.

It listens to the automaton, so there is one grammar; the json module only turns a finished string or number
into its value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from quietreasoning.data.spans.automaton import NUMBERS, STRINGS, Automaton, Mode

Path = tuple[str | int, ...]
_SCALARS = STRINGS | NUMBERS | {Mode.LITERAL}
_WANTED = {
    Mode.VALUE: "a value",
    Mode.ITEM: "a value or ]",
    Mode.FIRST_KEY: "a key in quotes or }",
    Mode.KEY: "a key in quotes",
    Mode.COLON: "a colon",
    Mode.STRING: "no control character in a string",
    Mode.ESCAPE: 'one of "\\/bfnrtu after a backslash',
    Mode.HEX: "four hexadecimal digits",
    Mode.LITERAL: "true, false or null",
}


class JsonError(ValueError):
    """What is wrong at which character."""

    def __init__(self, offset: int, message: str):
        super().__init__(f"{message} at character {offset}")
        self.offset, self.message = offset, message
        self.parser: JsonParser | None = None  # as far as it came


class Node(NamedTuple):
    """A key, a leaf value or a whole container; offsets hold the quotes and brackets."""

    start: int
    end: int
    role: str  # "key", "leaf", "container"
    path: Path  # of a key: the path of its value
    value: Any


@dataclass(slots=True)
class _Open:
    """A container under way."""

    value: dict[str, Any] | list[Any]
    start: int
    path: Path
    key: str = ""

    def path_of_next(self) -> Path:
        return (*self.path, self.key if isinstance(self.value, dict) else len(self.value))

    def add(self, value: Any) -> None:
        if isinstance(self.value, dict):
            self.value[self.key] = value
        else:
            self.value.append(value)


MAX_DEPTH = 512


@dataclass
class JsonParser:
    """Feed text in pieces of any size; `nodes` grows as things end. Then `close()` gives the value.

    `duplicates` holds the nodes of keys that their object had already: the last value counts, as in json.
    """

    at: int = 0  # offset of the next character
    nodes: list[Node] = field(default_factory=list)
    duplicates: list[Node] = field(default_factory=list)
    _state: Automaton = field(default_factory=Automaton.start)
    _open: list[_Open] = field(default_factory=list)
    _raw: list[str] = field(default_factory=list)  # of the string, number or literal under way
    _top: list[Any] = field(default_factory=list)

    def feed(self, text: str, *, whole: bool = True) -> int:
        """Read on; how many characters were taken. JsonError at the first that cannot follow.

        whole: take all of it; else stop after the last character of a container at the top.
        """
        for count, char in enumerate(text, start=1):
            new = self._state.feed(char)
            if new is None:
                wanted = _WANTED.get(self._state.mode, "a comma or the end of what is open")
                wanted = "nothing more" if self._state.complete else wanted
                raise JsonError(self.at, f"{wanted} expected, not {char!r}")
            self._note(self._state.mode, new.mode, char)
            self._state = new
            self.at += 1
            if not whole and self._top and not self._raw:
                return count
        return len(text)

    def close(self) -> Any:
        """The value, once all text has been fed; JsonError where it ends too early."""
        if not self._state.complete:
            raise JsonError(self.at, "the text ends too early")
        if self._raw:
            self._leaf(self.at, self._state.mode)
        return self._top[0]

    def _note(self, before: Mode, after: Mode, char: str) -> None:
        """What the step from mode to mode by this character begins or ends."""
        if before in NUMBERS and after not in NUMBERS:
            self._leaf(self.at, before)
            before = Mode.AFTER
        if before in _SCALARS:
            self._raw.append(char)
            if after not in _SCALARS:
                self._leaf(self.at + 1, after)
        elif after in _SCALARS:
            self._raw.append(char)
        elif char in "{[":
            if len(self._open) == MAX_DEPTH:  # a place costs as much as it is deep
                raise JsonError(self.at, f"nested deeper than {MAX_DEPTH}")
            path = self._open[-1].path_of_next() if self._open else ()
            self._open.append(_Open({} if char == "{" else [], self.at, path))
        elif char in "}]":
            done = self._open.pop()
            self._value(Node(done.start, self.at + 1, "container", done.path, done.value))

    def _leaf(self, end: int, after: Mode) -> None:
        """The string, number or literal under way ends before `end`."""
        raw, start = "".join(self._raw), end - len(self._raw)
        self._raw.clear()
        try:
            value = json.loads(raw)
        except ValueError as error:  # an integer of thousands of digits
            raise JsonError(start, str(error)) from None
        inner = self._open[-1] if self._open else None
        if after is not Mode.COLON:
            self._value(Node(start, end, "leaf", inner.path_of_next() if inner else (), value))
            return
        inner.key = value
        node = Node(start, end, "key", inner.path_of_next(), value)
        self.nodes.append(node)
        if value in inner.value:
            self.duplicates.append(node)

    def _value(self, node: Node) -> None:
        self.nodes.append(node)
        if self._open:
            self._open[-1].add(node.value)
        else:
            self._top.append(node.value)


def parse_json(text: str) -> JsonParser:
    """A parser that has read the whole text; JsonError where it is not JSON."""
    parser = JsonParser()
    parser.feed(text)
    parser.close()
    return parser


def container_at(text: str, start: int) -> JsonParser:
    """A parser that has read the object or list at `start`, to its `at`; JsonError as above.

    Offsets are those of `text`. The error carries the unfinished parser as `parser`.
    """
    parser = JsonParser(at=start)
    try:
        parser.feed(text[start:], whole=False)
        parser.close()
    except JsonError as error:
        error.parser = parser
        raise
    return parser


def string_offsets(raw: str) -> list[int]:
    """Where each character of a string's value begins in its JSON spelling, and where the last one ends.

    raw: with both quotes, offsets count from the first.
    """
    offsets, at, high = [], 1, False
    while at < len(raw) - 1:
        size = 1 if raw[at] != "\\" else 6 if raw[at + 1] == "u" else 2
        code = int(raw[at + 2 : at + 6], 16) if size == 6 else 0
        pair = high and 0xDC00 <= code < 0xE000  # the second half of one character
        high = 0xD800 <= code < 0xDC00
        if not pair:
            offsets.append(at)
        at += size
    return [*offsets, at]


def words_of(value: Any, leaf: Callable[[Any], str]) -> Iterator[str]:
    """The tokens of a value, so that a join by spaces still says the same; leaf: spells keys and leaves."""
    if not isinstance(value, dict | list | tuple):
        yield leaf(value)
        return
    is_object = isinstance(value, dict)
    yield "{" if is_object else "["
    for index, item in enumerate(value):
        if index:
            yield ","
        if is_object:
            yield from (leaf(item), ":")
        yield from words_of(value[item] if is_object else item, leaf)
    yield "}" if is_object else "]"
