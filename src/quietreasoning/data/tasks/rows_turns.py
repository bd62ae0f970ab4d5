"""One turn that an assistant writes, out of a row of a distillation file: what it reads, thinks and says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quietreasoning.data.records import Fault
from quietreasoning.data.spans.calls import Call, Dialect, written
from quietreasoning.data.spans.conversation import Conversation, Turn
from quietreasoning.data.spans.dialects import parse_any
from quietreasoning.data.spans.render import HEADERS
from quietreasoning.data.spans.rows import Row
from quietreasoning.data.spans.span import Span
from quietreasoning.data.tags import CLOSE, OPEN
from quietreasoning.data.tasks.base import digest

_CHAIN = re.compile(rf"\s*{re.escape(OPEN)}(.*?){re.escape(CLOSE)}", re.DOTALL)


@dataclass(frozen=True)
class Said:
    """A turn in parts. Spans are in the characters of the answer."""

    steps: tuple[str, ...]
    answer: str
    calls: tuple[Call, ...]
    spans: tuple[Span, ...]
    notes: tuple[str, ...]  # what of the row did not find its way here


def turns_to_learn(conversation: Conversation) -> list[int]:
    return [i for i, turn in enumerate(conversation.turns) if turn.role == "assistant" and turn.learn]


def opening(row: Row) -> str:
    """A name for all conversations that begin alike: by what stands before the first turn of the assistant,
    learned or not; of a row that begins with the assistant, by that turn."""
    turns = row.conversation.turns
    first = next(i for i, turn in enumerate(turns) if turn.role == "assistant")
    return f"{digest(json.dumps([[turn.role, turn.content] for turn in turns[: max(first, 1)]])):016x}"


def context(conversation: Conversation, index: int, dialect: Dialect, spaced: bool) -> str:
    """All before a turn, each turn behind its header, as spans' plain format has it, without marks of an
    end; one turn of a user, where no tool is declared, as it is. Fault where there is nothing."""
    turns = conversation.turns[:index]
    if not any(turn.content.strip() or turn.calls for turn in turns):
        raise Fault(f"nothing stands before turn {index}, which is to be learned; give a user's turn first")
    if len(turns) == 1 and turns[0].role == "user" and not conversation.tools:
        return turns[0].content
    lines = [f"tools : {written(list(conversation.tools), spaced)}"] if conversation.tools else []
    lines += [f"{HEADERS[turn.role]} {body(turn, dialect, spaced)}".rstrip() for turn in turns]
    return "\n".join(lines)


def body(turn: Turn, dialect: Dialect, spaced: bool) -> str:
    """Content, then calls."""
    calls = dialect.write(turn.calls, spaced=spaced) if turn.calls else ""
    return "\n".join(part for part in (turn.content, calls) if part)


def said(row: Row, index: int, dialect: Dialect, spaced: bool) -> Said:
    """The parts of a turn. Steps are the row's `cot_steps` for its last turn, else the chain between tags, a
    line each. Fault where nothing is left to answer, or calls read back otherwise."""
    turn, last = row.conversation.turns[index], index == turns_to_learn(row.conversation)[-1]
    text, notes = body(turn, dialect, spaced), []
    steps, start = _chain(text)
    if last and row.steps:
        given = tuple(step.strip() for step in row.steps if step.strip())
        if steps not in ((), given):
            notes.append(f"the chain between {OPEN} and {CLOSE}: cot_steps stand in its place")
        steps, start = given, _after(text, given, start)
    answer = text[start:].strip()
    if not answer and last and row.answer is not None and row.answer.strip():
        return Said(steps, row.answer.strip(), (), (), tuple(notes))
    if not answer:
        raise Fault(
            f"turn {index} has steps and no answer after them; give 'answer', or text after the steps"
        )
    parsed = parse_any(answer)
    if turn.calls and parsed.calls[-len(turn.calls) :] != turn.calls:
        raise Fault(
            f"turn {index} calls {', '.join(call.name for call in turn.calls)}, which dialect {dialect.name} "
            "writes so that it reads otherwise; set data.options.dialect to another"
        )
    own = row.spans if index + 1 == len(row.conversation.turns) and not turn.calls else ()
    spans, lost = _placed(own, text, answer, start, parsed.spans)
    if lost:
        notes.append(f"{lost} spans that do not stand in the answer but in the chain before it")
    return Said(steps, answer, parsed.calls, spans, tuple(notes))


def _chain(text: str) -> tuple[tuple[str, ...], int]:
    """The lines between the tags at the beginning of a text, and where they end."""
    found = _CHAIN.match(text)
    if found is None:
        if text.lstrip().startswith(OPEN):
            raise Fault(f"its text opens {OPEN} and never closes it; add {CLOSE}")
        return (), 0
    return tuple(line.strip() for line in found[1].splitlines() if line.strip()), found.end()


def _after(text: str, steps: Sequence[str], start: int) -> int:
    """Where a text goes on that begins with the steps, one after the other; `start` where it does not."""
    found = re.compile(r"\s*" + "".join(rf"{re.escape(step)}(?:\s+|\Z)" for step in steps)).match(text, start)
    return start if found is None else found.end()


def _placed(
    given: Sequence[Span], text: str, answer: str, start: int, parsed: Sequence[Span]
) -> tuple[tuple[Span, ...], int]:
    """The row's own spans and those of the calls, in the answer; how many of the first are outside of it."""
    shift = start + len(text[start:]) - len(text[start:].lstrip())
    inside = [s for s in given if s.start >= shift and s.end <= shift + len(answer)]
    spans = [span.moved(-shift) for span in inside]
    spans += [one for one in parsed if not any(one.overlaps(other) for other in spans)]
    return tuple(sorted(spans, key=lambda s: (s.start, s.end))), len(given) - len(inside)


def declared(tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Tools as name and schema of the parameters, out of any wrapper; no schema allows any arguments."""
    inner = [tool.get("function", tool) for tool in tools]
    return tuple({"name": tool["name"], "parameters": tool.get("parameters") or {}} for tool in inner)


def json_value(text: str) -> Any:
    """A tool's result as a JSON value; a text that is none is itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
