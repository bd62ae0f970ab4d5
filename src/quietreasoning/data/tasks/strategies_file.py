"""A user's own thoughts by strategy, from JSONL: `question`, `strategy`, `thought` or `steps`, `answer`.

A line whose thought fails its validator, or whose answer the thought does not bear out, is a broken record:
named, counted, and beyond `max_bad_fraction` the file is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quietreasoning.config import suggest
from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.strategies.forms import STRATEGIES, pieces_of, response
from quietreasoning.data.strategies.validators import strategy_of, validate, verified
from quietreasoning.data.tags import CLOSE, OPEN
from quietreasoning.data.tasks.files import FileConfig, FileTask
from quietreasoning.data.tasks.jsonl import as_steps


class StrategiesFileConfig(FileConfig):
    """Nothing of its own."""


class StrategiesFile(FileTask):
    Config = StrategiesFileConfig
    name = "strategies-file"
    describe = "your own thoughts by strategy: JSONL with question, strategy, thought or steps, answer"
    scorer = "exact"

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        thought = "\n".join(as_steps(record, "steps")) if "steps" in record else text(record, "thought")
        question, answer = text(record, "question", "prompt").strip(), text(record, "answer").strip()
        if OPEN not in thought and CLOSE not in thought:
            thought = f"{OPEN} {thought} {CLOSE}"
        whole = response((thought.strip(),), answer)
        strategy = _known(text(record, "strategy")) if "strategy" in record else None
        verdict = validate(whole, strategy)
        if verdict:
            strategy = strategy or strategy_of(whole)
            verdict = verified(thought, answer)
        if not verdict:
            raise Fault(verdict.reason)
        steps = pieces_of(thought)
        acceptable = (
            [_known(name) for name in as_steps(record, "acceptable")] if "acceptable" in record else []
        )
        return Example(
            id=f"{self.name}-{number}",
            prompt=question,
            steps=steps,
            results=("",) * len(steps),
            answer=answer,
            meta={
                "strategy": strategy,
                "acceptable": tuple(s for s in STRATEGIES if s == strategy or s in acceptable),
            },
        )

    def group(self, example: Example) -> str:
        return example.meta["strategy"]


def _known(name: str) -> str:
    if name not in STRATEGIES:
        raise Fault(f"no strategy '{name:.40}'; {suggest(name, STRATEGIES)}")
    return name
