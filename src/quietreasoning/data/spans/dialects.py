"""The dialects of tool calls whose arguments are JSON, and the table of all dialects.

- json: `{"name": "f", "arguments": {"a": 1}}`, several as one list; wrappers such as
  `{"type": "function", "function": {...}}`, arguments as text, and several objects in a row are read too.
- hermes: each such object between `<tool_call>` and `</tool_call>`, as Hermes and Qwen 2.5 and 3 write.
- pythonic: `[f(a=1, b="x"), g()]`, in pythonic.py.
- qwen-coder: `<function=f>` with a `<parameter=a>` for each argument, in qwen_coder.py.
- qwen: `✿FUNCTION✿: f` and `✿ARGS✿: {"a": 1}`, a line each, as Qwen's agent of version 2 writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quietreasoning.config import UserError, suggest
from quietreasoning.data.spans.calls import (
    ARGUMENTS,
    Call,
    CallFault,
    Dialect,
    Found,
    NotACall,
    Parsed,
    argument_spans,
    found_in,
    merged,
    written,
)
from quietreasoning.data.spans.json_text import JsonError, JsonParser, container_at
from quietreasoning.data.spans.pythonic import Pythonic
from quietreasoning.data.spans.qwen_coder import QwenCoder
from quietreasoning.data.spans.span import Kind, Span, filled


def _object(call: Call) -> dict[str, Any]:
    return {"name": call.name, "arguments": dict(call.arguments)}


class Json:
    """An object a call, or one list of them."""

    name = "json"

    def write(self, calls: Sequence[Call], *, spaced: bool = False) -> str:
        objects = [_object(call) for call in calls]
        return written(objects[0] if len(objects) == 1 else objects, spaced)

    def parse(self, text: str) -> Parsed:
        """Brackets that open no JSON are prose, unless a call's keys were read before it broke. Whoever opens
        many and closes none is given up: what is read in vain has a limit."""
        found, faults, at, left = [], [], 0, len(text) + 50_000
        while (at := _bracket(text, at)) >= 0:
            if left < 0:
                faults.append(CallFault(at, "too many brackets that open no JSON"))
                break
            try:
                parser = container_at(text, at)
                found += found_in(text, parser, at, parser.at, self.name)
                at = parser.at
            except NotACall as error:
                faults.append(error.fault)
                at = parser.at
            except JsonError as error:
                left -= error.offset - at
                if _looks_like_call(error.parser):
                    faults.append(CallFault(error.offset, error.message))
                    at = error.offset
                at += 1
        return Parsed(merged(text, found), tuple(faults))


def _bracket(text: str, at: int) -> int:
    return min((i for i in (text.find("{", at), text.find("[", at)) if i >= 0), default=-1)


def _looks_like_call(parser: JsonParser) -> bool:
    keys = {node.value for node in parser.nodes if node.role == "key"}
    return "name" in keys and bool(keys.intersection(ARGUMENTS))


class Hermes:
    """An object a call, each between tags."""

    name = "hermes"
    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def write(self, calls: Sequence[Call], *, spaced: bool = False) -> str:
        return "\n".join(f"{self.OPEN}\n{written(_object(call), spaced)}\n{self.CLOSE}" for call in calls)

    def parse(self, text: str) -> Parsed:
        found, faults, at = [], [], 0
        while (start := text.find(self.OPEN, at)) >= 0:
            at = start + len(self.OPEN)
            try:
                parser = container_at(text, at)
                end = _skip(text, parser.at)
                at = parser.at
                if not text.startswith(self.CLOSE, end):
                    raise NotACall(end, f"{self.CLOSE} expected")
                at = end + len(self.CLOSE)
                inside = found_in(text, parser, start, at, self.name)
                if not inside:
                    raise NotACall(start, f"no name and arguments between {self.OPEN} and {self.CLOSE}")
                found += inside
            except NotACall as error:
                faults.append(error.fault)
            except JsonError as error:
                faults.append(CallFault(error.offset, error.message))
        return Parsed(merged(text, found), tuple(faults))


def _skip(text: str, at: int) -> int:
    """The next character that is no white space."""
    return at + len(text[at:]) - len(text[at:].lstrip())


class Qwen:
    """Two lines a call: the name, then the arguments."""

    name = "qwen"
    NAME, ARGS = "✿FUNCTION✿:", "✿ARGS✿:"

    def write(self, calls: Sequence[Call], *, spaced: bool = False) -> str:
        lines = []
        for call in calls:
            if call.name != call.name.strip() or len(call.name.splitlines()) != 1:
                raise UserError(
                    f"the name {call.name!r:.60} is no line of text; dialect qwen cannot write it"
                )
            lines.append(f"{self.NAME} {call.name}\n{self.ARGS} {written(dict(call.arguments), spaced)}")
        return "\n".join(lines)

    def parse(self, text: str) -> Parsed:
        found, faults, at = [], [], 0
        while (start := text.find(self.NAME, at)) >= 0:
            at = start + len(self.NAME)
            try:
                one = self._one(text, start)
                found.append(one)
                at = one.end
            except NotACall as error:
                faults.append(error.fault)
            except JsonError as error:
                faults.append(CallFault(error.offset, error.message))
        return Parsed(merged(text, found), tuple(faults))

    def _one(self, text: str, start: int) -> Found:
        name_at = _skip(text, start + len(self.NAME))
        line_end = text.find("\n", name_at)
        args_at = _skip(text, line_end) if line_end >= 0 else len(text)
        name = text[name_at : max(line_end, name_at)].rstrip()
        if not name or not text.startswith(self.ARGS, args_at):
            raise NotACall(name_at, f"a name, then a line with {self.ARGS} expected")
        parser = container_at(text, _skip(text, args_at + len(self.ARGS)))
        value = parser.close()
        if not isinstance(value, dict):
            raise NotACall(args_at, "the arguments are a list, not an object")
        if parser.duplicates:
            again = parser.duplicates[0]
            raise NotACall(again.start, f"key '{again.value:.40}' stands twice")
        spans = [
            Span(name_at, name_at + len(name), Kind.TOOL_NAME, self.name),
            *argument_spans(parser.nodes, (), self.name),
        ]
        return Found(Call(name, value), start, parser.at, filled(start, parser.at, spans, self.name))


DIALECTS: Mapping[str, type[Dialect]] = {
    "hermes": Hermes,
    "qwen-coder": QwenCoder,
    "qwen": Qwen,
    "json": Json,
    "pythonic": Pythonic,
}


def dialect(name: str) -> Dialect:
    """The dialect of that name; UserError with the choices."""
    if name not in DIALECTS:
        raise UserError(f"dialect={name!r} is no dialect of tool calls. {suggest(name, DIALECTS)}")
    return DIALECTS[name]()


def parse_any(text: str) -> Parsed:
    """The calls in whichever dialect the text speaks.

    Marks of hermes and both of Qwen's decide; without them, whichever of the others finds the earliest call;
    without calls, the faults of the first that has some.
    """
    results = {name: one().parse(text) for name, one in DIALECTS.items()}
    marked = [results[name] for name in ("qwen-coder", "hermes", "qwen")]
    for parsed in (*(one for one in marked if one.found), *(one for one in marked if one.faults)):
        return parsed
    found = [parsed for parsed in results.values() if parsed.found]
    if found:
        return min(found, key=lambda parsed: parsed.found[0].start)
    return next((parsed for parsed in results.values() if parsed.faults), Parsed())
