"""Old keys as they stand in files, and what their values must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.layers import CONFIG

NOTHING, OFF = object(), object()  # a line that says nothing; one whose switch is off


@dataclass(frozen=True)
class Found:
    """An old key as it stands in a file."""

    value: Any
    written: str
    file: str

    def __str__(self) -> str:
        return f"{CONFIG}{self.file}: {self.written}"


class Seen(dict[str, Found]):
    """Old keys by the name that the tables have for them."""

    def value(self, key: str, default: Any = None) -> Any:
        return self[key].value if key in self else default

    def number(self, key: str, default: float | None = None) -> float | None:
        """UserError where it is something else."""
        value = self.value(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{self[key].written}={value!r:.40}: must be a number (from {self[key]})")
        return value

    def on(self, key: str, default: bool = False) -> bool:
        """Whether a switch, or a weight, is on; UserError where it is neither."""
        value = self.value(key, default)
        if value is not None and not isinstance(value, bool | int | float):
            raise UserError(f"{self[key].written}={value!r:.40}: must be true or false (from {self[key]})")
        return bool(value)


@dataclass(frozen=True)
class Line:
    """One of our keys, the old keys that give it, and how; `why` for readers of the table."""

    new: str
    old: tuple[str, ...]
    value: Callable[[Seen], Any]
    why: str = ""
    method: str = "distill"  # whose stages read it, of those that stand in `method` and `data`
