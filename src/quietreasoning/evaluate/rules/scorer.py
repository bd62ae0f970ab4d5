"""One scorer, five uses: a filter of data, a reward, a maker of preference pairs, a gate, an exit code.

total = 0 where the text is empty, lifted from the prompt, or breaks a hard rule; else the mean of the soft
rules' scores by weight (1 where all rules are hard). A reward trains only through the policy:
grad E[R] = E[(R - b) grad log pi(y)]. No rule has a gradient of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from quietreasoning.evaluate.judging import Figure, Judgement, Measured, Trial, judge
from quietreasoning.evaluate.rules.base import Context, Finding, Mark, Rule, whole
from quietreasoning.evaluate.statistics import wilson

PASS, FAIL, NONE, WAIVED = "pass", "fail", "not applicable", "waived"
NOTHING_KNOWN = Context()
SAME = 1e-9  # scores nearer than this tell nothing apart
_GRAVITY = {"critical": 0, "major": 1, "minor": 2}


@dataclass(frozen=True)
class Outcome:
    """What one rule found. score: within [0, 1], None where it had nothing to judge. marks: places."""

    rule: str
    kind: str
    severity: str
    hard: bool
    weight: float
    score: float | None
    verdict: Literal["pass", "fail", "not applicable", "waived"]
    marks: tuple[Mark, ...]
    note: str

    def as_dict(self) -> dict[str, Any]:
        evidence = [{"rule": self.rule, "span": [m.start, m.end], "message": m.message} for m in self.marks]
        shown = ("rule", "kind", "severity", "hard", "weight", "score", "verdict", "note")
        return {name: getattr(self, name) for name in shown} | {"evidence": evidence}


@dataclass(frozen=True)
class Score:
    """total: within [0, 1]. holds: no hard rule failed. kept: it holds and the total is enough."""

    total: float
    holds: bool
    kept: bool
    outcomes: tuple[Outcome, ...]

    def failed(self) -> list[Outcome]:
        """Gravest first: hard before soft, then by severity."""
        bad = [one for one in self.outcomes if one.verdict == FAIL]
        return sorted(bad, key=lambda one: (not one.hard, _GRAVITY[one.severity], one.rule))

    def as_dict(self) -> dict[str, Any]:
        results = [one.as_dict() for one in self.outcomes]
        return {"total": self.total, "holds": self.holds, "kept": self.kept, "results": results}


@dataclass(frozen=True)
class Preference:
    """chosen: "a", "b", or None where they are too near. margin: how far the chosen one is ahead."""

    chosen: Literal["a", "b"] | None
    margin: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RuleScorer:
    """Deterministic, without state; the order of the rules changes nothing but the order of the outcomes."""

    rules: tuple[Rule, ...]
    threshold: float = 0.5
    share: float = 0.9  # of texts that a gate needs kept
    waived: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def score(self, text: str, context: Context = NOTHING_KNOWN) -> Score:
        nothing = _nothing(text, context)
        outcomes = tuple(self._outcome(rule, text, context, nothing) for rule in self.rules)
        holds = nothing is None and not any(one.hard and one.verdict == FAIL for one in outcomes)
        judged = [one for one in outcomes if one.score is not None and one.verdict != WAIVED]
        soft = [one for one in judged if not one.hard and one.weight > 0]
        total = 0.0
        if holds and soft:
            # fsum rounds once, so that the order of the rules cannot show
            total = math.fsum(one.weight * one.score for one in soft) / math.fsum(one.weight for one in soft)
        elif holds and judged:
            total = 1.0
        total = min(1.0, max(0.0, total))
        return Score(total, holds, holds and total >= self.threshold, outcomes)

    def keep(self, text: str, context: Context = NOTHING_KNOWN) -> bool:
        """Filter: whether a text stays in a data set."""
        return self.score(text, context).kept

    def reward(self, text: str, context: Context = NOTHING_KNOWN) -> float:
        """Within [0, 1]."""
        return self.score(text, context).total

    def advantages(self, scores: Sequence[Score]) -> list[float]:
        """Answers to one prompt: each soft rule's scores normalised within the group, then added by weight.

        A rule whose scores vary little is then heard beside one whose scores vary much. Who breaks a hard
        rule has 0 in all of them. Rules on which all agree add nothing.
        """
        found = [0.0] * len(scores)
        soft = [(rule.id, rule.share) for rule in self.rules if not rule.hard and rule.id not in self.waived]
        columns = [([_scored(one, name) for one in scores], share) for name, share in soft]
        if not columns:
            columns = [([one.total for one in scores], 1.0)]
        shares = math.fsum(share for _, share in columns) or 1.0
        for values, share in columns:
            spread = statistics.pstdev(values) if len(values) > 1 else 0.0
            if spread > SAME:
                mean = statistics.fmean(values)
                found = [a + share / shares * (v - mean) / spread for a, v in zip(found, values, strict=True)]
        return found

    def prefer(self, a: str, b: str, context: Context = NOTHING_KNOWN, least: float = 0.05) -> Preference:
        """Pair for DPO and the like; none where the totals are nearer than `least`."""
        one, other = self.score(a, context), self.score(b, context)
        margin = abs(one.total - other.total)
        if margin < max(least, SAME):
            return Preference(None, margin, (f"totals {one.total:.2f} and {other.total:.2f} are too near",))
        chosen, winner, loser = ("a", one, other) if one.total > other.total else ("b", other, one)
        return Preference(chosen, margin, tuple(_reasons(winner, loser)))

    def gate(self, scores: Sequence[Score], name: str = "rules") -> Judgement:
        """Pass, fail or inconclusive by the Wilson interval of the share kept; rules' shares beside it."""
        figures = [_figure("kept", [one.kept for one in scores], self.share)]
        for rule in self.rules:
            found = [one for score in scores for one in score.outcomes if one.rule == rule.id]
            met = [one.score >= rule.needs - SAME for one in found if one.score is not None]
            note = "" if met else "nothing to judge"
            if rule.id in self.waived:
                note = f"waived: {self.waived[rule.id]}"
            figures.append(_figure(rule.id, met, note=note))
        return Judgement(name, (Trial(name, tuple(figures)),), dict(self.about))

    @staticmethod
    def exit_code(scores: Iterable[Score]) -> int:
        """0 where every text is kept, else 1."""
        return 0 if all(one.kept for one in scores) else 1

    def notes(self) -> list[str]:
        """What a reader of the file should know."""
        found = []
        if not any(rule.earned and rule.id not in self.waived for rule in self.rules):
            found.append(
                "no rule asks a text to say anything, so any harmless word passes; add acceptance or claims"
            )
        if any(rule.kind == "legacy" for rule in self.rules):
            found.append("legacy counts form and punishes brevity; nothing should be trained on it")
        return found

    def _outcome(self, rule: Rule, text: str, context: Context, nothing: str | None) -> Outcome:
        finding = rule.check(text, context) if nothing is None else Finding(0.0, (whole(text, nothing),))
        score = None if finding.score is None else min(1.0, max(0.0, finding.score))
        verdict = NONE if score is None else PASS if score >= rule.needs - SAME else FAIL
        note = finding.note
        if rule.id in self.waived:
            verdict, note = WAIVED, f"waived: {self.waived[rule.id]}"
        return Outcome(
            rule.id, rule.kind, rule.severity, rule.hard, rule.share, score, verdict, finding.marks, note
        )


