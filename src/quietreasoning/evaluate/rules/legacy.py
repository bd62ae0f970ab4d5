"""`kind: legacy`: the compliance formula of the first plan, kept for comparison alone.

It counts markers and words. It has no gradient, whatever it is added to, and it punishes brevity: "Paris." is
fined 1.8, a hedging sentence without any content 0.45. Nothing should be trained on it.
"""

from __future__ import annotations

import re

from quietreasoning.evaluate.claims.statements import claims_of
from quietreasoning.evaluate.rules.base import Context, Finding, Rule, whole

HEDGES = ("however", "but", "contrary", "despite", "although")
CONCLUSIONS = ("therefore", "thus", "hence", "so", "finally", "conclusion", "consequently", "summary")
CODE = ("import", "from", "await", "def", "function", "callmcptool")
TOOLS = ("tool", "tool_call", "tool_result", "call")
HEADERS = ("working spec", "invariants", "acceptance")


class Legacy(Rule):
    """1 / (1 + fine). The teacher is the context's reference. Where the plan left words open (conclusions,
    code, tools, the graded part of the structure), those of this file are a reading of it."""

    kind = "legacy"

    @property
    def earned(self) -> bool:
        return True

    def check(self, text: str, context: Context) -> Finding:
        fine = penalty(text, context.reference or "")
        marks = (whole(text, f"fined {fine:.2f}"),) if fine else ()
        return Finding(1 / (1 + fine), marks, "counts form; not to be trained on")


def penalty(text: str, teacher: str = "") -> float:
    """Budget + 1.5 quality + 0.8 feature + 0.05 structure, at least 0."""
    shape = max(0.0, structure(teacher) - structure(text))
    return _budget(text) + 1.5 * _quality(text, teacher) + 0.8 * _feature(text) + 0.05 * shape


def structure(text: str) -> float:
    """At most about 0.71."""
    lowered, words = text.lower(), len(text.split())
    headers = sum(name in lowered for name in HEADERS) / 3
    fence = 0.5 * ("```" in text)
    marks = 0.15 * (re.search(r"\{\s*\"", text) is not None) + 0.1 * (
        re.search(r"^[-*] ", text, re.M) is not None
    )
    marks += 0.1 * (re.search(r"^#+ ", text, re.M) is not None)
    length = 0.2 if words < 50 else 0.5 if words < 200 else 0.7
    return 0.4 * headers + 0.2 * fence + 0.2 * marks + 0.2 * (length if text else 0)


def _budget(text: str) -> float:
    spans, steps = text.count("<bot>"), len(re.findall(r"\bstep \d+:", text, re.I))
    return (spans != text.count("<eot>")) + 0.5 * max(0, spans - 3) + 0.2 * max(0, steps - 5)


def _quality(text: str, teacher: str) -> float:
    words = _words(text)
    known = [_words(claim.statement) for claim in claims_of(teacher)] if teacher else []
    strange = sum(
        all(_jaccard(_words(claim.statement), one) <= 0.3 for one in known)
        for claim in (claims_of(text) if known else ())
    )
    hedges = sum(text.lower().count(word) for word in HEDGES)
    return 0.3 * strange + (len(text) < 50) + 0.1 * hedges + 0.2 * (not words & set(CONCLUSIONS))


def _feature(text: str) -> float:
    words, spans = _words(text), text.count("<bot>")
    code, tools = bool(words & set(CODE)), bool(words & set(TOOLS))
    return (
        0.5 * (code and not tools)
        + 0.3 * (len(text) < 200 and spans > 2)
        + 0.2 * (tools and not code and not spans)
    )


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0
