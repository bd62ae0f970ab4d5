"""What reading a file of rows left out, field by field: nothing goes unsaid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Dropped:
    """A field of one row that could not be used, while the row was."""

    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: field '{self.field}' dropped: {self.reason}"


@dataclass
class Report:
    """Of one file: its header, how many rows it gave, and what was left out."""

    file: str
    header: Mapping[str, Any] | None = None
    rows: int = 0
    skipped: list[Dropped] = field(default_factory=list)  # whole rows, by policy
    dropped: list[Dropped] = field(default_factory=list)  # fields of rows that were kept
    faults: list[str] = field(default_factory=list)  # `file:line: fault` of rows that are broken

    def drop(self, line: int, name: str, reason: str) -> None:
        self.dropped.append(Dropped(self.file, line, name, reason))

    def counts(self) -> dict[str, int]:
        """Field -> in how many places it was dropped."""
        return dict(Counter(one.field for one in self.dropped))

    def __str__(self) -> str:
        parts = [f"{self.file}: {self.rows} rows"]
        parts += [f"{count} x '{name}' dropped" for name, count in sorted(self.counts().items())]
        parts += [f"{len(self.skipped)} rows skipped by policy"] * bool(self.skipped)
        parts += [f"{len(self.faults)} rows broken"] * bool(self.faults)
        return ", ".join(parts)
