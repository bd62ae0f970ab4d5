"""Tasks that read files: where the splits come from, and what a broken record costs.

`data.path` is a file or a folder. A folder holds one file a split (`train.jsonl`, `gsm8k_test.json`);
a split without a file is carved from the training file by a hash of the prompt, so splits stay
disjoint. A single file is divided among all splits in the same way.
"""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from quietreasoning.config import Settings, UserError
from quietreasoning.data.example import Example
from quietreasoning.data.records import SUFFIXES, read
from quietreasoning.data.tasks.base import SHARES, Task, split_of


class FileConfig(Settings):
    max_bad_fraction: float = Field(0.001, ge=0, le=1)
    """Share of broken records that are left out and reported; more refuses the file."""


class SplitFiles(Task):
    """A task over files; subclasses read one file."""

    Config: ClassVar[type[Settings]] = FileConfig
    needs_path = True
    carves: ClassVar[bool] = True  # False for public sets whose files are the splits

    def __init__(self, config: Settings | None = None, *, path: str | None = None, seed: int = 0):
        super().__init__(config, path=path, seed=seed)
        if path is None:
            raise UserError(f"task {self.name} reads files; give data.path=FILE or a folder")
        self.faults: list[str] = []  # `file:line: fault` of each record left out so far
        self._loaded: dict[Path, list[Example]] = {}

    @abstractmethod
    def read(self, path: Path) -> tuple[list[Example], list[str]]:
        """The examples of a file in its order, and `file:line: fault` of what was left out. UserError where
        too much of it is broken."""

    def split(self, name: str, n: int | None = None) -> Sequence[Example]:
        """The first n examples of a split, in file order; UserError where it is empty."""
        self.check_split(name)
        files = self.files()
        if name in files:
            found = self._load(files[name])
            shares = self._carved(files) if name == "train" else {}
        else:
            found = self._load(self._source(files, name))
            shares = self._carved(files)
        if len(shares) > 1:
            found = self.part(found, shares, name)
        if not found:
            raise UserError(
                f"task {self.name}: the {name} split of {self.path} is empty; give it more records"
            )
        return found if n is None else found[:n]

    def part(self, examples: Sequence[Example], shares: Mapping[str, int], name: str) -> list[Example]:
        """What one split gets of a file that several splits share."""
        return [example for example in examples if split_of(example.prompt, shares) == name]

    def files(self) -> dict[str, Path]:
        """Split -> its file. A single file is the split that its name ends in, else the first one."""
        path = Path(self.path or "").expanduser()
        if not path.exists():
            raise UserError(f"data.path: {path.resolve()} does not exist")
        if not path.is_dir():
            return {named(path, self.splits) or self.splits[0]: path}
        files = {split: file for split in self.splits if (file := find(path, split))}
        if not files:
            alone = [file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)]
            if len(alone) != 1:
                raise UserError(
                    f"data.path: {path.resolve()} holds no file for {', '.join(self.splits)}; "
                    f"name one {self.splits[0]}.jsonl"
                )
            files = {named(alone[0], self.splits) or self.splits[0]: alone[0]}
        return files

    def fingerprint(self) -> dict[str, str]:
        """As above, with the SHA-256 of each file."""
        files = sorted(set(self.files().values()))
        return super().fingerprint() | {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    def _source(self, files: Mapping[str, Path], name: str) -> Path:
        if "train" not in files or not self.carves:
            have = ", ".join(f"{split} ({file.name})" for split, file in files.items())
            raise UserError(f"task {self.name}: {self.path} holds no {name} split, only {have}")
        return files["train"]

    def _carved(self, files: Mapping[str, Path]) -> dict[str, int]:
        """Shares of the training file among train and the splits that have no file."""
        if not self.carves:
            return {}
        return {split: share for split, share in SHARES.items() if split == "train" or split not in files}

    def _load(self, path: Path) -> list[Example]:
        if path not in self._loaded:
            self._loaded[path], faults = self.read(path)
            self.faults += faults
        return self._loaded[path]


class FileTask(SplitFiles):
    """One Example a record; subclasses turn the one into the other."""

    @abstractmethod
    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        """One record to one Example; records.Fault where it is broken."""

    def read(self, path: Path) -> tuple[list[Example], list[str]]:
        return read(path, self.parse, self.config.max_bad_fraction)


def named(path: Path, splits: Sequence[str]) -> str | None:
    """The split a file's name ends in: `gsm8k_test.jsonl` -> test."""
    stem = path.name.partition(".")[0]
    return next((split for split in splits if re.search(rf"(^|[_-]){split}$", stem)), None)


def find(folder: Path, split: str) -> Path | None:
    """`split.jsonl`, or a file whose name ends in `_split` or `-split`."""
    for suffix in SUFFIXES:
        exact = folder / f"{split}{suffix}"
        if exact.is_file():
            return exact
    for suffix in SUFFIXES:
        for pattern in (f"*_{split}{suffix}", f"*-{split}{suffix}"):
            if found := sorted(folder.glob(pattern)):
                return found[0]
    return None
