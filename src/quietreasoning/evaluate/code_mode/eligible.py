"""Is a program due, or will plain calls do? `eligible(calls) -> Eligibility`, with every reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from quietreasoning.config import OneOf, Settings
from quietreasoning.evaluate.code_mode.execute import Made
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.safety import PII, Safety


class EligibilityRules(Settings):
    """Any one of them is enough."""

    min_tools: int = Field(2, ge=1)
    """Calls that a task takes: two of one tool count as two, since a loop replaces them."""
    min_intermediate_chars: int = Field(10_000, ge=1)
    """Characters of one result."""
    pii_patterns: tuple[
        Annotated[str, OneOf("kind of personal data", [name.upper() for name in PII])], ...
    ] = ("EMAIL", "PHONE", "SSN")
    """Personal data in a result that should not reach the context: EMAIL, PHONE, SSN, CREDIT_CARD."""


RULES = EligibilityRules()


@dataclass(frozen=True)
class Eligibility:
    """reasons: what speaks for a program; none where plain calls will do. They repeat no personal data."""

    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.reasons)


def eligible(calls: Sequence[Made], rules: EligibilityRules = RULES) -> Eligibility:
    """From the calls that solve the task one by one. Calls that failed count nothing."""
    good = [call for call in calls if call.fault is None]
    reasons = []
    if len(good) >= rules.min_tools:
        reasons.append(f"{len(good)} calls, at least {rules.min_tools} (min_tools)")
    longest = max((call.characters for call in good), default=0)
    if longest >= rules.min_intermediate_chars:
        least = rules.min_intermediate_chars
        reasons.append(f"a result of {longest} characters, at least {least} (min_intermediate_chars)")
    for name in rules.pii_patterns:
        rule = Safety(id=name, pii=(name.lower(),), secrets=False)
        places = sum(len(rule.check(call.result, Context()).marks) for call in good)
        if places:
            reasons.append(f"{places} x {name} in results (pii_patterns)")
    return Eligibility(tuple(reasons))
