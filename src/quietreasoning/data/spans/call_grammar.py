"""What an assistant may write where tools are declared, character by character: calls, and in `auto` prose.

A state is a value, as those of automaton.py: feeding gives a new one, and every state that lives can still be
completed. A call is `{"name": ..., "arguments": ...}` in this order. Its name is a declared one, and once its
closing quote is read (so that of two names one of which begins the other neither is favoured) the arguments
follow the schema of that tool. White space may stand wherever RFC 8259 allows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from quietreasoning.config import UserError, suggest
from quietreasoning.data.spans.automaton import SPACE, Automaton, Mode
from quietreasoning.data.spans.dialects import Hermes
from quietreasoning.data.spans.schema import ANYTHING, Rule, compile_schema, units

MODES = ("auto", "required")
TAGS = {"json": ("", ""), "hermes": (Hermes.OPEN, Hermes.CLOSE)}  # dialect -> what stands around each call
_OBJECT = frozenset({"object"})
_KEYS = frozenset({"name", "arguments"})


class Phase(IntEnum):
    """Where in an answer the text has come to."""

    START = 0  # nothing but white space so far
    PROSE = 1  # free, for good in `json`, until a tag opens a call in `hermes`
    OPEN = 2  # in a tag that opens a call
    CALL = 3
    CLOSE = 4  # in a tag that closes one
    DONE = 5  # after it: white space, a further call, or the end


@dataclass(frozen=True, eq=False)  # states compare it by identity
class Tools:
    """Declared tools as rules."""

    auto: bool
    tags: tuple[str, str]
    first: Rule  # of what opens a call: the object, or in `json` a list of them too
    name: Rule  # the declared names
    called: Mapping[str, Rule]  # name in UTF-16 units -> the object once that name is read
    loose: Mapping[str, str]  # name -> what its schema says beyond what is checked here


class CallGrammar(NamedTuple):
    """A state. `CallGrammar.start(tools)` is the first; equal states allow the same texts."""

    tools: Tools
    phase: Phase = Phase.START
    matched: int = 0  # characters of a tag that have been read
    json: Automaton | None = None  # the call under way

    @classmethod
    def start(
        cls, tools: Sequence[Mapping[str, Any]], *, dialect: str = "json", mode: str = "auto"
    ) -> CallGrammar:
        """Before the first character of an answer.

        tools: `{"name": ..., "parameters": JSON Schema}`, or that as `function` of a `{"type": "function"}`;
        without parameters the arguments are any object.
        dialect: json, one object or one list of them; hermes, each object between <tool_call> tags.
        mode: required, calls alone; auto, text is free until it opens a call: in json where its first
        character but for white space is { or [, in hermes wherever the tag stands. Then the call is held to
        the grammar, and after it comes white space, in hermes a further call, or the end.

        Schemas that say more than can be followed are taken as far as they go: `loose` tells which. Equal
        tools give equal states. UserError where no tool is declared, a name is absent or stands twice, or
        dialect or mode is unknown.
        """
        if dialect not in TAGS:
            raise UserError(f"dialect={dialect!r}: no grammar for it. {suggest(dialect, TAGS)}")
        if mode not in MODES:
            raise UserError(f"mode={mode!r} is no mode of the grammar. {suggest(mode, MODES)}")
        named = [_named(tool, index) for index, tool in enumerate(tools)]
        twice = [name for i, (name, _) in enumerate(named) if any(name == n for n, _ in named[:i])]
        if not named or twice:
            what = f"tool '{twice[0]}' is declared twice" if twice else "no tool is declared"
            raise UserError(f"{what}; declare each tool once, with a name and parameters")
        compiled = _compiled(json.dumps(named, default=dict), dialect, mode)
        tagged = bool(compiled.tags[0])
        return cls(compiled, Phase.PROSE if tagged and compiled.auto else Phase.START)

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        if self.phase is Phase.CALL:
            return not self.tools.tags[0] and self.json.complete
        return self.phase in (Phase.PROSE, Phase.DONE) or (self.phase is Phase.START and self.tools.auto)

    @property
    def inside(self) -> bool:
        """Whether a call is due, under way or over, so that the text is no longer free."""
        return self.phase > Phase.PROSE or not self.tools.auto

    @property
    def loose(self) -> Mapping[str, str]:
        """Tool -> the first thing in its schema that is not held to: less is refused than is invalid."""
        return self.tools.loose

    @property
    def stir(self) -> str | None:
        """The characters that alone change what may follow, any others being allowed; None: all may."""
        if self.phase is Phase.PROSE and not self.matched:
            return self.tools.tags[0][:1]
        return self.json.stir if self.phase is Phase.CALL else None

    @property
    def still(self) -> bool:
        """Whether others than those of `stir` leave the state itself as it is."""
        return self.json.still if self.phase is Phase.CALL else self.phase is Phase.PROSE

    @property
    def nexts(self) -> str | None:
        """Characters beyond which none may come next, not all of them allowed; None: any may."""
        tags = self.tools.tags
        if self.phase is Phase.CALL:
            found = self.json.nexts
            return found if found is None else found + tags[1][:1]
        if self.phase in (Phase.OPEN, Phase.CLOSE):
            return tags[self.phase is Phase.CLOSE][self.matched]
        return SPACE + tags[0][:1] if self.phase is Phase.DONE else None

    def feed(self, text: str) -> CallGrammar | None:
        """The state after `text`, or None where no answer goes on like that."""
        state: CallGrammar | None = self
        for char in text:
            state = _STEPS[state.phase](state, char)
            if state is None:
                return None
        return state


def _start(state: CallGrammar, char: str) -> CallGrammar | None:
    tools = state.tools
    if char in SPACE:
        return state
    if tools.tags[0]:
        return _tag(state._replace(phase=Phase.OPEN), char)
    if char in "{[":
        return _call(CallGrammar(tools, Phase.CALL, json=Automaton.start(tools.first)), char)
    return CallGrammar(tools, Phase.PROSE) if tools.auto else None


def _prose(state: CallGrammar, char: str) -> CallGrammar:
    tag = state.tools.tags[0]
    if not tag:
        return state
    if char != tag[state.matched]:  # the first character of a tag stands in it once
        return state._replace(matched=int(char == tag[0]))
    return _tag(state, char)


def _tag(state: CallGrammar, char: str) -> CallGrammar | None:
    """One character more of a tag; after the whole of it comes a call, or the end of one."""
    tools, closing = state.tools, state.phase is Phase.CLOSE
    tag, matched = tools.tags[closing], state.matched + 1
    if char != tag[state.matched]:
        return None
    if matched < len(tag):
        return state._replace(matched=matched)
    if closing:
        return CallGrammar(tools, Phase.DONE)
    return CallGrammar(tools, Phase.CALL, json=Automaton.start(tools.first))


def _call(state: CallGrammar, char: str) -> CallGrammar | None:
    tools, before = state.tools, state.json
    after = before.feed(char)
    if after is None:
        closes = bool(tools.tags[0]) and before.complete
        return _tag(CallGrammar(tools, Phase.CLOSE), char) if closes else None
    if before.rule is tools.name and after.mode is Mode.AFTER:  # the name has been read
        frame = after.frame._replace(rule=tools.called[before.text])
        after = after._replace(frame=frame)
    elif after.mode is Mode.ITEM and after.frame.rule is tools.first:  # a list holds one call at least
        after = after._replace(mode=Mode.VALUE)
    return state._replace(json=after)


def _done(state: CallGrammar, char: str) -> CallGrammar | None:
    return state if char in SPACE else _tag(CallGrammar(state.tools, Phase.OPEN), char)


_STEPS: dict[Phase, Callable[[CallGrammar, str], CallGrammar | None]] = {
    Phase.START: _start,
    Phase.PROSE: _prose,
    Phase.OPEN: _tag,
    Phase.CALL: _call,
    Phase.CLOSE: _tag,
    Phase.DONE: _done,
}


def _named(tool: Mapping[str, Any], index: int) -> tuple[str, Any]:
    """The name and the schema of a declared tool."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not name:
        raise UserError(
            f"tool {index} is {tool!r:.60}, which has no name; declare it as "
            '{"name": ..., "parameters": JSON Schema}'
        )
    return name, inner.get("parameters")


@lru_cache(maxsize=1024)
def _compiled(named: str, dialect: str, mode: str) -> Tools:
    """named: JSON of (name, schema) pairs; a text, so that tools declared again give the same rules."""
    pairs = json.loads(named)
    name = Rule(types=frozenset({"string"}), words=tuple(units(name) for name, _ in pairs))
    opened = Rule(types=_OBJECT, properties={"name": name}, required=_KEYS)
    tags = TAGS[dialect]
    first = opened if tags[0] else replace(opened, types=_OBJECT | {"array"}, items=opened)
    called, loose = {}, {}
    for tool, schema in pairs:
        arguments, reason = _arguments(schema, f"tool '{tool}': parameters")
        called[units(tool)] = replace(opened, properties={"name": name, "arguments": arguments})
        if reason is not None:
            loose[tool] = reason
    return Tools(mode == "auto", tags, first, name, called, loose)


def _arguments(schema: Any, where: str) -> tuple[Rule, str | None]:
    """The rule of a tool's arguments, always an object, and what it leaves out."""
    anything, reason = Rule(types=_OBJECT, extra=ANYTHING), None
    if schema is None:
        return anything, None
    try:
        rule = compile_schema(schema, where=where)
    except UserError as error:
        reason = str(error)
        try:
            rule = compile_schema(schema, loose=True, where=where)
        except UserError as worse:
            return anything, str(worse)
    if rule.free:
        return anything, None
    if "object" not in rule.types or rule.literals is not None:
        return anything, f"{where}: it is not the schema of an object"
    return replace(rule, types=_OBJECT), reason
