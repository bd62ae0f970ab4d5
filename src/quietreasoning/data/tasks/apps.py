"""APPS (arXiv 2105.09938): programming contests, scored by input and output pairs.

Reads the JSONL form (`train.jsonl`, `test.jsonl`), whose `solutions` and `input_output` are JSON
inside a text. Problems that name a function are tested by calls, the others by standard input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.tasks.files import FileConfig, FileTask

CALLS = """\
import json as _json
import operator as _operator
_name, _cases = {name!r}, _json.loads({cases!r})
_call = _operator.attrgetter(_name)(Solution()) if "Solution" in globals() else globals()[_name]
for _inputs, _expected in _cases:
    _got = _json.loads(_json.dumps(_call(*_inputs)))
    assert _got == _expected or [_got] == _expected, (_inputs, _got, _expected)
"""


class AppsConfig(FileConfig):
    difficulty: Literal["all", "introductory", "interview", "competition"] = "all"
    """Keep problems of one difficulty."""


class Apps(FileTask):
    Config = AppsConfig
    name = "apps"
    describe = "programming contests, scored by their input and output pairs"
    scorer = "code"
    config: AppsConfig

    def split(self, name: str, n: int | None = None) -> list[Example]:
        wanted = self.config.difficulty
        found = [e for e in super().split(name) if wanted in ("all", e.meta["difficulty"])]
        return found if n is None else found[:n]

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        solutions = _inner(record, "solutions", list)
        tests = _inner(record, "input_output", dict)
        inputs, outputs = tests.get("inputs", []), tests.get("outputs", [])
        if len(inputs) != len(outputs):
            raise Fault(f"field 'input_output' has {len(inputs)} inputs and {len(outputs)} outputs")
        given = text(record, "problem_id", "id") if record.keys() & {"problem_id", "id"} else str(number)
        starter = str(record.get("starter_code") or "")
        return Example(
            id=f"apps-{given}",
            prompt="\n".join(filter(None, [text(record, "question").strip(), starter.strip()])),
            steps=(),
            results=(),
            answer=str(solutions[0]).strip() if solutions else "",
            meta={
                "difficulty": str(record.get("difficulty", "")),
                **_tests(tests.get("fn_name"), inputs, outputs),
            },
        )


def _tests(name: str | None, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    if name:
        cases = json.dumps(list(zip(inputs, outputs, strict=True)))
        return {"tests": CALLS.format(name=name, cases=cases)}
    return {"cases": tuple(zip(map(_joined, inputs), map(_joined, outputs), strict=True))}


def _joined(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _inner(record: Mapping[str, Any], key: str, kind: type) -> Any:
    """A field that holds JSON as text, or the thing itself; empty where it is missing."""
    value = record.get(key) or kind()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, ValueError):
            raise Fault(f"field '{key}' is no JSON") from None
    if not isinstance(value, kind):
        raise Fault(f"field '{key}' is {type(value).__name__}, not {kind.__name__}")
    return value
