"""Any JSONL with a field mapping: `data.options.fields.prompt=question data.options.fields.answer=gold`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from quietreasoning.config import Settings, UserError
from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.tasks.files import FileConfig, FileTask

EQUATION = re.compile(r"<<([^<>]*)>>")


class Fields(Settings):
    prompt: str = "prompt"
    """Field that holds the prompt."""
    answer: str = "answer"
    """Field that holds the answer."""
    steps: str | None = None
    """Field with the visible steps: a list, or text with one step a line."""
    results: str | None = None
    """Field with the result of each step, a list; none takes what follows `=` inside `<<...>>`."""
    id: str | None = None
    """Field with a unique id; none uses the line number."""
    popularity: str | None = None
    """Field that counts how well known the subject is, such as PopQA's `s_pop`; needs `rare_below`."""


class JsonlConfig(FileConfig):
    fields: Fields = Fields()
    """Names of the fields in each line."""
    scoring: Literal["exact", "numeric"] = "exact"
    """How answers are compared."""
    rare_below: float | None = None
    """A record of less popularity is long tail: Batch.rare_B is 1, else 0."""
    valid_path: str | None = None
    """File of the validation split; none carves it from the training file."""
    test_path: str | None = None
    """File of the test split; none carves it from the training file."""

    @model_validator(mode="after")
    def _popularity_has_a_limit(self) -> JsonlConfig:
        if (self.fields.popularity is None) != (self.rare_below is None):
            raise ValueError("fields.popularity and rare_below belong together; give both or neither")
        return self


class Jsonl(FileTask):
    Config = JsonlConfig
    name = "jsonl"
    describe = "any JSONL file, fields named by data.options.fields"
    scorer = "exact"
    config: JsonlConfig

    def __init__(self, config: Settings | None = None, *, path: str | None = None, seed: int = 0):
        super().__init__(config, path=path, seed=seed)
        self.scorer = self.config.scoring

    def files(self) -> dict[str, Path]:
        files = super().files()
        for split, path in (("valid", self.config.valid_path), ("test", self.config.test_path)):
            if path is not None:
                files[split] = Path(path).expanduser()
                if not files[split].is_file():
                    raise UserError(f"data.options.{split}_path: {files[split].resolve()} does not exist")
        return files

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        fields = self.config.fields
        steps = as_steps(record, fields.steps) if fields.steps else ()
        results = as_steps(record, fields.results) if fields.results else tuple(map(result_of, steps))
        if len(results) != len(steps):
            raise Fault(f"{len(results)} results for {len(steps)} steps")
        return Example(
            id=f"{self.name}-{text(record, fields.id) if fields.id else number}",
            prompt=text(record, fields.prompt),
            steps=steps,
            results=results,
            answer=text(record, fields.answer).strip(),
            meta=self._known(record) if fields.popularity else {},
        )

    def _known(self, record: Mapping[str, Any]) -> dict[str, Any]:
        written = text(record, self.config.fields.popularity)
        try:
            popularity = float(written)
        except ValueError:
            raise Fault(f"field '{self.config.fields.popularity}' is no number: {written!r:.40}") from None
        return {"popularity": popularity, "rare": int(popularity < self.config.rare_below)}


def as_steps(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts, or a text with one step a line; empty steps are left out."""
    if key not in record:
        raise Fault(f"no field '{key}' among {', '.join(sorted(record)) or 'none'}")
    value = record[key]
    if isinstance(value, str):
        value = value.splitlines()
    if not isinstance(value, list):
        raise Fault(f"field '{key}' is {type(value).__name__}, not a list or text")
    if any(isinstance(step, bool) or not isinstance(step, str | int | float) for step in value):
        raise Fault(f"field '{key}' holds an item that is no text")
    return tuple(str(step).strip() for step in value if str(step).strip())


def result_of(step: str) -> str:
    """What follows the last `=` of the last `<<...>>`: `<<48/2=24>>24 clips` -> `24`; "" where none is."""
    equations = EQUATION.findall(step)
    if not equations or "=" not in equations[-1]:
        return ""
    return equations[-1].rpartition("=")[2].strip()
