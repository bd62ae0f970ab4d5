"""Does evidence bear a claim out? `RuleJudge().judge(claim, sources) -> Ruling`; any `Judge` may stand in.

The rule-based judge compares words, numbers with their units, direction, negation and doubt. It is strict:
what it calls supported is nearly word for word there. A paraphrase in other words is "not found": ask an NLI
model or a language model behind the same protocol for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from quietreasoning.evaluate.claims.meaning import Meaning
from quietreasoning.evaluate.claims.statements import Claim, pieces_of

Verdict = Literal["supported", "contradicted", "not found"]
SUPPORTED, CONTRADICTED, NOT_FOUND = "supported", "contradicted", "not found"

ENOUGH = 0.85  # share of a claim's words that its evidence must hold
NEAR = 0.75  # share from which another number or a negation contradicts it


@dataclass(frozen=True)
class Source:
    """A piece of evidence: retrieved text, a tool's result, a reference answer."""

    id: str
    text: str


@dataclass(frozen=True)
class Ruling:
    """source: id of the evidence that decided, with its place there; None where nothing was found."""

    verdict: Verdict
    source: str | None = None
    start: int = 0
    end: int = 0
    why: str = ""


class Judge(Protocol):
    """Must give the same ruling whatever the order of the sources."""

    def judge(self, claim: Claim, sources: Sequence[Source]) -> Ruling: ...


@dataclass(frozen=True)
class RuleJudge:
    """Exact words, exact numbers, no model. enough: share of a claim's words that its evidence must hold."""

    enough: float = ENOUGH

    def judge(self, claim: Claim, sources: Sequence[Source]) -> Ruling:
        """Supported by one clause of evidence, else contradicted by one, else not found."""
        said = claim.meaning
        if not said.words and not said.quantities:
            return Ruling(NOT_FOUND, why="it says nothing that could be looked up")
        best: tuple[tuple[object, ...], Ruling] | None = None
        for source in sources:
            for index in _candidates(source.text, said):
                piece = _pieces(source.text)[index]
                verdict, share, why = self._compare(said, piece.meaning)
                # ties fall to the source's name and text, so that their order decides nothing
                rank = (_ORDER[verdict], -share, source.id, piece.start, source.text)
                if best is None or rank < best[0]:
                    found = Ruling(verdict, source.id, piece.start, piece.end, why)
                    best = rank, found if verdict != NOT_FOUND else Ruling(NOT_FOUND, why=why)
        return best[1] if best is not None else Ruling(NOT_FOUND, why="no evidence speaks of it")

    def _compare(self, said: Meaning, known: Meaning) -> tuple[Verdict, float, str]:
        there = set(known.words)
        missing = [word for word in said.words if word not in there]
        share = 1 - len(missing) / len(said.words) if said.words else 1.0
        # of a bare number, the unit must be found as well
        if share < min(NEAR, self.enough) or said.names - there or (not said.words and not known.quantities):
            return NOT_FOUND, share, "no evidence speaks of it"
        if _swapped(said, known):
            return NOT_FOUND, share, "evidence has it the other way round"
        numbers = _numbers(said, known)
        if numbers == CONTRADICTED:
            return self._against(said, known, share, "evidence gives another number")
        if numbers == NOT_FOUND:
            return NOT_FOUND, share, "its number is not in the evidence"
        turned = _turned(said, known)
        if turned == CONTRADICTED:
            return self._against(said, known, share, "evidence says the opposite")
        if turned == NOT_FOUND or share < self.enough:
            return NOT_FOUND, share, "evidence says only part of it"
        if known.restricted - said.restricted:
            return NOT_FOUND, share, "evidence says it of a part, or with an exception"
        if said.hedged != known.hedged:
            why = "it hedges what evidence says outright" if said.hedged else "evidence itself hedges"
            return NOT_FOUND, share, why
        return SUPPORTED, share, ""

    def _against(self, said: Meaning, known: Meaning, share: float, why: str) -> tuple[Verdict, float, str]:
        """A doubt cannot contradict, nor be contradicted."""
        if said.hedged or known.hedged:
            return NOT_FOUND, share, "it hedges" if said.hedged else "evidence itself hedges"
        return CONTRADICTED, share, why


_ORDER = {SUPPORTED: 0, CONTRADICTED: 1, NOT_FOUND: 2}


@lru_cache(maxsize=1024)
def _pieces(text: str) -> tuple[Claim, ...]:
    return pieces_of(text)


@lru_cache(maxsize=1024)
def _index(text: str) -> dict[str, tuple[int, ...]]:
    """Word -> clauses of the evidence that hold it; "" lists those with numbers."""
    found: dict[str, list[int]] = {}
    for index, piece in enumerate(_pieces(text)):
        for word in {*piece.meaning.words, *([""] if piece.meaning.quantities else ())}:
            found.setdefault(word, []).append(index)
    return {word: tuple(where) for word, where in found.items()}


def _candidates(text: str, said: Meaning) -> list[int]:
    """Clauses that share a word with the claim; for a claim of numbers alone those with numbers."""
    index = _index(text)
    return sorted({at for word in said.words or ("",) for at in index.get(word, ())})


def _numbers(said: Meaning, known: Meaning) -> Verdict:
    """Every number of the claim stands in the evidence; another one of the same unit contradicts it."""
    units = {quantity.unit for quantity in known.quantities}
    values = {quantity.value for quantity in known.quantities}
    verdict: Verdict = SUPPORTED
    for word, (value, unit) in said.anchors:  # "in physics in 1903 and in chemistry in 1911"
        same = {q.value for other, q in known.anchors if other == word and q.unit == unit}
        if same and value not in same:
            return CONTRADICTED
    for quantity in said.quantities:
        if quantity in known.quantities or (quantity.value in values and quantity.unit not in units - {""}):
            continue
        if quantity.unit in units or (values and quantity.unit == ""):
            return CONTRADICTED
        verdict = NOT_FOUND
    return verdict


def _turned(said: Meaning, known: Meaning) -> Verdict:
    """Direction and negation: one turned is a contradiction; both are the same thing, but only one way:
    what fell did not rise, yet what did not rise may not have fallen."""
    ours, theirs = dict(said.directions), dict(known.directions)
    turns = sum(ours[word] != theirs[word] for word in ours.keys() & theirs.keys())
    turns += said.negated != known.negated
    if turns == 0:
        return SUPPORTED
    if turns == 1:
        return CONTRADICTED
    return SUPPORTED if turns == 2 and said.negated else NOT_FOUND


def _swapped(said: Meaning, known: Meaning) -> bool:
    """Who does what to whom was exchanged. "Paris is the capital" and its mirror image are one thing."""
    if not said.subject & (known.rest - known.subject) or not said.rest & (known.subject - known.rest):
        return False
    plain = said.copula and known.copula and not (said.compared or known.compared)
    return not (plain and said.subject == known.rest and said.rest == known.subject)
