"""What an agent's text shows that it did: tool calls, diffs, addresses, steps, latent spans; with places."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from quietreasoning.evaluate.rules.json_text import Node, objects_in

OPEN_LATENT, CLOSE_LATENT = "<bot>", "<eot>"
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_PATH_KEYS = ("path", "file", "filename", "file_path", "filepath", "target_file")
_URL = re.compile(r"\b(?:https?|ftp|wss?)://[^\s<>\"'`)\]}]{1,2000}", re.I)
_STEP = re.compile(r"^[ \t]*(?:\*\*)?(?:step[ \t]+\d+\b|\d{1,3}[.)][ \t]+\S)", re.I | re.M)
_HUNK = re.compile(r"[-+ @\\]|index |new file|deleted file|rename |similarity |old mode|new mode|diff --git ")


class Place(NamedTuple):
    """Something named in the text. start, end: None where a fact names it."""

    name: str
    start: int | None
    end: int | None


@dataclass(frozen=True)
class Call:
    """A tool call in JSON. place: of the tool's name; paths: what its arguments name as files."""

    place: Place
    start: int
    end: int
    paths: tuple[Place, ...]


@dataclass(frozen=True)
class Diff:
    """Files and changed lines of the unified diffs in a text."""

    files: tuple[Place, ...]
    lines: tuple[tuple[int, int], ...]


@lru_cache(maxsize=64)
def calls_in(text: str) -> tuple[Call, ...]:
    """JSON objects with a tool's name and its arguments, in any common dialect, nested lists of them too.

    Calls that are no JSON (`f(a=1)`) are not seen: name them in the facts."""
    return tuple(call for node in objects_in(text) for call in _calls(node))


def _calls(node: Node) -> Iterator[Call]:
    name = node.items.get("name")
    arguments = next((node.items[key] for key in _ARGUMENTS if key in node.items), None)
    if name is not None and isinstance(name.value, str) and arguments is not None:
        paths = tuple(_paths(arguments))
        yield Call(Place(name.value, name.start + 1, name.end - 1), node.start, node.end, paths)
        return
    for item in node.items.values():
        yield from _calls(item)


def _paths(node: Node) -> Iterator[Place]:
    if isinstance(node.value, str):  # arguments as text: what is inside has the text's place
        for inner in objects_in(node.value):
            yield from (Place(path.name, node.start + 1, node.end - 1) for path in _paths(inner))
    for key, item in node.items.items():
        if key in _PATH_KEYS and isinstance(item.value, str):
            yield Place(item.value, item.start + 1, item.end - 1)
        else:
            yield from _paths(item)


@lru_cache(maxsize=64)
def diff_in(text: str) -> Diff:
    """Reads from `diff --git`, `@@` or `--- a` with `+++ b` below it, as long as lines look like a diff's."""
    files: dict[str, Place] = {}
    lines: list[tuple[int, int]] = []
    inside, at = False, 0
    rows = text.splitlines(keepends=True)
    for number, row in enumerate(rows):
        bare = row.rstrip("\r\n")
        below = rows[number + 1] if number + 1 < len(rows) else ""
        header = bare.startswith("--- ") and below.startswith("+++ ")
        if header or bare.startswith(("diff --git ", "@@ ")):
            inside = True
        elif inside and bare and not _HUNK.match(bare):
            inside = False
        if inside:
            place = _diff_file(bare, at, header or (number and rows[number - 1].startswith("--- ")))
            if place is not None:
                files.setdefault(place.name, place)
            elif bare[:1] in ("+", "-") and not header:
                if not bare.startswith(("+++ ", "--- ")):
                    lines.append((at, at + len(bare)))
        at += len(row)
    return Diff(tuple(files.values()), tuple(lines))


def _diff_file(line: str, at: int, header: Any) -> Place | None:
    for mark in ("+++ ", "--- ") if header else ("rename to ", "rename from "):
        if line.startswith(mark):
            name = line[len(mark) :].split("\t")[0].strip()
            start = at + line.index(name) if name else at
            if not name or name == "/dev/null":
                return None
            cut = 2 if name.startswith(("a/", "b/")) and header else 0
            return Place(name[cut:], start + cut, start + len(name))
    return None


def domains_in(text: str) -> list[Place]:
    """Hosts of the addresses in a text. `https://good.com@evil.org` is at evil.org."""
    found = []
    for match in _URL.finditer(text):
        try:
            host = urlsplit(match[0].replace("\\", "/")).hostname
        except ValueError:
            host = None
        found.append(Place((host or "").rstrip("."), match.start(), match.end()))
    return found


def steps_in(text: str) -> list[tuple[int, int]]:
    """`Step 3`, `3.` or `3)` at the start of a line."""
    return [match.span() for match in _STEP.finditer(text)]


def latent_spans_in(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(re.escape(OPEN_LATENT), text)]


def clean_path(path: str) -> str:
    """`./src/../secret\\x` -> `secret/x`; what climbs out or starts at a root keeps its `..`, `/` or `~`."""
    return posixpath.normpath(path.replace("\\", "/").strip()).replace("//", "/")
