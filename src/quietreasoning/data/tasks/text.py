"""Running text: documents of .txt files or of a field of JSONL records, read as windows of tokens.

There is no question and no answer, so a row is a window alone (`data/windows.py` cuts it) and the
measure is perplexity. A split is a set of whole documents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from quietreasoning.config import UserError
from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, check_faults, lines, text
from quietreasoning.data.tasks.base import SHARES, SPLITS, digest
from quietreasoning.data.tasks.files import FileConfig, FileTask

TITLE = re.compile(r"\s*= [^=\s](.*[^=\s])? =\s*")  # WikiText's first-level heading
Documents = Literal["blank_lines", "wikitext", "file"]


class TextConfig(FileConfig):
    window: int | None = Field(None, ge=8)
    """Tokens in a row; null takes all that the model's context holds."""
    join: bool = False
    """Let a row run on into the next document, so that only the last row is short."""
    documents: Documents = "blank_lines"
    """Where a document of a .txt file begins: after blank lines, at a ` = Title = ` line, or once a file."""
    field: str = "text"
    """Field of a JSONL or JSON record with its text; each record is one document."""
    shares: tuple[int, int, int] | None = None
    """Percent of the characters of a single file for train, valid and test, by whole documents and whatever
    the file is called; null goes by its name."""
    test_path: str | None = None
    """File of the test split."""

    @model_validator(mode="after")
    def _shares_make_a_whole(self) -> TextConfig:
        if self.shares is not None and (
            sum(self.shares) != 100 or min(self.shares) < 0 or not self.shares[0]
        ):
            raise ValueError(f"shares={list(self.shares)} must be percents that sum to 100, train above 0")
        return self


class Text(FileTask):
    Config = TextConfig
    name = "text"
    describe = "running text in files, measured by perplexity; no questions"
    scorer = "exact"  # never asked: there is no answer
    text = True
    config: TextConfig

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        return document(f"{self.name}-{number}", text(record, self.config.field))

    def files(self) -> dict[str, Path]:
        """As for every file task; a single file with `shares` is divided whatever its name says."""
        files, shares = super().files(), self.config.shares
        if shares is not None and len(files) == 1:
            files = {"train": next(iter(files.values()))}
        if self.config.test_path is not None:
            files["test"] = Path(self.config.test_path).expanduser()
            if not files["test"].is_file():
                raise UserError(f"data.options.test_path: {files['test'].resolve()} does not exist")
        for split, share in zip(SPLITS, shares or (), strict=shares is not None):
            if split in files and split != "train" and share:
                raise UserError(
                    f"data.options.shares gives {share} % to {split}, whose text is in {files[split]}; "
                    "set that share to 0 and raise another"
                )
        return files

    def part(self, examples: Sequence[Example], shares: Mapping[str, int], name: str) -> list[Example]:
        where = divide(Counter({e.prompt: len(e.prompt) for e in examples}), shares)
        return [example for example in examples if where[example.prompt] == name]

    def _source(self, files: Mapping[str, Path], name: str) -> Path:
        if "train" not in files:
            have = ", ".join(f"{split} ({file.name})" for split, file in files.items())
            raise UserError(
                f"task {self.name}: {self.path} holds no {name} split, only {have}; to divide one file, name "
                "it in data.path and set data.options.shares=[90,10,0]"
            )
        return files["train"]

    def _carved(self, files: Mapping[str, Path]) -> dict[str, int]:
        given = SHARES if self.config.shares is None else dict(zip(SPLITS, self.config.shares, strict=True))
        return {split: share for split, share in given.items() if split == "train" or split not in files}

    def _load(self, path: Path) -> list[Example]:
        if not path.name.removesuffix(".gz").endswith(".txt"):
            return super()._load(path)
        if path not in self._loaded:
            good: list[str] = []
            faults: list[str] = []
            for number, line in lines(path):
                if isinstance(line, Fault):
                    faults.append(f"{path}:{number}: {line}")
                else:
                    good.append(line.rstrip("\r\n"))
            if faults:
                check_faults(faults, len(good), "lines", self.config.max_bad_fraction)
            found = list(documents(good, self.config.documents))
            if not found:
                raise UserError(f"{path} holds no text; check data.path")
            self.faults += faults
            self._loaded[path] = [document(f"{self.name}-{i}", each) for i, each in enumerate(found)]
        return self._loaded[path]


def document(id: str, written: str) -> Example:
    return Example(id=id, prompt=written, steps=(), results=(), answer="")


def documents(lines: Sequence[str], kind: Documents) -> Iterable[str]:
    """Documents of a text file, without the blank lines around them; what lies within is as written."""
    starts = [0]
    if kind == "wikitext":  # a title stands between blank lines; a formula may look like one
        blank = [not line.strip() for line in lines]
        starts += [
            i
            for i, line in enumerate(lines)
            if i and TITLE.fullmatch(line) and blank[i - 1] and (i + 1 == len(lines) or blank[i + 1])
        ]
    elif kind == "blank_lines":
        starts += [i for i, line in enumerate(lines) if not line.strip()]
    for first, last in zip(starts, [*starts[1:], len(lines)], strict=True):
        kept = [i for i in range(first, last) if lines[i].strip()]
        if kept:
            yield "\n".join(lines[kept[0] : kept[-1] + 1])


def divide(sizes: Mapping[str, int], shares: Mapping[str, int]) -> dict[str, str]:
    """Text -> split, each text whole: in the order of their hashes, a text goes where its middle falls.

    Shares are percents of the summed sizes, so that few and uneven documents still come near them.
    """
    whole, percents = sum(sizes.values()), sum(shares.values())
    where, before = {}, 0
    for written in sorted(sizes, key=digest):
        point = (before + sizes[written] / 2) / whole * percents
        before += sizes[written]
        for name, share in shares.items():
            where[written] = name
            if point < share:
                break
            point -= share
    return where
