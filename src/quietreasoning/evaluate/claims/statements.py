"""A text -> atomic statements with their places: `claims_of(text)`. English, by rules.

Sentences are cut at full stops, list items and semicolons, then where "and", "but" or "while" joins two
predicates. A clause without a subject takes the one before it, a leading pronoun the last subject. What asks,
orders, greets, or merely lines words up states nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from quietreasoning.data.spans.sentences import segments
from quietreasoning.evaluate.claims.lexicon import AUXILIARIES, FUNCTION_WORDS, VERBS
from quietreasoning.evaluate.claims.meaning import TOKEN, Meaning, find_verb, meaning, opens_with_verb

Category = Literal["status", "quantity", "benchmark", "superlative", "code fact"]
CATEGORIES: tuple[Category, ...] = ("status", "quantity", "benchmark", "superlative", "code fact")

_JOIN = re.compile(r";\s|,?\s(?:and|but|while|whereas)\s", re.I)
_PRONOUNS = frozenset("it they he she this that these those".split())
_META = re.compile(
    r"\W*(?:here(?:'s| is| are)\b|sure\b|of course\b|let me\b|let's\b|i can\b"
    r"|i will\b|i'll\b|i'd\b|i hope\b"
    r"|as an ai\b|i am (?:happy|glad|sorry)|i'm (?:happy|glad|sorry)"
    r"|thank|hope (?:this|that)|please\b|feel free)",
    re.I,
)
_BENCHMARK = re.compile(
    r"\b(?:accuracy|precision|recall|f1|bleu|rouge|perplexity|latency|throughput|benchmarks?|speed-?up|mmlu|gsm8k"
    r"|humaneval|pass@\d+|tokens/s|fps|auc|win rate|ms|milliseconds?|times faster|x faster)\b",
    re.I,
)
_SUPERLATIVE = re.compile(
    r"\b(?:best|worst|most|least|state[- ]of[- ]the[- ]art|sota|only|unmatched|unique|always|never"
    r"|(?:fast|slow|large|small|bigg|high|low|great|long|short|old|young|strong|cheap|new|light|heavi|near|deep|rich)est)\b",
    re.I,
)
_CODE = re.compile(
    r"`[^`\n]+`|\b\w+\(\)|\b\w+_\w+\b|\b[\w/-]+\.(?:py|js|ts|rs|go|c|h|cpp|java|yaml|json|toml|md)\b"
    r"|\b(?:function|method|class|module|variable|parameter|argument|import)s?\b.*\b(?:returns?|raises?|takes?|calls?|is|are)\b",
    re.I,
)
_DIGIT = re.compile(r"\d")
# characters read around a conjunction, for a category, of a sentence that is cut: endless lines stay cheap
WINDOW, LONGEST, SENTENCE = 200, 400, 2000


@dataclass(frozen=True)
class Claim:
    """An atomic statement. text == source[start:end]; statement: the same with its subject made plain."""

    text: str
    start: int
    end: int
    category: Category
    statement: str

    @property
    def meaning(self) -> Meaning:
        return meaning(self.statement)


@lru_cache(maxsize=64)
def claims_of(text: str) -> tuple[Claim, ...]:
    """Every statement of the text, in order; repeated ones too."""
    return tuple(claim for _, claim in _clauses(text) if _states(text, claim))


def pieces_of(text: str) -> tuple[Claim, ...]:
    """Every clause, also what states nothing: evidence may be a table or `accuracy: 0.91`."""
    return tuple(claim for _, claim in _clauses(text))


def category_of(statement: str) -> Category:
    statement = statement[:LONGEST]
    if _BENCHMARK.search(statement) and _DIGIT.search(statement):
        return "benchmark"
    if _SUPERLATIVE.search(statement):
        return "superlative"
    if _CODE.search(statement):
        return "code fact"
    return "quantity" if meaning(statement).quantities else "status"


def _clauses(text: str) -> Iterator[tuple[int, Claim]]:
    """(number of its segment, claim); subjects are carried along."""
    subject = ""
    for number, (start, end) in enumerate(segments(text)):
        for first, last in _split(text, start, end):
            raw = text[first:last]
            statement = " ".join(raw.split())
            tokens = list(TOKEN.finditer(statement))
            lowered = [token[0].lower() for token in tokens]
            verb = find_verb(lowered)
            if subject and first > start and opens_with_verb(lowered):
                statement = f"{subject} {statement}"
            elif subject and verb == 1 and lowered[0] in _PRONOUNS:
                statement = f"{subject} {statement[tokens[1].start() :]}"
            elif verb and not (verb == 1 and lowered[0] == "there"):
                subject = statement[: tokens[verb].start()].strip()
            yield number, Claim(raw, first, last, category_of(statement), statement)


def _split(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut where a conjunction joins two predicates; "France and Germany" stays whole."""
    cuts = [start]
    if end - start > SENTENCE:
        return [(start, end)]
    for join in _JOIN.finditer(text, start, end):
        left = _lowered(text[max(cuts[-1], join.start() - WINDOW) : join.start()])
        right = _lowered(text[join.end() : min(end, join.end() + WINDOW)])[:7]
        verb = find_verb(right)
        if find_verb(left) is not None and verb is not None and (join[0][0] == ";" or verb <= 5):
            cuts += [join.start(), join.end()]
    cuts.append(end)
    return [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True) if a < b]


def _lowered(text: str) -> list[str]:
    return [token[0].lower() for token in TOKEN.finditer(text)]


def _states(text: str, claim: Claim) -> bool:
    lowered = _lowered(claim.statement)
    verb = find_verb(lowered)
    if verb is None or verb == 0 or len(lowered) > 200 or (len(lowered) == 2 and lowered[1] in AUXILIARIES):
        return False
    if (
        claim.text.rstrip("\"')*] ").endswith("?")
        or text[claim.end : claim.end + 1] == "?"
        or _META.match(claim.text)
    ):
        return False
    return not _stuffed(lowered)


def _stuffed(lowered: list[str]) -> bool:
    """Words in a row and no sentence: hardly a function word, or the same few words again and again."""
    if len(lowered) < 8:
        return False
    small = sum(word in FUNCTION_WORDS or word in VERBS for word in lowered)
    return small < len(lowered) / 7 or len(set(lowered)) < len(lowered) * 0.4
