"""Run a program that calls tools, in the sandbox: `execute(program, tools, answers) -> Execution`.

Only what the program prints, or leaves in `summary`, comes back into the context. Tools are functions of the
program's own names and of a module `tools`; each call goes through a pipe to this process, which checks the
arguments, has it answered, and keeps the record. So a program can neither forge nor hide a call, nor see more
of a table than it asked for. It can do with its own process what it likes, short of what the sandbox refuses:
call a tool past its stub (the call is checked and recorded all the same), or claim to have ended well.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.evaluate.code_mode.answers import RESULT, Answers, CallFault, sent
from quietreasoning.evaluate.code_mode.channel import Channel
from quietreasoning.evaluate.code_mode.tool import Tool
from quietreasoning.evaluate.rules.json_schema import schema_faults
from quietreasoning.evaluate.rules.json_text import JsonFault, read_json
from quietreasoning.evaluate.sandbox import Limits, Verdict, run

CALLS, REQUEST = 100, 65_536  # most calls of a program, and characters of one
LIMITS = Limits(seconds=10.0, memory_mb=512, file_mb=1)
UNKNOWN = "?"


@dataclass(frozen=True)
class Made:
    """A call as this process saw it. result: as JSON, "" where it failed; fault: why it failed."""

    name: str
    arguments: Mapping[str, Any]
    result: str = ""
    fault: str | None = None

    @property
    def characters(self) -> int:
        """Size of the result, which a direct call would have put into the context."""
        return len(self.result)

    @property
    def written(self) -> str:
        """The call as JSON."""
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


@dataclass(frozen=True)
class Execution:
    """verdict: of the program; calls: all that were made, in order; summary: what comes back."""

    verdict: Verdict
    calls: tuple[Made, ...]

    @property
    def summary(self) -> str:
        return self.verdict.stdout

    @property
    def passed(self) -> bool:
        """The program reached its end. Its own word: what it is worth, its summary shows."""
        return self.verdict.passed


def execute(
    program: str,
    tools: Sequence[Tool],
    answers: Answers,
    *,
    limits: Limits = LIMITS,
    most_calls: int = CALLS,
) -> Execution:
    """Never raises for what a program does; UserError where `answers` cannot be used.

    Arguments are looked at in the program's process, for a quick and clear error, and again here, against the
    whole schema but for `pattern`, which a hostile text could make endless. A failed call raises ToolError in
    the program. Calls beyond most_calls, or longer than REQUEST characters, end the answering.
    """
    desk = _Desk({tool.name: tool for tool in tools}, answers, most_calls)
    with answers, Channel() as channel:
        job = {"source": program, "ends": channel.theirs, "tools": [_told(tool) for tool in tools]}
        thread = threading.Thread(target=desk.serve, args=(channel,))
        thread.start()
        try:
            code = sent("run_program", job)
            verdict = run(code, limits, program=True, inherit=channel.theirs)
        finally:
            channel.gone.set()
            thread.join()
    if desk.broken is not None:
        raise desk.broken
    return Execution(verdict, tuple(desk.calls))


def call_directly(
    calls: Sequence[tuple[str, Mapping[str, Any]]], tools: Sequence[Tool], answers: Answers
) -> tuple[Made, ...]:
    """The same calls one by one, without a program, under the same checks."""
    desk = _Desk({tool.name: tool for tool in tools}, answers, len(calls))
    with answers:
        for name, arguments in calls:
            desk.take(json.dumps({"name": name, "arguments": dict(arguments)}))
    return tuple(desk.calls)


@dataclass
class _Desk:
    """Takes requests, checks them, has them answered and keeps the record."""

    tools: Mapping[str, Tool]
    answers: Answers
    most: int
    calls: list[Made] = field(default_factory=list)
    broken: Exception | None = None

    def serve(self, channel: Channel) -> None:
        try:
            while len(self.calls) < self.most and (line := channel.receive(REQUEST)) is not None:
                made = self.take(line)
                # the result is JSON already
                answer = json.dumps({"fault": made.fault}) if made.fault else f'{{"result": {made.result}}}'
                if not channel.send(answer):
                    return
        except Exception as error:  # of the tools' owner: a result that is no JSON, an answer that raises
            self.broken = error
        finally:
            channel.hang_up()

    def take(self, line: str) -> Made:
        name, arguments, fault = self._read(line)
        made = Made(name, arguments, fault=fault)
        if fault is None:
            try:
                made = Made(name, arguments, self._result(name, arguments))
            except CallFault as error:
                made = Made(name, arguments, fault=str(error))
        self.calls.append(made)
        return made

    def _read(self, line: str) -> tuple[str, Mapping[str, Any], str | None]:
        """(name, arguments, what is wrong with them)."""
        try:
            node = read_json(line)
        except JsonFault as error:
            return UNKNOWN, {}, f"the call is no JSON: {error}"
        if not isinstance(node.value, dict) or set(node.value) != {"name", "arguments"}:
            return UNKNOWN, {}, "a call has a name and arguments"
        name, arguments = node.value["name"], node.value["arguments"]
        tool = self.tools.get(name) if isinstance(name, str) else None
        if tool is None:
            return str(name)[:80], {}, f"there is no tool {name!r:.80}"
        if not isinstance(arguments, dict):
            return name, {}, "the arguments must be an object"
        schema = {"additionalProperties": False, **without_patterns(tool.parameters), "type": "object"}
        wrong = next(schema_faults(node.items["arguments"], schema, "the call"), None)
        return name, arguments, None if wrong is None else wrong.message

    def _result(self, name: str, arguments: Mapping[str, Any]) -> str:
        result = self.answers.answer(self.tools[name], arguments)
        try:
            text = json.dumps(result, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"tool {name!r:.60} gave what is no JSON ({error}); give plain values") from None
        if len(text) > RESULT:
            raise CallFault(f"the result has more than {RESULT} characters")
        return text


def _told(tool: Tool) -> dict[str, Any]:
    """What the stub inside must know."""
    return {
        "name": tool.name,
        "identifier": tool.identifier,
        "arguments": tool.arguments,
        "required": tool.required,
        "properties": {
            name: {key: schema[key] for key in ("type", "enum") if key in schema}
            for name, schema in tool.properties.items()
        },
        "closed": tool.parameters.get("additionalProperties", False) is False,
    }


def without_patterns(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without `pattern`."""
    kept = {key: value for key, value in schema.items() if key != "pattern"}
    if "properties" in kept:
        kept["properties"] = {name: without_patterns(one) for name, one in kept["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), Mapping):
            kept[key] = without_patterns(kept[key])
    return kept
