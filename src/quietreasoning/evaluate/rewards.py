"""What a written answer is worth in [0, 1], for methods that learn from rewards.

`reward_of(scorer)(text, example)`. Right is worth 1, nothing else is, and no text raises.
"""

from __future__ import annotations

from collections.abc import Callable

from quietreasoning.data.example import Example
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.evaluate.tool_scores import asks_call, read_calls, score_calls

Reward = Callable[[str, Example], float]


def call_reward(text: str, example: Example) -> float:
    """A call: half of it for its form (0.25 parses, 0.5 keeps the schemas, 1 calls the right tools), half
    for the F1 of its arguments; anything but the gold calls stays below 1. Words: 1 where they are the
    answer, else 0, and a call in their place too."""
    if not asks_call(example):
        return float(SCORERS["call"](text, example) and read_calls(text) is None)
    score = score_calls(text, example.meta["calls"], example.meta["tools"])
    if score.exact:
        return 1.0
    form = 1.0 if score.valid and score.tool else 0.5 if score.valid else 0.25 * score.parses
    return min(0.99, (form + score.argument_f1) / 2)


def reward_of(scorer: str) -> Reward:
    """The reward of a task that is scored so: graded for calls, else whether it is right."""
    if scorer == "call":
        return call_reward
    score = SCORERS[scorer]
    return lambda text, example: float(score(text, example))
