"""A machine that reads JSON character by character: may this text go on so, and may it end here?

A state is a value: feeding gives a new one, so many continuations can be tried from one place. The grammar is
RFC 8259 (no NaN, no control characters in strings, white space anywhere between tokens), to any depth. A
schema narrows it: keys of `additionalProperties: false` and strings of an enum are followed through escapes
character by character, a known key stands once, an enum's numbers are written as Python's json writes them,
and an integer has neither point nor exponent. Every state that lives can still be completed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from quietreasoning.data.spans.schema import ANYTHING, Rule, compile_schema, units

SPACE = " \t\n\r"
DIGITS = "0123456789"
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_STIR = '"\\' + "".join(map(chr, range(ord(" "))))  # in a string that may say anything
_HEX = DIGITS + "abcdefABCDEF"
_WORDS = {"t": ("true", "boolean"), "f": ("false", "boolean"), "n": ("null", "null")}


class Mode(IntEnum):
    """What was read last, and so what may follow."""

    VALUE = 0  # a value must follow
    ITEM = 1  # after `[`: a value or `]`
    FIRST_KEY = 2  # after `{`: a key or `}`
    KEY = 3  # after `,` in an object
    COLON = 4
    AFTER = 5  # a value is complete
    STRING = 6
    ESCAPE = 7
    HEX = 8
    MINUS = 9
    ZERO = 10
    INT = 11
    POINT = 12
    FRACTION = 13
    EXPONENT = 14
    SIGN = 15
    POWER = 16
    LITERAL = 17  # true, false, null, or a value of an enum


STRINGS = frozenset((Mode.STRING, Mode.ESCAPE, Mode.HEX))
NUMBERS = frozenset(range(Mode.MINUS, Mode.LITERAL))
_ENDS = frozenset((Mode.ZERO, Mode.INT, Mode.FRACTION, Mode.POWER))  # numbers that may end here


class Frame(NamedTuple):
    """An open container and those around it."""

    around: Frame | None
    array: bool
    rule: Rule
    seen: frozenset[str] = frozenset()  # known keys that it holds already


class Automaton(NamedTuple):
    """A state. `Automaton.start(schema)` is the first; equal states allow the same texts."""

    mode: Mode
    frame: Frame | None
    rule: Rule  # of the value that is awaited or under way
    key: bool = False  # the string under way is a key
    text: str | None = None  # what the string or literal says so far; None: nobody needs to know
    choices: tuple[str, ...] | None = None  # what it may say; None: anything
    digits: str = ""  # of a \\u escape

    @classmethod
    def start(cls, schema: Mapping[str, Any] | Rule | None = None, *, loose: bool = False) -> Automaton:
        """Before the first character; UserError where the schema holds what `compile_schema` refuses."""
        if schema is None:
            return cls(Mode.VALUE, None, ANYTHING)
        rule = schema if isinstance(schema, Rule) else compile_schema(schema, loose=loose)
        return cls(Mode.VALUE, None, rule)

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        if self.frame is not None:
            return False
        if self.mode is Mode.LITERAL:
            return self.text in self.choices
        return self.mode is Mode.AFTER or self.mode in _ENDS

    @property
    def stir(self) -> str | None:
        """The characters that alone change what may follow, any others being allowed; None: all may."""
        return _STIR if self.mode is Mode.STRING and self.choices is None else None

    @property
    def still(self) -> bool:
        """Whether others than those of `stir` leave the state itself as it is."""
        return self.text is None

    @property
    def nexts(self) -> str | None:
        """Characters beyond which none may come next, not all of them allowed; None: any may."""
        if self.mode is Mode.STRING:
            found = None if self.choices is None else '"\\' + "".join(_nexts(self))
            return None if found is None or any("\ud800" <= unit <= "\udfff" for unit in found) else found
        if self.mode is Mode.LITERAL:
            return _AFTER + "".join(choice[len(self.text) :][:1] for choice in self.choices)
        return _NEXTS[self.mode]

    def feed(self, text: str) -> Automaton | None:
        """The state after `text`, or None where no JSON goes on like that."""
        state: Automaton | None = self
        for char in text:
            state = _STEPS[state.mode](state, char)
            if state is None:
                return None
        return state

    def allowed(self, characters: Iterable[str]) -> set[str]:
        """Those of the characters (or longer pieces) that may come next."""
        return {piece for piece in characters if self.feed(piece) is not None}


def _value(state: Automaton, char: str) -> Automaton | None:
    return state if char in SPACE else _begin(state.rule, state.frame, char)


def _begin(rule: Rule, frame: Frame | None, char: str) -> Automaton | None:
    """The first character of a value."""
    if char == '"' and "string" in rule.types and (rule.words is None or rule.words):
        return Automaton(
            Mode.STRING, frame, rule, text=None if rule.words is None else "", choices=rule.words
        )
    if rule.literals is not None:
        return _literal(frame, rule, char, rule.literals)
    if char == "{" and "object" in rule.types:
        return Automaton(Mode.FIRST_KEY, Frame(frame, False, rule), rule)
    if char == "[" and "array" in rule.types:
        return Automaton(Mode.ITEM, Frame(frame, True, rule), rule.items or ANYTHING)
    if char in _WORDS and _WORDS[char][1] in rule.types:
        return _literal(frame, rule, char, (_WORDS[char][0],))
    if rule.types & {"number", "integer"}:
        if char == "-":
            return Automaton(Mode.MINUS, frame, rule)
        if char in DIGITS:
            return Automaton(Mode.ZERO if char == "0" else Mode.INT, frame, rule)
    return None


def _item(state: Automaton, char: str) -> Automaton | None:
    return _close(state.frame) if char == "]" else _value(state, char)


def _first_key(state: Automaton, char: str) -> Automaton | None:
    return _close(state.frame) if char == "}" else _key(state, char)


def _key(state: Automaton, char: str) -> Automaton | None:
    if char in SPACE:
        return state
    rule, seen = state.frame.rule, state.frame.seen
    if char != '"':
        return None
    if rule.free:
        return Automaton(Mode.STRING, state.frame, rule, key=True)
    choices = None if rule.extra is not None else tuple(name for name in rule.properties if name not in seen)
    text = "" if rule.properties else None  # with none declared, nobody asks what it says
    return None if choices == () else Automaton(Mode.STRING, state.frame, rule, True, text, choices)


def _colon(state: Automaton, char: str) -> Automaton | None:
    if char == ":":
        return Automaton(Mode.VALUE, state.frame, state.rule)
    return state if char in SPACE else None


def _after(state: Automaton, char: str) -> Automaton | None:
    frame = state.frame
    if char in SPACE:
        return state
    if frame is None:
        return None
    if char == ("]" if frame.array else "}"):
        return _close(frame)
    if char != ",":
        return None
    if frame.array:
        return Automaton(Mode.VALUE, frame, frame.rule.items or ANYTHING)
    full = frame.rule.extra is None and not frame.rule.free and len(frame.seen) == len(frame.rule.properties)
    return None if full else Automaton(Mode.KEY, frame, frame.rule)


def _close(frame: Frame) -> Automaton | None:
    if frame.array or frame.rule.required <= frame.seen:
        return Automaton(Mode.AFTER, frame.around, ANYTHING)
    return None


def _string(state: Automaton, char: str) -> Automaton | None:
    if char == '"':
        return _end_string(state)
    if char == "\\":
        more = state.choices is None or _nexts(state)
        return state._replace(mode=Mode.ESCAPE) if more else None
    if char < " ":
        return None
    return state if state.text is None else _said(state, units(char))


def _end_string(state: Automaton) -> Automaton | None:
    if state.choices is not None and state.text not in state.choices:
        return None
    if not state.key:
        return Automaton(Mode.AFTER, state.frame, ANYTHING)
    frame = state.frame
    if frame.rule.free:
        return Automaton(Mode.COLON, frame, ANYTHING)
    if state.text not in frame.rule.properties:
        return Automaton(Mode.COLON, frame, frame.rule.extra)
    if state.text in frame.seen:
        return None
    frame = frame._replace(seen=frame.seen | {state.text})
    return Automaton(Mode.COLON, frame, frame.rule.properties[state.text])


def _said(state: Automaton, more: str) -> Automaton | None:
    """The string goes on by characters that somebody follows."""
    if state.text is None:
        return state._replace(mode=Mode.STRING, digits="")
    text = state.text + more
    if state.choices is not None and not any(choice.startswith(text) for choice in state.choices):
        return None
    return state._replace(mode=Mode.STRING, text=text, digits="")


def _nexts(state: Automaton) -> set[str]:
    """The units that may follow in a string of an enum or a known key."""
    at, text = len(state.text), state.text
    return {choice[at] for choice in state.choices if len(choice) > at and choice.startswith(text)}


def _escape(state: Automaton, char: str) -> Automaton | None:
    if char == "u":
        return state._replace(mode=Mode.HEX)
    return _said(state, _ESCAPES[char]) if char in _ESCAPES else None


def _hex(state: Automaton, char: str) -> Automaton | None:
    if char not in _HEX:
        return None
    digits = state.digits + char.lower()
    if len(digits) == 4:
        return _said(state, chr(int(digits, 16)))
    if state.choices is not None and not any(f"{ord(u):04x}".startswith(digits) for u in _nexts(state)):
        return None
    return state._replace(digits=digits)


def _literal(frame: Frame | None, rule: Rule, text: str, choices: tuple[str, ...]) -> Automaton | None:
    """A word that has been read as far as `text`."""
    left = tuple(choice for choice in choices if choice.startswith(text))
    if left == (text,):
        return Automaton(Mode.AFTER, frame, ANYTHING)
    return Automaton(Mode.LITERAL, frame, rule, text=text, choices=left) if left else None


def _in_literal(state: Automaton, char: str) -> Automaton | None:
    longer = _literal(state.frame, state.rule, state.text + char, state.choices)
    if longer is None and state.text in state.choices:  # 1 of the enum 1, 12
        return _after(Automaton(Mode.AFTER, state.frame, ANYTHING), char)
    return longer


_NEXT = {  # mode of a number -> {characters: mode}
    Mode.MINUS: {"0": Mode.ZERO, "123456789": Mode.INT},
    Mode.ZERO: {".": Mode.POINT, "eE": Mode.EXPONENT},
    Mode.INT: {DIGITS: Mode.INT, ".": Mode.POINT, "eE": Mode.EXPONENT},
    Mode.POINT: {DIGITS: Mode.FRACTION},
    Mode.FRACTION: {DIGITS: Mode.FRACTION, "eE": Mode.EXPONENT},
    Mode.EXPONENT: {DIGITS: Mode.POWER, "+-": Mode.SIGN},
    Mode.SIGN: {DIGITS: Mode.POWER},
    Mode.POWER: {DIGITS: Mode.POWER},
}
_MOVES = {mode: {c: to for cs, to in moves.items() for c in cs} for mode, moves in _NEXT.items()}


def _number(state: Automaton, char: str) -> Automaton | None:
    mode = _MOVES[state.mode].get(char)
    if mode is None:
        return _after(Automaton(Mode.AFTER, state.frame, ANYTHING), char) if state.mode in _ENDS else None
    if mode in (Mode.POINT, Mode.EXPONENT) and "number" not in state.rule.types:
        return None
    return state if mode is state.mode else state._replace(mode=mode)


_AFTER = SPACE + ",]}"
_VALUE = SPACE + '"{[-tfnNI' + DIGITS  # NaN and Infinity may be values of an enum
_NEXTS = {
    **{Mode.VALUE: _VALUE, Mode.ITEM: _VALUE + "]", Mode.FIRST_KEY: SPACE + '"}', Mode.KEY: SPACE + '"'},
    **{Mode.COLON: SPACE + ":", Mode.AFTER: _AFTER, Mode.ESCAPE: "u" + "".join(_ESCAPES), Mode.HEX: _HEX},
    **{mode: "".join(moves) + (_AFTER if mode in _ENDS else "") for mode, moves in _MOVES.items()},
}
_STEPS: dict[Mode, Callable[[Automaton, str], Automaton | None]] = {
    Mode.VALUE: _value,
    Mode.ITEM: _item,
    Mode.FIRST_KEY: _first_key,
    Mode.KEY: _key,
    Mode.COLON: _colon,
    Mode.AFTER: _after,
    Mode.STRING: _string,
    Mode.ESCAPE: _escape,
    Mode.HEX: _hex,
    **dict.fromkeys(_MOVES, _number),
    Mode.LITERAL: _in_literal,
}