def _nothing(text: str, context: Context) -> str | None:
    """Why there is nothing to judge: an empty text must never win by breaking no rule."""
    if not any(character.isalnum() for character in text):
        return "the text is empty"
    if not any(character.isalnum() for character in context.own(text)):
        return "all of it was lifted from the prompt"
    return None


def _scored(score: Score, rule: str) -> float:
    if not score.holds:
        return 0.0
    return next((one.score or 0.0 for one in score.outcomes if one.rule == rule), 0.0)


def _reasons(winner: Score, loser: Score) -> Iterable[str]:
    """Rules that speak for the winner, the weightiest first, then those against."""
    pairs = [
        (one.rule, one.score or 0.0, other.score or 0.0, one.hard, one.weight)
        for one, other in zip(winner.outcomes, loser.outcomes, strict=True)
        if one.verdict != WAIVED
    ]
    apart = [pair for pair in pairs if abs(pair[1] - pair[2]) > SAME]
    for name, good, bad, hard, weight in sorted(apart, key=lambda p: (not p[3], -p[4] * (p[1] - p[2]), p[0])):
        yield f"{name}{' (hard)' if hard else f' (weight {weight:g})'}: {good:.2f} against {bad:.2f}"


def _figure(what: str, met: Sequence[bool], needs: float | None = None, note: str = "") -> Figure:
    interval = wilson(sum(met), len(met))
    measured = Measured(sum(met) / len(met) if met else 0.0, interval.low, interval.high)
    verdict = None if needs is None else judge(measured, needs, inclusive=True)
    return Figure(what, measured, len(met), "texts", needs, needs is not None, verdict, note)
