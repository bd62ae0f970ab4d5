"""What a written answer is worth in [0, 1], for methods that learn from rewards.

`reward_of(scorer)(text, example)`. Right is worth 1, nothing else is, and no text raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from quietreasoning.data.example import Example
from quietreasoning.data.spans.dialects import parse_any
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.evaluate.tool_scores import (
    MAX_CHARACTERS,
    CallScore,
    asks_call,
    read_calls,
    score_calls,
)

Reward = Callable[[str, Example], float]


def call_reward(text: str, example: Example) -> float:
    """A call: half of it for its form (0.25 parses, 0.5 keeps the schemas, 1 calls the right tools), half
    for the F1 of its arguments; anything but the gold calls stays below 1. Words: 1 where they are the
    answer, else 0, and a call in their place too."""
    if not asks_call(example):
        return float(SCORERS["call"](text, example) and read_calls(text) is None)
    score = score_calls(text, example.meta["calls"], example.meta["tools"])
    return 1.0 if score.exact else _partly(score)


def turn_reward(text: str, example: Example) -> float:
    """As `call_reward`, of an assistant's turn that makes calls in any dialect: those that can be read count,
    and a broken one beside them keeps no schema. Tools that no row declares take any arguments."""
    gold = example.meta.get("calls", ())
    if not gold or SCORERS["turn"](text, example):
        return float(SCORERS["turn"](text, example))
    if len(text) > MAX_CHARACTERS:
        return 0.0
    parsed = parse_any(text)
    made = [{"name": call.name, "arguments": dict(call.arguments)} for call in parsed.calls]
    tools = example.meta.get("tools", ()) or [{"name": call["name"], "parameters": {}} for call in gold]
    try:
        score = score_calls(json.dumps(made), gold, tools)
    except (ValueError, RecursionError):  # a number or a nesting that no JSON is written with
        return 0.0
    return _partly(score._replace(valid=0.0) if parsed.faults else score)


def _partly(score: CallScore) -> float:
    form = 1.0 if score.valid and score.tool else 0.5 if score.valid else 0.25 * score.parses
    return min(0.99, (form + score.argument_f1) / 2)


GRADED: dict[str, Reward] = {"call": call_reward, "turn": turn_reward}


def reward_of(scorer: str) -> Reward:
    """The reward of a task that is scored so: graded for calls, else whether it is right."""
    if scorer in GRADED:
        return GRADED[scorer]
    score = SCORERS[scorer]
    return lambda text, example: float(score(text, example))
