"""MBPP (arXiv 2108.07732): short Python programs from one sentence and three asserts.

Reads `mbpp.jsonl` and `sanitized-mbpp.json`. In a single file the published task ids make the
splits: 601-974 train, 511-600 valid, 11-510 test; 1-10 are few-shot prompts and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.tasks.files import FileTask
from quietreasoning.data.tasks.jsonl import as_steps

IDS = {"train": range(601, 975), "valid": range(511, 601), "test": range(11, 511)}


class MBPP(FileTask):
    name = "mbpp"
    describe = "short Python programs from a sentence, scored by asserts"
    scorer = "code"
    carves = False

    def split(self, name: str, n: int | None = None) -> Sequence[Example]:
        files = self.files()
        if len(files) > 1:
            return super().split(name, n)
        self.check_split(name)
        (file,) = files.values()
        found = [example for example in self._load(file) if example.meta["task_id"] in IDS[name]]
        if not found:
            ids = IDS[name]
            raise UserError(
                f"task mbpp: {file} holds no task of the {name} split (ids {ids[0]} to {ids[-1]})"
            )
        return found if n is None else found[:n]

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        asserts = as_steps(record, "test_list")
        if not asserts:
            raise Fault("field 'test_list' is empty")
        setup = [str(record.get("test_setup_code") or ""), *record.get("test_imports", [])]
        task_id = text(record, "task_id")
        if not task_id.isdecimal():
            raise Fault("field 'task_id' is no number")
        return Example(
            id=f"mbpp-{task_id}",
            prompt="\n".join([text(record, "text", "prompt").strip(), *asserts]),
            steps=(),
            results=(),
            answer=text(record, "code").replace("\r\n", "\n").strip(),
            meta={
                "task_id": int(task_id),
                "tests": "\n".join([*filter(None, setup), *asserts]),
            },
        )
