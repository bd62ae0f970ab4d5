"""What a model wrote for a request to tools, a program or plain calls: carried out, and what it came to."""

from __future__ import annotations

import textwrap

from quietreasoning.data.example import Example
from quietreasoning.data.spans.code import code_spans
from quietreasoning.data.spans.dialects import parse_any
from quietreasoning.evaluate.code_mode.answers import Tables
from quietreasoning.evaluate.code_mode.execute import Execution, call_directly, execute
from quietreasoning.evaluate.code_mode.figures import TaskRow
from quietreasoning.evaluate.code_mode.reward import CodeReward, direct_tokens, expects
from quietreasoning.evaluate.code_mode.tool import tools_of
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.budget import counted
from quietreasoning.evaluate.sandbox import Verdict
from quietreasoning.evaluate.tool_scores import MAX_CHARACTERS, same_calls


def tried(text: str, example: Example, reward: CodeReward | None = None) -> TaskRow:
    """A row for `figures.measure`, of an example of task `programs`.

    A text with a fence is a program: what it prints must be the value. Any other is plain calls, of any
    dialect: they must be those that find the value, and all that they return is in the context. A text that
    is neither has failed, and so has one of more than MAX_CHARACTERS characters.
    """
    meta, reward = example.meta, reward or CodeReward()
    tools, answers, context = tools_of(meta["tools"]), Tables(meta["tables"]), Context(example.prompt)
    plain = call_directly([(call["name"], call["arguments"]) for call in meta["plain"]], tools, answers)
    fences = code_spans(text) if len(text) <= MAX_CHARACTERS else ()
    if fences:
        program = textwrap.dedent(fences[0].of(text)).strip()
        run = execute(program, tools, answers)
        score = reward.score(run, expects(meta["value"]), context)
        success, tokens = score.outcomes[0].score == 1, _size(program, context) + _size(run.summary, context)
    else:
        parsed = parse_any(text) if len(text) <= MAX_CHARACTERS else None
        calls = [(call.name, call.arguments) for call in parsed.calls] if parsed else []
        made = call_directly(calls, tools, answers)
        read = "\n".join(call.result for call in made)
        run = Execution(Verdict(True, "passed", read, 0.0), made)
        score = reward.score(run, expects(meta["value"]), context)
        named = [{"name": name, "arguments": dict(arguments)} for name, arguments in calls]
        whole = bool(made) and not parsed.faults and all(call.fault is None for call in made)
        success, tokens = whole and same_calls(named, meta["plain"]), direct_tokens(made, context)
    return TaskRow(
        eligible=meta["metadata"]["code_mode"],
        code=bool(fences),
        success=success,
        tokens=tokens,
        direct_tokens=direct_tokens(plain, context),
        leaks=len(score.outcomes[2].marks),
    )


def _size(text: str, context: Context) -> int:
    return len(counted("tokens", text, context))
