"""Calls as a Python list: `[f(a=1, b="x"), g()]`, read by Python's own parser and never run."""

from __future__ import annotations

import ast
import json
import keyword
import math
import warnings
from collections.abc import Sequence
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.data.spans.calls import Call, Found, NotACall, Parsed
from quietreasoning.data.spans.json_text import words_of
from quietreasoning.data.spans.span import Kind, Span, filled

_NAMES = {"true": True, "false": False, "null": None}  # some models write JSON's words


class Pythonic:
    """Names are identifiers, dotted or not; arguments are given by keyword, as literals."""

    name = "pythonic"

    def write(self, calls: Sequence[Call], *, spaced: bool = False) -> str:
        words = ["["]
        for index, call in enumerate(calls):
            words += [","] * bool(index) + [_checked(call.name, "name", dotted=True), "("]
            for number, (key, value) in enumerate(call.arguments.items()):
                words += [","] * bool(number) + [_checked(key, "argument"), "=", *words_of(value, _leaf)]
            words.append(")")
        words.append("]")
        if spaced:
            return " ".join(words)
        return "".join(f"{word} " if word in (",", ":") else word for word in words)

    def parse(self, text: str) -> Parsed:
        """Lists that hold no call are prose; one that begins with a call and breaks is a fault."""
        found, faults, at = [], [], 0
        while (at := text.find("[", at)) >= 0:
            if not _begins_call(text, at):
                at += 1
                continue
            end = _closing(text, at)
            try:
                if end < 0:
                    raise NotACall(len(text), "the list of calls is not closed")
                found += _list(text, at, end)
                at = end
            except NotACall as error:
                faults.append(error.fault)
                at += 1
        return Parsed(tuple(found), tuple(faults))


def _checked(word: str, what: str, dotted: bool = False) -> str:
    parts = word.split(".") if dotted else [word]
    if not all(p.isidentifier() and p.isascii() and not keyword.iskeyword(p) for p in parts):
        raise UserError(
            f"the {what} '{word:.40}' is no ASCII name in Python; use another dialect than pythonic"
        )
    return word


def _leaf(value: Any) -> str:
    """A key or leaf as a Python literal; JSON strings are Python strings too."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise UserError(f"the argument {value!r:.60} is no JSON; use plain JSON values")


def _begins_call(text: str, at: int) -> bool:
    """Whether `[`, a dotted name and `(` stand here."""
    rest = text[at + 1 :].lstrip()
    size = next((i for i, char in enumerate(rest) if not (char.isalnum() or char in "_.")), len(rest))
    head, tail = rest[:size], rest[size:].lstrip(" \t")
    return tail.startswith("(") and all(part.isidentifier() for part in head.split("."))


def _closing(text: str, at: int) -> int:
    """The end of the bracket at `at`, past strings; -1 where it stays open."""
    depth, quote, index = 0, "", at
    while index < len(text):
        char = text[index]
        if quote:
            if char == "\\":
                index += 1
            elif text.startswith(quote, index):
                index, quote = index + len(quote) - 1, ""
        elif char in "'\"":
            quote = char * 3 if text.startswith(char * 3, index) else char
            index += len(quote) - 1
        else:
            depth += (char in "([{") - (char in ")]}")
            if depth == 0:
                return index + 1
        index += 1
    return -1


def _list(text: str, start: int, end: int) -> list[Found]:
    """The calls of the list at `start`; NotACall where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape is the writer's business
            tree = ast.parse(text[start:end], mode="eval").body
    except SyntaxError as error:
        offset = _Places(text, start, end).at(error.lineno or 1, 0) + max((error.offset or 1) - 1, 0)
        raise NotACall(min(offset, end), f"not a list of calls ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise NotACall(start, f"not a list of calls ({error})") from None
    if not isinstance(tree, ast.List):
        raise NotACall(start, "not a list of calls but one made by a rule")
    places = _Places(text, start, end)
    found = []
    for index, node in enumerate(tree.elts):
        until = end if index + 1 == len(tree.elts) else places.of(tree.elts[index + 1])[0]
        call, spans = _call(node, places)
        found.append(Found(call, start, until, filled(start, until, spans, Pythonic.name)))
        start = until
    return found


class _Places:
    """Python counts lines and UTF-8 bytes; this gives characters of the whole text."""

    def __init__(self, text: str, start: int, end: int):
        self.text = text
        self._lines, self._starts, at = [], [], start
        for line in _split_lines(text[start:end]):
            self._lines.append(line)
            self._starts.append(at)
            at += len(line)

    def at(self, line: int, column: int) -> int:
        """line: from 1; column: in bytes."""
        row = min(line, len(self._lines)) - 1
        return self._starts[row] + len(self._lines[row].encode()[:column].decode(errors="ignore"))

    def of(self, node: Any) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)


def _split_lines(text: str) -> list[str]:
    """Lines as Python's parser counts them: \\n, \\r\\n and \\r end one, nothing else does."""
    lines, at = [], 0
    for index, char in enumerate(text):
        if char == "\n" or (char == "\r" and text[index + 1 : index + 2] != "\n"):
            lines.append(text[at : index + 1])
            at = index + 1
    return [*lines, text[at:]]


def _call(node: ast.AST, places: _Places) -> tuple[Call, list[Span]]:
    start = places.of(node)[0]
    if not isinstance(node, ast.Call):
        raise NotACall(start, "an item of the list is no call")
    if node.args or any(word.arg is None for word in node.keywords):
        raise NotACall(start, "an argument without a name")
    head, tail = places.of(node.func)
    name = places.text[head:tail]
    if not all(part.isidentifier() for part in name.split(".")):
        raise NotACall(head, "the called name is no name")
    spans, arguments = [Span(head, tail, Kind.TOOL_NAME, Pythonic.name)], {}
    for word in node.keywords:
        at = places.at(word.lineno, word.col_offset)
        if not places.text.startswith(word.arg, at):
            raise NotACall(at, f"the name '{word.arg}' is spelled in another form of Unicode")
        spans.append(Span(at, at + len(word.arg), Kind.ARG_KEY, Pythonic.name))
        arguments[word.arg] = _literal(word.value, places, spans)
    return Call(name, arguments), spans


def _literal(node: ast.AST, places: _Places, spans: list[Span]) -> Any:
    """The value of a literal; its keys and leaves are added to the spans."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item, places, spans) for item in node.elts]
    if isinstance(node, ast.Dict):
        found = {}
        for key, item in zip(node.keys, node.values, strict=True):
            if not (isinstance(key, ast.Constant) and isinstance(key.value, str)) or key.value in found:
                raise NotACall(places.of(node)[0], "a key that is no text, or stands twice")
            spans.append(Span(*places.of(key), Kind.ARG_KEY, Pythonic.name))
            found[key.value] = _literal(item, places, spans)
        return found
    start, end = places.of(node)
    spans.append(Span(start, end, Kind.ARG_VALUE, Pythonic.name))
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = ...
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise NotACall(start, "an argument that is no JSON value")
