"""Pairs that task `preferences` reads: a program against plain calls for one eligible task."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from quietreasoning.config import UserError
from quietreasoning.data.records import Fault, read, text
from quietreasoning.data.spans.calls import Call
from quietreasoning.data.spans.code import code_spans
from quietreasoning.data.spans.dialects import dialect
from quietreasoning.evaluate.code_mode.answers import Answers
from quietreasoning.evaluate.code_mode.eligible import RULES, EligibilityRules, eligible
from quietreasoning.evaluate.code_mode.execute import call_directly, execute
from quietreasoning.evaluate.code_mode.reward import CodeReward, direct_tokens
from quietreasoning.evaluate.code_mode.tool import tools_of
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.budget import counted
from quietreasoning.evaluate.rules.scorer import PASS, RuleScorer

REWARD = CodeReward()


@dataclass(frozen=True)
class Pair:
    """chosen: the program, which ran and gave `summary`; rejected: the calls that do the same one by one.
    tokens: what each takes, program and summary or calls and results. reasons: why a program was due."""

    prompt: str
    chosen: str
    rejected: str
    chosen_tokens: int
    rejected_tokens: int
    reward: float
    summary: str
    reasons: tuple[str, ...]
    tools: tuple[Mapping[str, Any], ...]


class Tried(NamedTuple):
    """pair: None where there is none, and then why."""

    pair: Pair | None
    why: str


def pair_of(
    program: str,
    calls: Sequence[tuple[str, Mapping[str, Any]]],
    tools: Sequence[Mapping[str, Any]],
    answers: Answers,
    success: RuleScorer,
    context: Context,
    *,
    rules: EligibilityRules = RULES,
    reward: CodeReward = REWARD,
    written_as: str = "hermes",
) -> Tried:
    """Runs both. A pair needs an eligible task, calls that all succeed, and a program that ends well, says
    what is right, leaks nothing, takes fewer tokens and fits a fence. UserError where tools or answers
    cannot be used, or the context has no prompt."""
    if not context.prompt.strip():
        raise UserError("context.prompt is empty: a pair needs the question that both answer; give it")
    known = tools_of(tools)
    made = call_directly(calls, known, answers)
    broken = next((call for call in made if call.fault is not None), None)
    if broken is not None:
        return Tried(None, f"the plain call of {broken.name!r:.60} failed: {broken.fault}")
    due = eligible(made, rules)
    if not due:
        return Tried(None, "not eligible: plain calls will do")
    run = execute(program, known, answers)
    score = reward.score(run, success, context)
    if not score.kept or score.outcomes[0].verdict != PASS:
        worst = (score.failed() or [None])[0]
        mark = worst.marks[0].message if worst is not None and worst.marks else "the total is too low"
        return Tried(None, f"the program scores {score.total:.2f}: {mark}")
    tokens = sum(len(counted("tokens", one, context)) for one in (program, run.summary))
    plain = direct_tokens(made, context)
    if tokens >= plain:
        return Tried(None, f"program and summary take {tokens} tokens, plain calls {plain}")
    rejected = dialect(written_as).write([Call(name, dict(arguments)) for name, arguments in calls])
    chosen = f"```python\n{program.strip()}\n```"
    if [span.of(chosen).strip() for span in code_spans(chosen)] != [program.strip()]:
        return Tried(None, "the program holds a fence of its own, which would end the one around it")
    pair = Pair(
        context.prompt, chosen, rejected, tokens, plain, score.total, run.summary, due.reasons, tuple(tools)
    )
    return Tried(pair, "")


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """JSONL, one pair a line; the file is there whole or not at all."""
    path = Path(path)
    draft = path.with_name(f".tmp-{path.name}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(asdict(pair))}\n" for pair in pairs)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_pairs(path: str | Path, max_bad_fraction: float = 0.0) -> tuple[list[Pair], list[str]]:
    """The pairs of a file, and `file:line: fault` of rows that were left out; UserError beyond the share of
    broken rows that is allowed, with the first of them."""
    return read(Path(path), _pair, max_bad_fraction)


def _pair(record: Mapping[str, Any], number: int) -> Pair:
    chosen, rejected = text(record, "chosen"), text(record, "rejected")
    if chosen == rejected:
        raise Fault("chosen and rejected are the same")
    tokens = [_number(record, name, int) for name in ("chosen_tokens", "rejected_tokens")]
    if not 0 <= tokens[0] < tokens[1]:
        raise Fault(f"chosen takes {tokens[0]} tokens, rejected {tokens[1]}; it must be fewer")
    reward = _number(record, "reward", (int, float))
    if not 0 < reward <= 1:
        raise Fault(f"reward={reward} is not above 0 and at most 1, so chosen was never verified")
    reasons, tools = record.get("reasons"), record.get("tools")
    if not isinstance(reasons, list) or not reasons or not all(isinstance(one, str) for one in reasons):
        raise Fault("field 'reasons' is no list of texts")
    if not isinstance(tools, list) or not all(isinstance(one, dict) for one in tools):
        raise Fault("field 'tools' is no list of objects")
    summary = text(record, "summary")
    return Pair(
        text(record, "prompt"),
        chosen,
        rejected,
        *tokens,
        float(reward),
        summary,
        tuple(reasons),
        tuple(tools),
    )


def _number(record: Mapping[str, Any], name: str, kinds: Any) -> Any:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise Fault(f"field '{name}' is {value!r:.40}, no number")
    return value
