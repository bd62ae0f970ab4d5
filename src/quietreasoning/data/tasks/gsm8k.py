"""GSM8K (arXiv 2110.14168): worded sums with `<<48/2=24>>` marks; the answer follows `####`.

Also reads GSM8K-Aug, whose steps are equations alone (`question||<<..>> <<..>> #### answer`, or
JSON with a list of steps). A folder's test file is only test; validation is carved from train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.tasks.files import FileConfig, FileTask
from quietreasoning.data.tasks.jsonl import EQUATION, as_steps, result_of


class GSM8KConfig(FileConfig):
    style: Literal["equations", "sentences"] = "equations"
    """A step is one equation, `48/2=24`, or one written line without its marks."""


class GSM8K(FileTask):
    Config = GSM8KConfig
    name = "gsm8k"
    describe = "grade-school word problems; steps from their <<...>> marks"
    scorer = "numeric"
    config: GSM8KConfig

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        chain, mark, gold = text(record, "answer").rpartition("####")
        if "steps" in record:
            lines, gold = as_steps(record, "steps"), gold if mark else text(record, "answer")
        elif mark:
            lines = tuple(line.strip() for line in chain.splitlines() if line.strip())
        else:
            raise Fault("field 'answer' has no ####")
        gold = gold.strip()
        if not gold:
            raise Fault("field 'answer' has nothing after ####")
        steps, results = self._steps(lines)
        return Example(
            id=f"gsm8k-{number}",
            prompt=text(record, "question").strip(),
            steps=steps,
            results=results,
            answer=gold.replace(",", ""),
            meta={"gold": gold},
        )

    def _steps(self, lines: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self.config.style == "sentences":
            plain = tuple(EQUATION.sub("", line) for line in lines)
            return plain, tuple(
                _written(line, result_of(raw)) for line, raw in zip(plain, lines, strict=True)
            )
        equations = tuple(
            "".join(equation.split())
            for line in lines
            for equation in EQUATION.findall(line)
            if "=" in equation
        )
        return equations, tuple(equation.rpartition("=")[2] for equation in equations)


def _written(line: str, result: str) -> str:
    """The result as the line spells it: `80000` may stand there as `80,000`; "" where it does not."""
    if result in line:
        return result
    whole, dot, rest = result.partition(".")
    spelled = f"{int(whole):,}{dot}{rest}" if whole.isdecimal() else ""
    return spelled if spelled in line else ""
