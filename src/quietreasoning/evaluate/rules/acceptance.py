"""`kind: acceptance`: what a text must say or must not, outcomes of checks elsewhere, Python asserts.

No command is ever run. `python` alone runs the text's code, in the sandbox of evaluate/sandbox.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from quietreasoning.evaluate.claims.lexicon import NEGATIONS
from quietreasoning.evaluate.claims.statements import Claim, claims_of
from quietreasoning.evaluate.rules.base import Context, Finding, Mark, Rule, as_mapping, at_end
from quietreasoning.evaluate.rules.json_schema import check_pattern
from quietreasoning.evaluate.sandbox import Limits, run
from quietreasoning.evaluate.spelling import normalise, strip_fence

_NUMBER = re.compile(r"[$€£]?-?\d[\d.,]*\d?(?:\s?%)?")
_DATES = frozenset("in on by since until from at for during of".split())
Part = tuple[bool, Mark | None]


class Acceptance(Rule):
    """Share of the criteria that are met."""

    kind = "acceptance"

    expect: tuple[str, ...] = ()
    """What must be said."""
    forbid: tuple[str, ...] = ()
    """Words that may not stand anywhere."""
    match: Literal["stated", "contains", "whole", "regex"] = "stated"
    """How `expect` is met. stated: the text is just that, or a sentence says it without negation, doubt or
    another answer beside it; contains: as whole words anywhere; whole: the text is just that; regex."""
    results: Annotated[dict[str, bool | float], BeforeValidator(as_mapping)] = {}
    """Outcomes that must be given: true, or the least figure."""
    missing: Literal["fail", "skip"] = "fail"
    """What an outcome that nobody gave counts as."""
    python: str | None = None
    """Asserts for the text's Python code, run after it in the sandbox."""
    seconds: float = Field(5.0, gt=0, le=60)
    """Time for `python`."""

    @model_validator(mode="after")
    def _something_is_asked(self) -> Acceptance:
        if not (self.expect or self.forbid or self.results or self.python):
            raise ValueError("nothing is asked; give expect, forbid, results or python")
        if self.match == "regex":
            for pattern in self.expect:
                check_pattern(pattern, "expect")
        return self

    @property
    def earned(self) -> bool:
        return bool(self.expect or self.results or self.python)

    @property
    def beside(self) -> bool:
        return bool(self.results) and self.missing == "fail"

    def check(self, text: str, context: Context) -> Finding:
        parts = [*self._said(text, context), *self._given(text, context)]
        for one in self.forbid:
            places = [match.span() for match in _bounded(one).finditer(text)]
            parts += [(False, Mark(*place, f"{one!r:.60} may not be said")) for place in places[:1]]
            parts += [] if places else [(True, None)]
        if self.python is not None:
            verdict = run(f"{strip_fence(text)}\n\n{self.python}", Limits(seconds=self.seconds))
            at = text.find(strip_fence(text))
            end = at + len(strip_fence(text))
            parts.append(
                (verdict.passed, None if verdict.passed else Mark(at, end, f"the code: {verdict.why}"))
            )
        if not parts:
            return Finding(None, note="no outcome was given")
        marks = tuple(mark for _, mark in parts if mark is not None)
        return Finding(sum(met for met, _ in parts) / len(parts), marks)

    def _said(self, text: str, context: Context) -> Iterator[Part]:
        own = context.own(text)
        claims = claims_of(own) if self.expect and self.match == "stated" else ()
        for one in self.expect:
            if self.match == "regex":
                met = re.search(one, own) is not None
            elif self.match == "contains":
                met = _bounded(one).search(own) is not None
            else:
                met = normalise(own).lower() == normalise(one).lower()
            if self.match == "stated" and not met:
                yield _stated(one, own, claims)
            else:
                yield met, None if met else at_end(text, f"{one!r:.60} is not said")

    def _given(self, text: str, context: Context) -> Iterator[Part]:
        for name, least in self.results.items():
            value = context.results.get(name)
            if value is None:
                if self.missing == "fail":
                    yield False, at_end(text, f"no outcome of {name!r:.80} was given")
            elif isinstance(least, bool) or isinstance(value, bool):
                met = bool(value) == bool(least)
                yield met, None if met else at_end(text, f"{name:.80}: {str(value).lower()}")
            else:
                yield (
                    value >= least,
                    None if value >= least else at_end(text, f"{name:.80}: {value} is below {least}"),
                )


def _bounded(words: str) -> re.Pattern[str]:
    """The words themselves, whatever spaces part them: 12 is neither in 112 nor in 12.5 or 1,200."""
    body = r"\s+".join(map(re.escape, words.split()))
    return re.compile(rf"(?<![\w])(?<!\d[.,]){body}(?!\w)(?![.,]\d)", re.I)


def _stated(one: str, text: str, claims: tuple[Claim, ...]) -> Part:
    """A sentence says it outright, and no other says the same of something else."""
    pattern, why = _bounded(one), f"{one!r:.60} is not said in a sentence"
    place = (len(text), len(text))
    for claim in claims:
        hit = pattern.search(claim.text)
        if hit is None:
            continue
        around = f"{claim.text[: hit.start()]} {claim.text[hit.end() :]}"
        place = (claim.start, claim.end)
        if claim.meaning.hedged and not any(word in one.lower().split() for word in ("or", "if", "may")):
            why = f"{one!r:.60} is said with a doubt"
        elif sum(word in NEGATIONS for word in re.findall(r"[\w']+", around.lower())) % 2:
            why = f"{one!r:.60} is denied"
        elif _listed(claim.text, hit):
            why = f"{one!r:.60} is one of several answers"
        elif (rival := _rival(claim, hit, claims)) is not None:
            place, why = (rival.start, rival.end), f"another answer stands beside {one!r:.60}"
        else:
            return True, None
    return False, Mark(*place, why)


def _listed(text: str, hit: re.Match[str]) -> bool:
    """Another number of its kind right beside it: "42 and 43", "41, 42"; not "in 2024, 42 came"."""
    if not _NUMBER.match(hit[0]):
        return False
    share = hit[0].endswith("%")
    after = re.match(rf"\s*(?:,|/|&|\band\b)\s*(?:and\s+)?({_NUMBER.pattern})", text[hit.end() :])
    before = re.search(
        rf"(\w*)\s*(?<!\w)({_NUMBER.pattern})\s*(?:,|/|&|\band)\s*$", text[: hit.start()][-60:]
    )
    if after is not None and after[1].endswith("%") == share:
        return True
    return before is not None and before[2].endswith("%") == share and before[1].lower() not in _DATES


def _rival(claim: Claim, hit: re.Match[str], claims: tuple[Claim, ...]) -> Claim | None:
    """A statement with the same words around something else: "it is 42" and "it is 43"."""
    before, after = _words(claim.text[: hit.start()]), _words(claim.text[hit.end() :])
    same = _words(hit[0])
    if len(before) + len(after) < 2:
        return None
    for other in claims:
        words = _words(other.text)
        middle = words[len(before) : len(words) - len(after)]
        fits = words[: len(before)] == before and words[len(words) - len(after) :] == after
        if fits and middle and middle[: len(same)] != same and not other.meaning.negated:
            return other
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"[\w.,]*\w", text.lower())
