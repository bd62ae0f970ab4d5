"""A file of a teacher's rows to examples, and what was left out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, check_faults
from quietreasoning.data.spans.dialects import dialect
from quietreasoning.data.spans.render import check_plain_text, control_tokens
from quietreasoning.data.spans.report import Dropped, Report
from quietreasoning.data.spans.rows import Row, RowsConfig, read_rows
from quietreasoning.data.tasks.rows_config import TeacherRowsConfig
from quietreasoning.data.tasks.rows_header import check_header
from quietreasoning.data.tasks.rows_turns import (
    Said,
    context,
    declared,
    json_value,
    opening,
    said,
    turns_to_learn,
)


def read_examples(
    path: Path, config: TeacherRowsConfig, tokenizer: Any, name: str
) -> tuple[list[Example], list[str]]:
    """Examples in the order of the file, their ids beginning with `name`, and what was left out.

    tokenizer: that of the file's ids and template, or None. UserError, with file, line and cure, where the
    header does not fit, or more than max_bad_fraction of the rows are broken.
    """
    check_header(path)
    limits = RowsConfig(max_bad_fraction=config.max_bad_fraction, reasoning=config.reasoning)
    rows, report = read_rows(path, limits, tokenizer=tokenizer)
    reader, examples, good = _Reader(config, tokenizer, name), [], len(rows)
    for row in rows:
        try:
            found = list(reader.examples(row))
        except (Fault, UserError) as fault:
            report.faults.append(f"{path}:{row.line}: {fault}")
            good -= 1
            continue
        for example, notes in found:
            examples.append(example)
            for note in notes:
                report.drop(row.line, "teacher_text", note)
    if report.faults:
        check_faults(report.faults, good, "rows", config.max_bad_fraction)
    return examples, told(report)


class _Reader:
    """One row to its examples."""

    def __init__(self, config: TeacherRowsConfig, tokenizer: Any, name: str):
        self.config, self.tokenizer, self.name = config, tokenizer, name
        self.dialect = dialect(config.dialect)
        if config.chat and not tokenizer.chat_template:
            raise UserError(
                f"data.options.tokenizer.path={config.tokenizer.path} has no chat template; set "
                "data.options.chat=false"
            )
        self.controls = control_tokens(tokenizer) if config.chat else ()

    def examples(self, row: Row) -> Iterator[tuple[Example, tuple[str, ...]]]:
        """(example, what could not be used) of each turn. Fault or UserError where one is broken."""
        learned = turns_to_learn(row.conversation)
        for index in learned:
            parts = said(row, index, self.dialect, self.config.spaced)
            example = Example(
                id=f"{self.name}-{row.line}" + (f"-{index}" if len(learned) > 1 else ""),
                prompt=self._prompt(row, index),
                steps=parts.steps,
                results=("",) * len(parts.steps),
                answer=parts.answer,
                meta=_facts(row, index, parts, index == learned[-1]),
            )
            yield example, parts.notes

    def _prompt(self, row: Row, index: int) -> str:
        conversation = row.conversation
        plain = context(conversation, index, self.dialect, self.config.spaced)
        if not self.config.chat:
            return plain
        check_plain_text(conversation, self.controls)
        try:
            text = self.tokenizer.apply_chat_template(
                conversation.messages()[:index],
                tools=list(conversation.tools) or None,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # a template is a program: it raises what it likes
            raise Fault(f"the chat template refuses it ({' '.join(str(error).split())[:200]})") from error
        start = self.tokenizer.bos_token  # the encoder writes it where the tokenizer does
        return text.removeprefix(start) if start else text


def _facts(row: Row, index: int, parts: Said, last: bool) -> dict[str, Any]:
    results = tuple(json_value(text) for text in row.conversation.results_before(index))
    facts: dict[str, Any] = {
        "kind": "call" if parts.calls else "answer" if results else "text",
        "needs_tool": bool(parts.calls),
        "tools": declared(row.tools),
        "calls": tuple({"name": call.name, "arguments": dict(call.arguments)} for call in parts.calls),
        "result": results,
        "spans": parts.spans,
        "quality": row.quality,
        "metadata": row.metadata,
        "conversation": opening(row),
    }
    if last and row.answer is not None:
        facts["answers"] = (row.answer,)
    if last and row.prefix is not None:
        facts["prefix"] = row.prefix
    return facts


def told(report: Report) -> list[str]:
    """What was left out, alike things in one line, then the broken rows one by one."""
    alike: dict[tuple[str, str], list[Dropped]] = {}
    for one in (*report.skipped, *report.dropped):
        alike.setdefault((one.field, one.reason), []).append(one)
    counted = []
    for (name, reason), found in alike.items():
        more = f" and {len(found) - 1} more rows" if len(found) > 1 else ""
        counted.append(f"{report.file}:{found[0].line}{more}: field '{name}': {reason}")
    return [*counted, *report.faults]
