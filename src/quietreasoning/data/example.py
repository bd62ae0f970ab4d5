"""The one record every task yields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Example:
    """A problem, its visible gold steps and its answer. `meta` is a read-only view."""

    id: str  # stable, unique in its split
    prompt: str
    steps: tuple[str, ...]  # visible gold steps, may be empty
    results: tuple[str, ...]  # the result inside each step, "" where unknown; as long as steps
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)  # at least "num_steps"; task-specific facts
    ids: Sequence[int] | None = field(default=None, compare=False)  # a window of running text, as tokens
    rejected: str | None = None  # an answer that is not wanted; a task gives one to all rows or to none

    def __post_init__(self) -> None:
        if len(self.results) != len(self.steps):
            raise ValueError(
                f"example {self.id}: {len(self.results)} results for {len(self.steps)} steps; "
                'give one result a step, "" where it is unknown'
            )
        meta = {"num_steps": len(self.steps), **self.meta}
        object.__setattr__(self, "meta", MappingProxyType(meta))

    @property
    def answers(self) -> tuple[str, ...]:
        """The wanted answer, then the rejected one if there is one."""
        return (self.answer,) if self.rejected is None else (self.answer, self.rejected)
