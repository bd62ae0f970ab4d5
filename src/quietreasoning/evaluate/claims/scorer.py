"""How much of what a text claims does evidence bear out? `ClaimScorer().examine(text, sources, reference)`.

reward = precision * recall - unsupported * share not found - contradicted * share contradicted, in [0, 1].
precision: share of distinct claims that are supported. recall: share of the reference's claims that follow
from the supported ones. Both are shares of distinct statements, so that repeating, padding and rewording what
was said change nothing. Claims against evidence one by one follow FActScore (arXiv 2305.14251).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quietreasoning.evaluate.claims.judge import (
    CONTRADICTED,
    NOT_FOUND,
    SUPPORTED,
    Judge,
    RuleJudge,
    Ruling,
    Source,
    Verdict,
)
from quietreasoning.evaluate.claims.own_words import own_words
from quietreasoning.evaluate.claims.statements import CATEGORIES, Claim, claims_of


@dataclass(frozen=True)
class Judged:
    """A claim and its ruling. repeats: the same was said before, so it counts no more."""

    claim: Claim
    ruling: Ruling
    repeats: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "claim": self.claim.text,
            "span": [self.claim.start, self.claim.end],
            "category": self.claim.category,
            "verdict": self.ruling.verdict,
            "evidence_id": self.ruling.source,
            "evidence_span": [self.ruling.start, self.ruling.end] if self.ruling.source is not None else None,
            "why": self.ruling.why,
            "repeats": self.repeats,
        }


@dataclass(frozen=True)
class ClaimReport:
    """judged: every claim in the order of the text. missed: claims of the reference that do not follow."""

    judged: tuple[Judged, ...]
    missed: tuple[Claim, ...]
    precision: float
    recall: float
    reward: float

    def distinct(self, *verdicts: Verdict) -> list[Judged]:
        return [one for one in self.judged if not one.repeats and one.ruling.verdict in verdicts]

    def summary(self) -> str:
        """`7 of 9 claims supported, 2 unsupported at characters 310-355, 400-412`."""
        bad = self.distinct(CONTRADICTED, NOT_FOUND)
        good = self.distinct(SUPPORTED)
        total = len(good) + len(bad)
        line = f"{len(good)} of {total} claim{'s' * (total != 1)} supported"
        if not bad:
            return line
        places = ", ".join(f"{one.claim.start}-{one.claim.end}" for one in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        return f"{line}, {len(bad)} unsupported at characters {places}{more}"


@dataclass(frozen=True)
class ClaimScorer:
    """unsupported, contradicted: what the shares of such claims cost. categories: those looked at."""

    judge: Judge = field(default_factory=RuleJudge)
    unsupported: float = 0.5
    contradicted: float = 1.0
    categories: tuple[str, ...] = CATEGORIES

    def examine(
        self, text: str, sources: Sequence[Source], reference: str | None = None, prompt: str = ""
    ) -> ClaimReport:
        """reference: what should be said; without one, all that the evidence says. prompt: what was asked;
        sentences lifted from it are not the text's own."""
        own = own_words(text, prompt, (source.text for source in sources))
        judged = self._without_repeats([(c, self.judge.judge(c, sources)) for c in self._claims(own)])
        asked = self._reference(sources, reference)
        said = [Source(f"{n:06}", one.claim.statement) for n, one in enumerate(_supported(judged))]
        missed = tuple(claim for claim in asked if self.judge.judge(claim, said).verdict != SUPPORTED)
        return self._report(tuple(judged), missed, len(asked))

    def reward(
        self, text: str, sources: Sequence[Source], reference: str | None = None, prompt: str = ""
    ) -> float:
        """Within [0, 1]; 0 for a text that claims nothing."""
        return self.examine(text, sources, reference, prompt).reward

    def _without_repeats(self, ruled: Sequence[tuple[Claim, Ruling]]) -> list[Judged]:
        """Marks what was said before, and of supported claims what follows from a fuller one: variants of one
        truth must not outweigh a lie."""
        seen: set[object] = set()
        kept: list[Source] = []
        repeats: dict[int, bool] = {}
        for index in sorted(range(len(ruled)), key=lambda n: (-_size(ruled[n][0]), n)):
            claim, ruling = ruled[index]
            repeats[index] = claim.meaning.key in seen
            seen.add(claim.meaning.key)
            if ruling.verdict == SUPPORTED and not repeats[index]:
                repeats[index] = bool(kept) and self.judge.judge(claim, kept).verdict == SUPPORTED
                kept += [] if repeats[index] else [Source(f"{index:06}", claim.statement)]
        return [Judged(claim, ruling, repeats[n]) for n, (claim, ruling) in enumerate(ruled)]

    def _claims(self, text: str) -> Iterable[Claim]:
        return (claim for claim in claims_of(text) if claim.category in self.categories)

    def _reference(self, sources: Sequence[Source], reference: str | None) -> list[Claim]:
        texts = [reference] if reference is not None else sorted({source.text for source in sources})
        distinct: dict[object, Claim] = {}
        for claim in (claim for text in texts for claim in self._claims(text)):
            distinct.setdefault(claim.meaning.key, claim)
        return list(distinct.values())

    def _report(self, judged: tuple[Judged, ...], missed: tuple[Claim, ...], asked: int) -> ClaimReport:
        verdicts = [one.ruling.verdict for one in judged if not one.repeats]
        if not verdicts:
            return ClaimReport(judged, missed, 0.0, 0.0, 0.0)
        good, false, n = verdicts.count(SUPPORTED), verdicts.count(CONTRADICTED), len(verdicts)
        precision = good / n
        # a reference that claims nothing asks for nothing: what is supported is then enough
        recall = 1 - len(missed) / asked if asked else float(good > 0)
        cost = self.contradicted * false / n + self.unsupported * (n - good - false) / n
        return ClaimReport(judged, missed, precision, recall, min(1.0, max(0.0, precision * recall - cost)))


def agreement(judge: Judge, cases: Iterable[tuple[str, str, Verdict]]) -> tuple[int, int]:
    """(agreed, n) of a judge with labelled cases (claim, evidence, verdict). A text that claims nothing
    counts as disagreement."""
    agreed = n = 0
    for text, evidence, verdict in cases:
        n += 1
        claims = claims_of(text)
        rulings = {judge.judge(claim, (Source("evidence", evidence),)).verdict for claim in claims}
        agreed += rulings == {verdict}
    return agreed, n


def _size(claim: Claim) -> int:
    """How much it says."""
    return len(claim.meaning.words) + len(claim.meaning.quantities)


def _supported(judged: Iterable[Judged]) -> list[Judged]:
    return [one for one in judged if not one.repeats and one.ruling.verdict == SUPPORTED]
