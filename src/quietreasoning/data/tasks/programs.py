"""One call or one program over tools: which of the two a request takes, and that one right.

A request for one value of a table takes one call. One for the total, the highest or the lowest of several
values takes a program, since calls one by one would put every result into the context; so does one whose
result is long. The wanted form is the answer and the other one is rejected. Programs are Python in a fence,
on one line, words between spaces; `meta["tables"]` has the rows that tools answer with, so both forms can be
carried out (`evaluate/code_mode/trial.py`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask, digest, stream
from quietreasoning.data.tasks.tool_forms import one_or_list, signature, tool_counts, written
from quietreasoning.data.tasks.tool_pool import CITIES, ITEMS, PEOPLE, ROOMS

DAYS = range(1, 29)
LONG = 300  # rows of a long result: more than 10,000 characters
GROUPS = {"one": "one value", "several": "several values", "long": "a long result"}
OPERATIONS = {"total": "sum", "highest": "max", "lowest": "min"}


class Sheet(NamedTuple):
    """A tool that reads a table by subject and day."""

    names: tuple[str, str]
    key: str
    subjects: tuple[str, ...]
    value: str
    of: str  # how a request says it
    long: bool = False  # many rows for one subject and day

    def rows(self, subject: str, day: int) -> list[dict[str, Any]]:
        drawn = stream(self.value, subject, day)
        place = {self.key: subject, "day": day}
        if not self.long:
            return [{**place, self.value: drawn.randrange(10, 100)}]
        return [{**place, "row": row, self.value: drawn.randrange(10, 100)} for row in range(LONG)]

    def schema(self, name: str) -> dict[str, Any]:
        fields = {self.key: {"type": "string"}, "day": {"type": "integer"}}
        parameters = {"type": "object", "properties": fields, "required": [*fields]}
        return {"name": name, "parameters": parameters | {"additionalProperties": False}}


SHEETS = (
    Sheet(("get_price", "read_price"), "item", ITEMS, "price", "price of"),
    Sheet(("get_rain", "read_rain"), "city", CITIES, "rain", "rain in"),
    Sheet(("get_score", "read_score"), "person", PEOPLE, "score", "score of"),
    Sheet(("list_sales", "show_sales"), "city", CITIES, "sold", "sales in", long=True),
    Sheet(("list_visits", "show_visits"), "room", ROOMS, "minutes", "minutes in", long=True),
)


class ProgramsConfig(Settings):
    answers: Literal["due", "either"] = "due"
    """due: the form that a request takes is the answer, the other one is rejected; either: one of the two by
    chance is the answer, and none is rejected."""
    eligible: float = Field(0.5, gt=0, lt=1)
    """Share of requests that take a program; in a third of them for a long result."""
    tools: int | tuple[int, ...] = (2, 3)
    """How many tools are declared, 1 to 5; several counts mix uniformly."""
    most: int = Field(3, ge=2, le=6)
    """Most values that a request asks for at once."""

    @field_validator("tools")
    @classmethod
    def _counts_fit(cls, tools: int | tuple[int, ...]) -> int | tuple[int, ...]:
        tool_counts(tools, 1, len(SHEETS))
        return tools


class Problem(NamedTuple):
    kind: Literal["one", "several", "long"]
    sheet: Sheet
    subjects: tuple[str, ...]
    day: int
    operation: str  # a key of OPERATIONS; "" of one value

    @property
    def request(self) -> str:
        *first, last = self.subjects
        named = f"{' , '.join(first)} and {last}" if first else last
        which = f"{self.operation} " if self.operation else ""
        return f"what is the {which}{self.sheet.of} {named} on day {self.day} ?"

    @property
    def value(self) -> int:
        rows = [row for subject in self.subjects for row in self.sheet.rows(subject, self.day)]
        work = {"sum": sum, "max": max, "min": min}[OPERATIONS.get(self.operation, "sum")]
        return work(row[self.sheet.value] for row in rows)


class Programs(GeneratedTask):
    Config = ProgramsConfig
    name = "programs"
    describe = "one call, or one program over tools where several values or a long result are asked for"
    scorer = "program"
    config: ProgramsConfig

    def vocabulary(self) -> list[str]:
        """Every word of schemas, requests, calls and programs, whatever the options."""
        return list(_vocabulary())

    def fingerprint(self) -> dict[str, str]:
        """As above, with a hash of what is drawn."""
        return super().fingerprint() | {"content": _content()}

    def draw(self, rng: random.Random) -> Problem:
        kind = "one" if rng.random() >= self.config.eligible else rng.choice(("several", "several", "long"))
        sheet = rng.choice([sheet for sheet in SHEETS if sheet.long == (kind == "long")])
        count = rng.randint(2, self.config.most) if kind == "several" else 1
        subjects = tuple(rng.sample(sheet.subjects, count))
        operation = "" if kind == "one" else rng.choice([*OPERATIONS])
        return Problem(kind, sheet, subjects, rng.choice(DAYS), operation)

    def canonical(self, problem: Problem) -> str:
        named = " ".join(sorted(problem.subjects))
        return f"{problem.sheet.value} {named} {problem.day} {problem.operation}"

    def render(self, problem: Problem, id: str, rng: random.Random) -> Example:
        declared = self._declare(problem.sheet, rng)
        name = next(name for sheet, name in declared if sheet is problem.sheet)
        calls = _calls(problem, name)
        program, plain = _program(problem, name), one_or_list(calls)
        due, either = problem.kind != "one", self.config.answers == "either"
        codes = rng.random() < 0.5 if either else due
        schemas = tuple(sheet.schema(name) for sheet, name in declared)
        return Example(
            id=id,
            prompt="\n".join([*map(signature, schemas), f"user : {problem.request}"]),
            steps=(),
            results=(),
            answer=program if codes else plain,
            rejected=None if either else plain if codes else program,
            meta={
                "kind": problem.kind,
                "metadata": {"code_mode": due},
                "tools": schemas,
                "calls": () if codes else tuple(calls),
                "plain": tuple(calls),
                "tables": {name: _table(problem)},
                "value": str(problem.value),
            },
        )

    def group(self, example: Example) -> str:
        return GROUPS[example.meta["kind"]]

    def _declare(self, sheet: Sheet, rng: random.Random) -> list[tuple[Sheet, str]]:
        """The tool that fits among others, in random order, each under one of its names."""
        others = rng.sample([other for other in SHEETS if other is not sheet], len(SHEETS) - 1)
        shown = [sheet, *others[: rng.choice(tool_counts(self.config.tools, 1, len(SHEETS))) - 1]]
        rng.shuffle(shown)
        return [(each, rng.choice(each.names)) for each in shown]


def _calls(problem: Problem, name: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "arguments": {problem.sheet.key: subject, "day": problem.day}}
        for subject in problem.subjects
    ]


def _program(problem: Problem, name: str) -> str:
    """One that prints the value."""
    sheet, work = problem.sheet, OPERATIONS.get(problem.operation, "sum")
    loop, subject = "", written(problem.subjects[0])
    if len(problem.subjects) > 1:
        loop, subject = f"for x in {written(list(problem.subjects))} ", "x"
    call = f"{name} ( {sheet.key} = {subject} , day = {problem.day} )"
    line = f'print ( {work} ( row [ "{sheet.value}" ] {loop}for row in {call} ) )'
    return f"```python\n{line}\n```"


def _table(problem: Problem) -> Sequence[Mapping[str, Any]]:
    """What the tool knows of the subjects asked about."""
    return [row for subject in problem.subjects for row in problem.sheet.rows(subject, problem.day)]


@cache
def _vocabulary() -> tuple[str, ...]:
    texts = ['tool user { } [ ] : , "name" "arguments" and', " ".join(map(str, DAYS)), *OPERATIONS]
    for sheet in SHEETS:
        texts += [written(subject) for subject in sheet.subjects]
        for name in sheet.names:
            texts += [signature(sheet.schema(name)), name]
            for operation in ("", *OPERATIONS):
                for count in (1, 2, 3):
                    problem = Problem("several", sheet, sheet.subjects[:count], 1, operation)
                    texts += [problem.request, _program(problem, name), one_or_list(_calls(problem, name))]
        texts += sheet.subjects
    return tuple(sorted({word for text in texts for word in text.split()}))


@cache
def _content() -> str:
    """Changes when a tool, a sentence or a table does."""
    task = Programs(ProgramsConfig())
    drawn = [task.example("train", i) for i in range(32)]
    made = [(e.prompt, e.answers, json.dumps(e.meta["tables"])) for e in drawn]
    return f"{digest(repr((made, _vocabulary()))):016x}"
