"""`kind: evidence`: such claims cite an artefact; `kind: claims`: evidence bears them out."""

from __future__ import annotations

import re
from bisect import bisect_right
from operator import itemgetter
from typing import Annotated, Literal

from pydantic import Field

from quietreasoning.config import OneOf
from quietreasoning.data.spans.sentences import segments
from quietreasoning.evaluate.claims.judge import CONTRADICTED, NOT_FOUND
from quietreasoning.evaluate.claims.scorer import ClaimScorer
from quietreasoning.evaluate.claims.statements import CATEGORIES, Claim, claims_of
from quietreasoning.evaluate.rules.base import Context, Finding, Mark, Rule, at_end

CategoryName = Annotated[str, OneOf("category of claims", CATEGORIES)]
_CITES = re.compile(
    r"\[\^?(?P<id>[^\[\]\n]{1,80})\]"
    r"|(?P<url>https?://[^\s)\]>]{3,2000})"
    r"|(?P<file>(?<![\w/.-])[\w.-]{1,80}(?:/[\w.-]{1,80}){0,12}\.[A-Za-z]\w{0,5}(?::\d+(?:-\d+)?)?(?![\w/]))"
)


class Cited(Rule):
    """Share of such claims with a citation in their sentence.

    A citation is `[id]`, an address, or a file's name. Where evidence is given, it must name a piece of
    it: `[1]` out of thin air cites nothing.
    """

    kind = "evidence"

    @property
    def earned(self) -> bool:
        return True

    categories: tuple[CategoryName, ...] = CATEGORIES
    """Which claims must cite: status, quantity, benchmark, superlative, code fact."""
    without: Literal["fail", "skip"] = "fail"
    """What a text without such claims counts as; skip lets silence pass, so it is no reward."""

    def check(self, text: str, context: Context) -> Finding:
        claims = [claim for claim in claims_of(context.own(text)) if claim.category in self.categories]
        if not claims:
            if self.without == "skip":
                return Finding(None, note="no such claims")
            return Finding(0.0, (at_end(text, "it claims nothing"),))
        known = {source.id.lower() for source in context.sources}
        sentences = segments(text)
        marks = []
        for claim in claims:
            cited = _citations(text, claim, sentences)
            if not cited:
                marks.append(Mark(claim.start, claim.end, f"a {claim.category} claim cites nothing"))
            elif known and not cited & known:
                named = sorted(cited)[0]
                message = f"a {claim.category} claim cites {named!r:.60}, which is no evidence here"
                marks.append(Mark(claim.start, claim.end, message))
        return Finding(1 - len(marks) / len(claims), tuple(marks))


def _citations(text: str, claim: Claim, sentences: tuple[tuple[int, int], ...]) -> set[str]:
    """What the claim's sentence names, and a `[id]` right behind its full stop."""
    at = bisect_right(sentences, claim.start, key=itemgetter(0)) - 1
    inside = at >= 0 and claim.start < sentences[at][1]
    start, end = sentences[at] if inside else (claim.start, claim.end)
    behind = re.compile(r"\s{0,3}\[\^?[^\[\]\n]{1,80}\]").match(text, end)
    region = text[start : behind.end() if behind else end]
    found = set()
    for match in _CITES.finditer(region):
        name = (match["id"] or match["url"] or match["file"]).rstrip(".,;").lower()
        found |= {name, re.sub(r":\d+(?:-\d+)?$", "", name)}
    return found


class Borne(Rule):
    """Precision times recall less penalties: `claims.scorer`. What should be said is the context's reference,
    or without one all that the evidence says. A text without claims scores 0."""

    kind = "claims"

    @property
    def earned(self) -> bool:
        return True

    @property
    def beside(self) -> bool:
        return True

    categories: tuple[CategoryName, ...] = CATEGORIES
    """Which claims are judged."""
    unsupported: float = Field(0.5, ge=0)
    """Cost of the share of claims that no evidence speaks of."""
    contradicted: float = Field(1.0, ge=0)
    """Cost of the share that evidence contradicts."""

    def check(self, text: str, context: Context) -> Finding:
        scorer = ClaimScorer(context.judge, self.unsupported, self.contradicted, self.categories)
        report = scorer.examine(text, context.sources, context.reference, context.prompt)
        marks = [
            Mark(one.claim.start, one.claim.end, f"{one.ruling.verdict}: {one.ruling.why}")
            for one in report.distinct(CONTRADICTED, NOT_FOUND)
        ]
        marks += [at_end(text, f"not said: {claim.statement:.80}") for claim in report.missed]
        return Finding(report.reward, tuple(marks), report.summary())
