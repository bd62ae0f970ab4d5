"""`kind: format`: JSON, a schema, sections with something under them, patterns, markers in pairs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import model_validator

from quietreasoning.evaluate.rules.base import Context, Finding, Mark, Rule, Table, at_end
from quietreasoning.evaluate.rules.json_schema import check_pattern, check_schema, schema_faults
from quietreasoning.evaluate.rules.json_text import JsonFault, read_json

PARSES = 0.25  # of a value that is JSON but not what the schema asks for
_HEADER = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+(?P<hash>[^\n]+)"
    r"|(?:\*\*(?P<bold>[^*\n]+)\*\*:?|(?P<colon>[A-Za-z][\w /-]{0,60}):)[ \t]*(?P<same>[^\n]*))$",
    re.M,
)


class Format(Rule):
    """Mean over what is asked. A section counts when words of its own stand under its header."""

    kind = "format"

    is_json: bool = False
    """The whole text is one JSON value (a ```json fence may stay), at most 100 deep, no key twice."""
    json_schema: Table | None = None
    """What that value must be: a subset of JSON Schema."""
    sections: tuple[str, ...] = ()
    """Headers that must be there: `# Name`, `**Name**` or `Name:`, each with text under it."""
    pattern: str | None = None
    """Regular expression that must match somewhere."""
    forbid_pattern: str | None = None
    """Regular expression that may match nowhere."""
    balanced: tuple[tuple[str, str], ...] = ()
    """Pairs of markers that open and close, such as [["<bot>", "<eot>"]]."""

    @model_validator(mode="after")
    def _can_be_read(self) -> Format:
        if self.json_schema is not None:
            check_schema(self.json_schema)
        for name in ("pattern", "forbid_pattern"):
            if getattr(self, name) is not None:
                check_pattern(getattr(self, name), name)
        asked = (self.is_json, self.json_schema is not None, self.sections, self.pattern, self.forbid_pattern)
        if not any((*asked, self.balanced)):
            raise ValueError(
                "nothing is asked; give is_json, json_schema, sections, pattern, forbid_pattern or balanced"
            )
        return self

    @property
    def earned(self) -> bool:
        return bool(self.is_json or self.json_schema is not None or self.sections or self.pattern)

    def check(self, text: str, context: Context) -> Finding:
        scores: list[float] = []
        marks: list[Mark] = []
        for score, found in self._parts(context.own(text)):
            scores.append(score)
            marks += found
        return Finding(sum(scores) / len(scores), tuple(marks))

    def _parts(self, text: str) -> Iterator[tuple[float, list[Mark]]]:
        if self.is_json or self.json_schema is not None:
            yield self._json(text)
        if self.sections:
            filled = sections_in(text)
            missing = [name for name in self.sections if name.lower() not in filled]
            empty = [name for name in self.sections if name.lower() in filled and not filled[name.lower()][1]]
            marks = [at_end(text, f"the section {name!r} is missing") for name in missing]
            marks += [Mark(*filled[name.lower()][0], f"nothing stands under {name!r}") for name in empty]
            yield 1 - len(marks) / len(self.sections), marks
        if self.pattern is not None:
            found = re.search(self.pattern, text) is not None
            yield float(found), [] if found else [at_end(text, f"nothing matches {self.pattern}")]
        if self.forbid_pattern is not None:
            spans = [match.span() for match in re.finditer(self.forbid_pattern, text)]
            yield float(not spans), [Mark(*span, f"matches {self.forbid_pattern}") for span in spans]
        for opened, closed in self.balanced:
            marks = list(_unbalanced(text, opened, closed))
            yield float(not marks), marks

    def _json(self, text: str) -> tuple[float, list[Mark]]:
        try:
            node = read_json(text)
        except JsonFault as fault:
            return 0.0, [Mark(fault.at, min(fault.at + 1, len(text)), f"not JSON: {fault}")]
        marks = list(schema_faults(node, self.json_schema or {}))
        return PARSES if marks else 1.0, marks


def sections_in(text: str) -> dict[str, tuple[tuple[int, int], bool]]:
    """Header in lower case -> (its place, whether words stand under it before the next header)."""
    headers = list(_HEADER.finditer(text))
    found: dict[str, tuple[tuple[int, int], bool]] = {}
    for number, header in enumerate(headers):
        end = headers[number + 1].start() if number + 1 < len(headers) else len(text)
        name = (header["hash"] or header["bold"] or header["colon"]).strip(" \t\r#:").lower()
        filled = re.search(r"\w", (header["same"] or "") + text[header.end() : end]) is not None
        place, before = found.get(name, (header.span(), False))
        found[name] = place, filled or before
    return found


def _unbalanced(text: str, opened: str, closed: str) -> Iterator[Mark]:
    """Markers without a partner; they may be nested."""
    waiting: list[tuple[int, int]] = []
    for match in re.finditer(f"{re.escape(opened)}|{re.escape(closed)}", text):
        if match[0] == opened and not (opened == closed and waiting):
            waiting.append(match.span())
        elif waiting:
            waiting.pop()
        else:
            yield Mark(*match.span(), f"{closed} closes nothing")
    for span in waiting:
        yield Mark(*span, f"{opened} is never closed")
