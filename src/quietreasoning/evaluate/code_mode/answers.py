"""Where the results of tools come from: records, tables, or Python source in a sandbox of its own."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from quietreasoning.config import UserError
from quietreasoning.evaluate.code_mode.channel import Channel
from quietreasoning.evaluate.code_mode.tool import Tool
from quietreasoning.evaluate.sandbox import Limits, Verdict, run
from quietreasoning.evaluate.tool_scores import same

LIMITS = Limits(seconds=20.0)  # longer than a program's
RESULT = 1_000_000  # most characters of one result


class CallFault(ValueError):
    """A call that cannot be answered: why, in words for the program."""


class Answers(ABC):
    """Answers calls whose arguments have been checked. A context: what it starts ends with it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def answer(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        """The result, plain JSON values; CallFault where there is none."""


@dataclass(frozen=True)
class Recorded(Answers):
    """Results as they once came: tool's name -> pairs of arguments and result. Numbers match by value."""

    results: Mapping[str, Sequence[tuple[Mapping[str, Any], Any]]]

    def answer(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        for known, result in self.results.get(tool.name, ()):
            if same(dict(known), dict(arguments)):
                return result
        raise CallFault("nothing was recorded for these arguments")


@dataclass(frozen=True)
class Tables(Answers):
    """Tool's name -> rows. The result is every row that has the given arguments as its fields."""

    rows: Mapping[str, Sequence[Mapping[str, Any]]]

    def answer(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        if tool.name not in self.rows:
            raise CallFault("there is no table for this tool")
        return [
            dict(row)
            for row in self.rows[tool.name]
            if all(key in row and same(row[key], value) for key, value in arguments.items())
        ]


@dataclass
class Source(Answers):
    """Python that defines a function for each tool under its identifier, arguments under theirs.

    It runs in a process of its own in the sandbox, so that a program sees neither the source nor what it
    holds. limits: of that process in all; a call that outlives them ends it.
    """

    source: str
    tools: Sequence[Tool]
    limits: Limits = LIMITS
    _open: ExitStack = field(default_factory=ExitStack)
    _channel: Channel | None = None
    _verdict: Verdict | None = None

    def __enter__(self) -> Self:
        """UserError where the source does not run or lacks one of the functions."""
        self._channel = channel = self._open.enter_context(Channel())
        names = [tool.identifier for tool in self.tools]
        thread = threading.Thread(target=self._host, args=(channel, {"source": self.source, "names": names}))
        thread.start()
        self._open.callback(thread.join)
        self._open.callback(channel.send, "null")  # ends the host
        line = channel.receive(RESULT)
        if line is None:
            thread.join()
            self._open.close()
            why = "the sandbox does not start" if self._verdict is None else self._verdict.why
            raise UserError(f"the tools' source does not run: {why}; mend it")
        lacking = [name for name in names if name not in _read(line).get("ready", ())]
        if lacking:
            self._open.close()
            raise UserError(f"the tools' source defines no function {lacking[0]!r}; define one")
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def answer(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        asked = json.dumps({"name": tool.identifier, "arguments": tool.by_identifier(arguments)})
        line = self._channel.receive(RESULT) if self._channel.send(asked) else None
        if line is None:
            raise CallFault("the tool did not answer in time, or answered too much")
        answer = _read(line)
        if "result" not in answer:
            raise CallFault(f"the tool failed: {str(answer.get('fault'))[:300]}")
        return answer["result"]

    def _host(self, channel: Channel, job: Mapping[str, Any]) -> None:
        try:
            code = sent("run_tools", {**job, "ends": channel.theirs})
            self._verdict = run(code, self.limits, inherit=channel.theirs)
        finally:
            channel.gone.set()  # or whoever waits for an answer would wait for ever


def _read(line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def sent(function: str, job: Mapping[str, Any]) -> str:
    """The text of inside.py, and a call of one of its functions."""
    inside = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
    return f"{inside}\n\n{function}(json.loads({json.dumps(job)!r}))\n"
