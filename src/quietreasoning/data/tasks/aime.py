"""AIME: competition problems with an integer answer from 0 to 999. Test split only.

Reads the common public forms, whatever the case of their fields: problem or question, answer, id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.tasks.files import FileTask


class AIME(FileTask):
    name = "aime"
    describe = "competition mathematics with answers from 0 to 999"
    scorer = "numeric"
    splits = ("test",)
    carves = False

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        record = {key.lower(): value for key, value in record.items()}
        written = text(record, "answer").strip()
        gold = written.removesuffix(".0")  # some files store numbers as floats
        if not gold.isdecimal() or int(gold) > 999:
            raise Fault(f"answer '{written}' is no integer from 0 to 999")
        given = text(record, "id") if record.get("id") is not None else str(number)
        return Example(
            id=f"aime-{given}",
            prompt=text(record, "problem", "question").strip(),
            steps=(),
            results=(),
            answer=str(int(gold)),
        )
