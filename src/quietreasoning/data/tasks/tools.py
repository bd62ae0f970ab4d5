"""Calls of declared tools: the schemas and a request, then the call; or call and result, then the answer.

A tool's result is read and never written, and an Example learns all that follows its prompt. So a dialogue is
two kinds of rows: one whose answer is the call, and one that holds call and result in its prompt and whose
answer tells the result. Of the rows that ask for a call some need none: the request tells its own answer
(`told`), or no declared tool fits (`decline`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from string import Formatter
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask, digest, stream
from quietreasoning.data.tasks.tool_forms import Declared, Wish, one_or_list, signature, tool_counts, written
from quietreasoning.data.tasks.tool_pool import (
    BY_NAME,
    CITIES,
    LOOKED_UP,
    NUMBERS,
    PEOPLE,
    POOL,
    ROOMS,
    Param,
    Tool,
    execute,
)

DECLINE = "no tool fits"
NO_CALL = "none"  # the step of a row that needs no tool
TOLD = (  # what is said, what about, and the tool that seems to be asked for; {n} is the answer
    ("the hotel in {about} costs {n} . how much does the hotel cost ?", CITIES, "find_hotel"),
    ("my flight to {about} has {n} seats . how many seats does it have ?", CITIES, "find_flight"),
    ("i meet {about} at hour {n} . at what hour is the meeting ?", PEOPLE, "find_meeting"),
    ("the light in the {about} is at {n} . how bright is the light ?", ROOMS, "set_light"),
)
MOST_TOOLS = 8  # declared; enough are left for a row without the right one


class ToolsConfig(Settings):
    rows: Literal["call", "answer", "both"] = "both"
    """call: rows that ask for the call; answer: call and result are given, the answer is asked for; both:
    half and half."""
    tools: int | tuple[int, ...] = (2, 3, 4, 5)
    """How many tools are declared, 2 to 8; several counts mix uniformly."""
    no_tool: float = Field(0.2, ge=0, le=1)
    """Share of the rows that ask for a call in which none is due: half tell their own answer, in half no
    declared tool fits."""
    parallel: float = Field(0.2, ge=0, le=1)
    """Share of requests for two calls at once, half of them of one tool."""
    depth: int = Field(1, ge=1, le=3)
    """Objects within each other in the arguments; 1 is flat."""
    distractors: Literal["similar", "random"] = "similar"
    """The tools that do not fit: those first that share a word with one that does, or any."""

    @field_validator("tools")
    @classmethod
    def _counts_fit(cls, tools: int | tuple[int, ...]) -> int | tuple[int, ...]:
        tool_counts(tools, 2, MOST_TOOLS)
        return tools


class Problem(NamedTuple):
    kind: Literal["call", "answer", "decline", "told"]
    wishes: tuple[Wish, ...]  # calls that would serve it, in the order asked for; none where it is told
    told: tuple[str, str, str] = ("", "", "")  # the request, its answer and the tool it seems to ask for


class Tools(GeneratedTask):
    Config = ToolsConfig
    name = "tools"
    describe = "tool calls: choose among declared schemas, fill the arguments, tell the result"
    scorer = "call"
    config: ToolsConfig

    def vocabulary(self) -> list[str]:
        """Every word of schemas, requests, calls, results and answers, whatever the options."""
        return list(_vocabulary())

    def fingerprint(self) -> dict[str, str]:
        """As above, with a hash of the pool and of the sentences."""
        return super().fingerprint() | {"content": _content()}

    def draw(self, rng: random.Random) -> Problem:
        c = self.config
        kind = c.rows if c.rows != "both" else rng.choice(("call", "answer"))
        if kind == "call" and rng.random() < c.no_tool:
            kind = rng.choice(("decline", "told"))
        if kind == "told":
            sentence, about, lure = rng.choice(TOLD)
            n = str(rng.choice(NUMBERS))
            return Problem(kind, (), (sentence.format(about=rng.choice(about), n=n), n, lure))
        first = _wish(rng.choice(POOL), rng)
        if kind == "decline" or rng.random() >= c.parallel:
            return Problem(kind, (first,))
        return Problem(kind, (first, _another(first, rng.random() < 0.5, rng)))

    def canonical(self, problem: Problem) -> str:
        # what is wanted, whatever is declared, however it is said, whichever row asks for it
        return problem.told[0] or " ".join(sorted(wish.facts for wish in problem.wishes))

    def render(self, problem: Problem, id: str, rng: random.Random) -> Example:
        kind, wishes = problem.kind, problem.wishes
        declared = self._declare(problem, rng)
        requests = [f"{rng.choice(wish.tool.asks)} {wish.request}" for wish in wishes]
        request = problem.told[0] or f"{' and also '.join(requests)} ."
        schemas = tuple(each.schema() for each in declared)
        lines = [*map(signature, schemas), f"user : {request}"]
        calls, results = [], []
        if kind in ("call", "answer"):
            served = {each.tool: each for each in declared}
            calls = [served[wish.tool].call(wish.values) for wish in wishes]
            results = [execute(call["name"], call["arguments"]) for call in calls]
        if kind == "answer":
            lines += [f"call : {one_or_list(calls)}", f"result : {one_or_list(results)}"]
        steps, inner, answer = self._gold(problem, calls, results)
        return Example(
            id=id,
            prompt="\n".join(lines),
            steps=steps,
            results=inner,
            answer=answer,
            meta={
                "kind": kind,
                "needs_tool": bool(calls),
                "tools": schemas,
                "calls": tuple(calls),
                "result": tuple(results),
                "wishes": tuple((wish.tool.names[0], dict(wish.values)) for wish in wishes),
            },
        )

    def after(self, example: Example, calls: list[dict]) -> Example:
        """The next row of a dialogue: `example` asked for a call, and these were made, which keep their
        schemas. Their results are told; the answer is what the request deserves, whatever was called."""
        wishes = tuple(Wish(BY_NAME[name], values) for name, values in example.meta["wishes"])
        results = [execute(call["name"], call["arguments"]) for call in calls]
        steps, inner, answer = self._gold(Problem("answer", wishes), [], list(example.meta["result"]))
        told = (example.prompt, f"call : {one_or_list(calls)}", f"result : {one_or_list(results)}")
        meta = {**example.meta, "kind": "answer", "calls": tuple(calls), "result": tuple(results)}
        return replace(example, prompt="\n".join(told), steps=steps, results=inner, answer=answer, meta=meta)

    def _declare(self, problem: Problem, rng: random.Random) -> list[Declared]:
        """The tools of a row in random order: those that fit, unless none is to, then others."""
        meant = list(dict.fromkeys(wish.tool for wish in problem.wishes)) or [BY_NAME[problem.told[2]]]
        others = [tool for tool in POOL if tool not in meant]
        rng.shuffle(others)
        if self.config.distractors == "similar":
            words = {word for tool in meant for name in tool.names for word in name.split("_")}
            others.sort(key=lambda tool: words.isdisjoint("_".join(tool.names).split("_")))
        count = rng.choice(tool_counts(self.config.tools, 2, MOST_TOOLS))
        shown = [] if problem.kind == "decline" else meant
        shown = [*shown, *others[: count - len(shown)]]
        rng.shuffle(shown)
        needed = {key for wish in problem.wishes for key in wish.values}
        return [
            Declared.draw(tool, needed if tool in meant else (), self.config.depth, rng) for tool in shown
        ]

    def _gold(
        self, problem: Problem, calls: list[dict], results: list[dict]
    ) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """Steps, the result inside each, and the answer."""
        if problem.kind == "decline":
            return (NO_CALL,), (NO_CALL,), DECLINE
        if problem.kind == "told":
            return (NO_CALL,), (NO_CALL,), problem.told[1]
        if problem.kind == "call":
            names = tuple(written(call["name"]) for call in calls)
            steps = (f"{name} {wish.request}" for name, wish in zip(names, problem.wishes, strict=True))
            return tuple(steps), names, one_or_list(calls)
        told = [wish.tool.told(result) for wish, result in zip(problem.wishes, results, strict=True)]
        steps = tuple(" , ".join(f"{written(k)} : {written(v)}" for k, v in each.items()) for each in told)
        last = tuple(written(list(each.values())[-1]) for each in told)
        answers = (
            wish.tool.tells.format(**{**wish.values, **result})
            for wish, result in zip(problem.wishes, results, strict=True)
        )
        return steps, last, f"{' . '.join(answers)} ."

    def group(self, example: Example) -> str:
        """The kind of row, calls and answers of two calls apart."""
        kind = example.meta["kind"]
        return f"{kind} of 2" if len(example.meta["calls"]) == 2 else kind

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """Rules that read no schema (`usual-names` even knows what is wanted), or nothing but the schemas."""
        wishes = example.meta["wishes"] if example.meta["kind"] in ("call", "decline") else ()
        usual = [Declared.usual(BY_NAME[name], self.config.depth).call(values) for name, values in wishes]
        first = {"name": example.meta["tools"][0]["name"], "arguments": {}}
        return {
            "usual-names": one_or_list(usual) if usual else "",
            "first-tool": written(first),
            "decline": DECLINE,
        }


def _wish(tool: Tool, rng: random.Random) -> Wish:
    """A tool and values for it; an optional one is wanted half of the time, no two words are the same."""
    values: dict = {}
    for param in tool.params:
        if param.required or rng.random() < 0.5:
            free = [v for v in param.values if type(v) is not str or v not in values.values()]
            values[param.keys[0]] = (
                rng.sample(free, rng.randint(1, param.many)) if param.many else rng.choice(free)
            )
    return Wish(tool, values)


def _another(first: Wish, same: bool, rng: random.Random) -> Wish:
    """A second wish, of the same tool with other values or of another tool."""
    while True:
        wish = _wish(first.tool if same else rng.choice(POOL), rng)
        if wish != first and (wish.tool is first.tool) == same:
            return wish


@cache
def _vocabulary() -> tuple[str, ...]:
    marks = "tool user call result ( ) { } [ ] : , | . optional and also string integer number boolean"
    texts = [marks, 'true false "name" "arguments"', DECLINE, NO_CALL, " ".join(map(str, NUMBERS))]
    texts += [written(word) for words in LOOKED_UP.values() for word in words]
    texts += [" ".join(words) for words in LOOKED_UP.values()]
    for sentence, about, _ in TOLD:
        texts += [_plain(sentence), *about]
    for tool in POOL:
        texts += [written(name) for name in tool.names]
        texts += [*tool.asks, _plain(tool.tells)]
        texts += [word for param in tool.params for word in _words_of(param)]
        wish = _wish(tool, stream("vocabulary", tool.names[0]))
        texts += [written(key) for key in tool.run(wish.values)]
    return tuple(sorted({word for text in texts for word in text.split()}))


def _words_of(param: Param) -> list[str]:
    quoted = [written(value) for value in (*param.keys, *param.around, *param.values)]
    bare = [value.strip('"') for value in quoted]
    return [_plain(param.said).replace("|", " "), *quoted, *bare[len(param.keys) + len(param.around) :]]


def _plain(sentence: str) -> str:
    """A sentence without what is filled in."""
    return "".join(text for text, *_ in Formatter().parse(sentence))


@cache
def _content() -> str:
    """Changes when a tool, a sentence or a result does."""
    task = Tools(ToolsConfig())
    drawn = [task.example("train", i) for i in range(64)]
    made = [(e.prompt, e.steps, e.answer) for e in drawn]
    return f"{digest(repr((made, _vocabulary()))):016x}"
