"""HumanEval (arXiv 2107.03374): complete a Python function; unit tests decide. Test split only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quietreasoning.data.example import Example
from quietreasoning.data.records import text
from quietreasoning.data.tasks.files import FileTask


class HumanEval(FileTask):
    name = "humaneval"
    describe = "164 Python functions to complete, scored by unit tests"
    scorer = "code"
    splits = ("test",)
    carves = False

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        prompt = text(record, "prompt")
        return Example(
            id=text(record, "task_id"),
            prompt=prompt,
            steps=(),
            results=(),
            # the whole function: a body alone would start with spaces that generation strips
            answer=(prompt + text(record, "canonical_solution")).strip(),
            meta={
                "code_prefix": prompt,
                "tests": text(record, "test"),
                "entry_point": text(record, "entry_point"),
            },
        )
