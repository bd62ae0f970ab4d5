"""Calls as Qwen's coder of version 3 writes them: a tag with the name, and one for each argument.

Values carry no types. What reads as JSON is that JSON, all else is text as it stands; so text that would read
as JSON is written in quotes. A template that leaves such text bare says something else than its call, and
whoever compares the two finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.data.spans.calls import (
    Call,
    Found,
    NotACall,
    Parsed,
    argument_spans,
    merged,
    written,
)
from quietreasoning.data.spans.json_text import JsonError, JsonParser
from quietreasoning.data.spans.span import Kind, Span, filled, moved

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


class QwenCoder:
    """`<tool_call> <function=f> <parameter=a> 1 </parameter> </function> </tool_call>`, a line each."""

    name = "qwen-coder"

    def write(self, calls: Sequence[Call], *, spaced: bool = False) -> str:
        lines = []
        for call in calls:
            lines += [OPEN, f"{FUNCTION}{_tag(call.name)}>"]
            for key, value in call.arguments.items():
                lines += [f"{PARAMETER}{_tag(key)}>", _bare(value, spaced), PARAMETER_END]
            lines += [FUNCTION_END, CLOSE]
        return "\n".join(lines)

    def parse(self, text: str) -> Parsed:
        found, faults, at = [], [], 0
        while (start := text.find(OPEN, at)) >= 0:
            reader = _Reader(text, start + len(OPEN))
            at = reader.at
            if not reader.sees(FUNCTION):
                continue  # another dialect's block
            try:
                call, spans = reader.call()
                at = reader.at
                found.append(Found(call, start, at, filled(start, at, spans, self.name)))
            except NotACall as error:
                faults.append(error.fault)
        return Parsed(merged(text, found), tuple(faults))


def _tag(word: str) -> str:
    if not word or word != word.strip() or ">" in word or len(word.splitlines()) != 1:
        raise UserError(f"{word!r:.60} cannot stand in a tag; use another dialect than qwen-coder")
    return word


def _bare(value: Any, spaced: bool) -> str:
    """The value as the reader will take it: text as it stands where it can."""
    stands = isinstance(value, str) and value and _json(value) is None
    text = value if stands else written(value, spaced)
    if PARAMETER_END in text:
        raise UserError(
            f"the argument {text!r:.60} holds {PARAMETER_END}; use another dialect than qwen-coder"
        )
    return text


def _json(text: str) -> JsonParser | None:
    parser = JsonParser()
    try:
        parser.feed(text)
        parser.close()
    except JsonError:
        return None
    return parser


class _Reader:
    """Reads tags from a place on; `at` is where it stands."""

    def __init__(self, text: str, at: int):
        self.text, self.at = text, at

    def sees(self, mark: str) -> bool:
        """Whether this mark follows, past white space."""
        at = self.at
        while at < len(self.text) and self.text[at].isspace():
            at += 1
        if self.text.startswith(mark, at):
            self.at = at
            return True
        return False

    def take(self, mark: str) -> None:
        if not self.sees(mark):
            raise NotACall(self.at, f"{mark} expected")
        self.at += len(mark)

    def until(self, mark: str) -> tuple[int, int]:
        """The stretch before the next such mark; it goes past the mark."""
        start, end = self.at, self.text.find(mark, self.at)
        if end < 0:
            raise NotACall(len(self.text), f"{mark} expected")
        self.at = end + len(mark)
        return start, end

    def word(self, mark: str, kind: Kind) -> Span:
        """What stands in a tag."""
        self.take(mark)
        start, end = self.until(">")
        if not self.text[start:end].strip() or "\n" in self.text[start:end]:
            raise NotACall(start, f"a name after {mark} expected")
        return Span(start, end, kind, QwenCoder.name)

    def call(self) -> tuple[Call, list[Span]]:
        name = self.word(FUNCTION, Kind.TOOL_NAME)
        spans, arguments = [name], {}
        while self.sees(PARAMETER):
            key = self.word(PARAMETER, Kind.ARG_KEY)
            word = key.of(self.text)
            if word in arguments:
                raise NotACall(key.start, f"key '{word:.40}' stands twice")
            arguments[word], inner = self.value()
            spans += [key, *inner]
        self.take(FUNCTION_END)
        self.take(CLOSE)
        return Call(name.of(self.text), arguments), spans

    def value(self) -> tuple[Any, list[Span]]:
        """What stands between the tags, without the line break on either side."""
        start, end = self.until(PARAMETER_END)
        start += self.text.startswith("\n", start)
        end -= end > start and self.text[end - 1] == "\n"
        raw = self.text[start:end]
        parser = _json(raw)
        if parser is not None and not parser.duplicates:
            spans = argument_spans(parser.nodes, (), QwenCoder.name)
            if not isinstance(parser.close(), dict | list):
                node = parser.nodes[0]
                spans = [Span(node.start, node.end, Kind.ARG_VALUE, QwenCoder.name)]
            return parser.close(), list(moved(spans, start))
        return raw, [Span(start, end, Kind.ARG_VALUE, QwenCoder.name)] if raw else []
