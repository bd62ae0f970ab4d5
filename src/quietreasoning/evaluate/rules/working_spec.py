"""The working spec of a coding agent, as rules: budget, scope, tier, invariants, acceptance and the rest.

What ran elsewhere enters by `results`: name -> true, false or a figure. An invariant or criterion of which
nobody gives an outcome has failed: a promise that was not looked at is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from quietreasoning.config import Settings, suggest
from quietreasoning.evaluate.rules.acceptance import Acceptance
from quietreasoning.evaluate.rules.base import Rule, Table, as_mapping
from quietreasoning.evaluate.rules.budget import Budget
from quietreasoning.evaluate.rules.scope import Scope

POLICY = {
    1: {"coverage": 0.9, "mutation": 0.7},
    2: {"coverage": 0.8, "mutation": 0.5},
    3: {"coverage": 0.7, "mutation": 0.3},
}
Name = str | int


class ChangeBudget(Settings):
    """How much a change may touch."""

    max_files: int = Field(25, ge=0)
    """Files."""
    max_loc: int = Field(1000, ge=0)
    """Lines added or removed."""


class Criterion(Settings):
    """One criterion of acceptance; its outcome is `results[id]`."""

    id: str = Field(min_length=1)
    """Its name, such as A1."""
    given: str = ""
    """The state before."""
    when: str = ""
    """What happens."""
    then: str
    """What must hold after it."""


class Contract(Settings):
    """An interface that must hold; its outcome is `results[path]`."""

    type: str = ""
    """What it is, such as openapi."""
    path: str
    """Where it stands."""


class Waiver(Settings):
    """A rule that is set aside: it is shown, and neither gates nor adds."""

    rule: str
    """Its id."""
    reason: str = Field(min_length=1)
    """Why; shown beside it."""


class WorkingSpec(Settings):
    """Every field may be left out."""

    id: Name | None = None
    """Name of the agreement; shown."""
    title: str = ""
    """What it is about; shown."""
    mode: Literal["feature", "refactor", "fix", "doc", "chore"] | None = None
    """Kind of the change; shown."""
    risk_tier: Literal[1, 2, 3] | None = None
    """Bounds latent spans and loops (0 and 1, 1 and 2, 3 and 3); asks coverage and mutation score by tier."""
    change_budget: ChangeBudget | None = None
    """Hard limits on files and changed lines."""
    scope: Annotated[dict[str, tuple[str, ...]], BeforeValidator(as_mapping)] = {}
    """`in`: folders that may be touched, `out`: those that may not."""
    invariants: tuple[str, ...] = ()
    """What must stay true; outcomes are `results[the sentence]`."""
    acceptance: tuple[Criterion, ...] = ()
    """Criteria: id, given, when, then."""
    non_functional: Table = {}
    """Requirements by area, such as perf: [p95 below 250 ms]; outcomes are `results["perf: p95 ..."]`."""
    contracts: tuple[Contract, ...] = ()
    """Interfaces: type, path."""
    waivers: tuple[Waiver, ...] = ()
    """Rules that are set aside, with a reason."""
    provenance: Table = {}
    """Who wrote the agreement and when; shown."""

    @model_validator(mode="after")
    def _scope_says_in_or_out(self) -> WorkingSpec:
        for key in self.scope:
            if key not in ("in", "out"):
                raise ValueError(f"scope.{key}: no such setting. {suggest(key, ('in', 'out'))}")
        return self

    def about(self) -> dict[str, Any]:
        """What is shown and judges nothing."""
        shown = {"id": self.id, "title": self.title, "mode": self.mode, "provenance": self.provenance}
        return {name: value for name, value in shown.items() if value not in (None, "", {})}

    def as_rules(self) -> Iterator[Rule]:
        hard = {"severity": "critical", "hard": True}
        if self.change_budget is not None:
            most = self.change_budget
            yield Budget(id="change_budget", max_files=most.max_files, max_diff_lines=most.max_loc, **hard)
        if self.scope.get("in") or self.scope.get("out"):
            inside, outside = self.scope.get("in"), self.scope.get("out", ())
            yield Scope(id="scope", allow_paths=inside or None, deny_paths=outside, **hard)
        if self.risk_tier is not None:
            yield Budget(id="risk_tier", tier=self.risk_tier, **hard)
            policy = POLICY[self.risk_tier]
            yield Acceptance(id="policy", severity="minor", results=policy, missing="skip")
        for number, sentence in enumerate(self.invariants, start=1):
            yield Acceptance(id=f"invariant-{number}", results={sentence: True}, **hard)
        for one in self.acceptance:
            yield Acceptance(id=one.id, results={one.id: True}, **hard)
        for one in self.contracts:
            yield Acceptance(id=f"contract {one.path}", results={one.path: True})
        if wanted := dict.fromkeys(self._requirements(), True):
            yield Acceptance(id="non_functional", results=wanted)

    def _requirements(self) -> Iterator[str]:
        for area, asked in self.non_functional.items():
            for one in asked if isinstance(asked, list | tuple | dict) else [asked]:
                yield f"{area}: {one}"
