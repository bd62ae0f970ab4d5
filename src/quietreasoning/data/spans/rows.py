"""Rows of a distillation data set from JSONL: prompts with a teacher's text, conversations, or answers.

- `{"prompt", "teacher_text", ...}`: what a teacher wrote, tool calls as text in any dialect; `tools` are
  written before the prompt, `prompt_tools` are those that it declares in its own words;
- `{"messages", "tools", ...}`: a conversation as servers write it;
- `{"input": {"system", "tools", "history", "tool_result"}, "target": {"text"}}`: an answer to learn.

A first line `{"__header__": ...}` describes the file. A broken row is named and counted, and beyond
`max_bad_fraction` the file is refused; a field that cannot be used is dropped, named and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from quietreasoning.config import Settings, UserError
from quietreasoning.data.records import Fault, check_faults, records
from quietreasoning.data.spans.calls import Parsed
from quietreasoning.data.spans.conversation import Conversation
from quietreasoning.data.spans.dialects import parse_any
from quietreasoning.data.spans.fields import NOT_FROM_JSON, Fields, conversation_of
from quietreasoning.data.spans.legacy import (
    Lost,
    integration_span,
    json_spans,
    name_span,
    texts_of,
    value_spans,
)
from quietreasoning.data.spans.report import Dropped, Report
from quietreasoning.data.spans.span import Span

REASONING = "teacher_reasoning_content"
HEADER = "__header__"


class RowsConfig(Settings):
    max_bad_fraction: float = Field(0.001, ge=0, le=1)
    """Share of broken rows that are left out and reported; more refuses the file."""
    reasoning: Literal["refuse", "skip", "strip"] = "refuse"
    """What a non-empty teacher_reasoning_content does, since terms of use of teachers forbid to train on it:
    refuse the file, skip the row, or strip the field. The last two are counted."""


@dataclass(frozen=True)
class Row:
    """One row to learn from."""

    line: int
    conversation: Conversation
    spans: tuple[Span, ...] = ()  # in the characters of the last turn's content
    steps: tuple[str, ...] = ()  # cot_steps
    answer: str | None = None
    quality: float | None = None  # teacher_quality_score
    prefix: str | None = None  # how the teacher's text begins: teacher_prefix_ids as text
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()  # declared: by the conversation, or in the prompt's own words


def read_rows(
    path: str | Path, config: RowsConfig | None = None, *, tokenizer: Any = None
) -> tuple[list[Row], Report]:
    """The rows of a file and what was left out.

    tokenizer: the one that made the file's `*_ids` fields. UserError, with file, line and cure, where too
    many rows are broken, none is left, or teacher reasoning is there and refused.
    """
    path, config = Path(path), config or RowsConfig()
    report, rows = Report(str(path)), []
    for number, (line, record) in enumerate(records(path)):
        try:
            if isinstance(record, Fault):
                raise record
            if not isinstance(record, dict):
                raise Fault(f"not an object but {type(record).__name__}")
            if HEADER in record:
                if number:
                    raise Fault(f"a header ({HEADER}) that is not the first line")
                report.header = record
                continue
            if _reasons(record, line, config, report):
                continue
            rows.append(_Reader(record, line, tokenizer, report).row())
        except (Fault, UserError) as error:
            if isinstance(error, _Refused):
                raise
            report.faults.append(f"{path}:{line}: {error}")
    report.rows = len(rows)
    if not rows and not report.faults:
        raise UserError(f"{path} holds no rows to learn from ({report}); check the file")
    if report.faults:
        check_faults(report.faults, len(rows), "rows", config.max_bad_fraction)
    return rows, report


class _Refused(UserError):
    """Refuses the whole file, whatever the budget."""


def _reasons(record: dict[str, Any], line: int, config: RowsConfig, report: Report) -> bool:
    """Whether the row is skipped; the field is taken out of the record."""
    reasoning = record.pop(REASONING, None)
    if not reasoning or (isinstance(reasoning, str) and not reasoning.strip()):
        return False
    if config.reasoning == "refuse":
        raise _Refused(
            f"{report.file}:{line}: field '{REASONING}' holds a teacher's private reasoning, which terms of "
            "use commonly forbid to train on; remove it, or set reasoning=skip (leaves such rows out) or "
            "reasoning=strip (leaves the field out)"
        )
    if config.reasoning == "skip":
        report.skipped.append(Dropped(report.file, line, REASONING, "row skipped by reasoning=skip"))
        return True
    report.drop(line, REASONING, "left out by reasoning=strip")
    return False


class _Reader:
    """One record to one row."""

    def __init__(self, record: Mapping[str, Any], line: int, tokenizer: Any, report: Report):
        self.line, self.tokenizer, self.report = line, tokenizer, report
        self.fields = Fields(record)

    def row(self) -> Row:
        """Fault or UserError where the row itself is broken; nothing is reported for such a row."""
        before = len(self.report.dropped)
        try:
            return self._row()
        except (Fault, UserError):
            del self.report.dropped[before:]
            raise

    def _row(self) -> Row:
        fields = self.fields
        conversation = conversation_of(fields)
        last = conversation.turns[-1]
        text = last.content if last.role == "assistant" and not last.calls else ""
        row = Row(
            line=self.line,
            conversation=conversation,
            spans=self._spans(text),
            steps=fields.texts("cot_steps"),
            answer=fields.text("answer"),
            quality=fields.number("teacher_quality_score"),
            prefix=self._prefix(text),
            metadata=fields.mapping("metadata"),
            tools=self._tools(conversation),
        )
        for name in fields.unread():
            self.report.drop(self.line, name, NOT_FROM_JSON.get(name) or fields.unknown(name))
        return row

    def _tools(self, conversation: Conversation) -> tuple[Mapping[str, Any], ...]:
        """The declared tools. Those of `prompt_tools` stand in the prompt already and are not written."""
        if self.fields.text("prompt") is None:
            return conversation.tools
        shown = tuple(self.fields.listed("prompt_tools"))
        if shown and conversation.tools:
            raise Fault("'tools' are written before the prompt, 'prompt_tools' stand in it; give one of them")
        return replace(conversation, tools=shown or conversation.tools).tools  # or refused

    def _spans(self, text: str) -> tuple[Span, ...]:
        """What the text shows by itself, then what only the old fields know."""
        parsed = parse_any(text)
        for fault in parsed.faults:
            self.report.drop(self.line, "teacher_text", f"a broken tool call: {fault}")
        found = list(parsed.spans)
        found += self._old("tool_name_ids", "tool_name_mask", lambda one: name_span(one, text, parsed))
        found += self._old(
            "gold_json_text_ids", "mask_valid_json_tokens", lambda one: json_spans(one, text, parsed)
        )
        found += self._integration(text, parsed)
        return tuple(sorted(found, key=lambda span: (span.start, span.end)))

    def _old(self, name: str, mask: str, place: Callable[[str], tuple[Span, ...]]) -> list[Span]:
        """The spans of one field of ids; all or, counted, none."""
        ids, chosen = self.fields.ids(name), self.fields.ids(mask)
        if ids is None:
            if chosen is not None:
                self.report.drop(self.line, mask, f"a mask without {name} says no place")
            return []
        try:
            return [span for text in texts_of(self.tokenizer, ids, chosen) for span in place(text)]
        except Lost as lost:
            self.report.drop(self.line, name, str(lost))
            return []

    def _integration(self, text: str, parsed: Parsed) -> list[Span]:
        name, values = self.fields.ids_or_values("tool_result_fields")
        if values is None:
            found = self._old(name, "integration_mask", lambda one: integration_span(one, text))
        else:
            if self.fields.ids("integration_mask") is not None:
                self.report.drop(self.line, "integration_mask", "a mask over values, not ids, says no place")
            try:
                found = list(value_spans(values, text))
            except Lost as lost:
                self.report.drop(self.line, name, str(lost))
                found = []
        return [s for s in found if not any(s.start < end and s.end > a for a, end in parsed.blocks)]

    def _prefix(self, text: str) -> str | None:
        ids = self.fields.ids("teacher_prefix_ids")
        if ids is None:
            return None
        try:
            prefix = texts_of(self.tokenizer, ids)[0]
            if not text.lstrip().startswith(prefix):
                raise Lost(f"the text does not begin with {prefix!r:.60}")
            return prefix
        except Lost as lost:
            self.report.drop(self.line, "teacher_prefix_ids", str(lost))
            return None
