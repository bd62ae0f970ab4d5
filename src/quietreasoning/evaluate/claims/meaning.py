"""What a short English sentence asserts, as words, numbers, direction, negation and doubt."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from quietreasoning.evaluate.claims.lexicon import (
    AUXILIARIES,
    COPULAS,
    FUNCTION_WORDS,
    HEDGES,
    IRREGULAR,
    NEGATIONS,
    NUMBER_WORDS,
    OPPOSITES,
    PLURAL_VERBS,
    RESTRICTIONS,
    SCALES,
    STOPWORDS,
    UNITS,
    VERBS,
)

TOKEN = re.compile(
    r"""(?P<currency>[$€£])?(?P<number>(?<![\w.,])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?)
        (?P<unit>%|[A-Za-zµ°]{1,3}(?:/[A-Za-z]{1,3})?)?(?![\w]|[.,]\d)
      |(?P<word>\w(?:[\w'’./:-]*\w)?(?:\(\))?)
      |(?P<percent>%)""",
    re.VERBOSE,
)
MAX_DIGITS = 60
_ANY_VERB = VERBS | PLURAL_VERBS
_OBJECTS = frozenset("the a an about its their his her no all any each every both up out".split())
_AFTER_VERBS = FUNCTION_WORDS - {"of", "and", "or"}
_MAY = re.compile(r"\bmay\b")
_FAILED_TO = re.compile(r"\b(?:fails?|failed|failing)\s+to\b", re.I)
_NOT_ONLY = re.compile(r"\bnot only\b", re.I)
_PER_CENT = re.compile(r"\bper\s?cent\b", re.I)
_SHARE = re.compile(r"(?:%|\bper\s?cent|\bone) of\b|\b\w{1,20} (?:out )?of (?:the |all |its )?\d", re.I)
_COMPARED = re.compile(r"\bthan\b|\b(?:north|south|east|west|before|after|above|below|ahead|behind)\b", re.I)


class Quantity(NamedTuple):
    """An exact number and what it counts: "%", "$", the stem of the next word, or ""."""

    value: Fraction
    unit: str


@dataclass(frozen=True)
class Meaning:
    """words: stems in order, without function words and numbers; opposites share a stem.

    subject, rest: those before and after the verb. names: words that must not be missing (capitalised, or
    code). anchors: numbers with the word before. directions: stem -> +1 or -1 for words with an opposite.
    restricted: "only", "some", "3 of 12" and the like, by which a sentence says less than without them.
    """

    words: tuple[str, ...]
    subject: frozenset[str]
    rest: frozenset[str]
    names: frozenset[str]
    quantities: frozenset[Quantity]
    anchors: frozenset[tuple[str, Quantity]]
    directions: frozenset[tuple[str, int]]
    restricted: frozenset[str]
    negated: bool
    hedged: bool
    copula: bool
    compared: bool

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two wordings of one statement that differ in function words, case or order alone."""
        return (self.subject, self.rest, self.quantities, self.directions, self.negated, self.hedged)


@lru_cache(maxsize=16_384)
def stem(word: str) -> str:
    """`Tests` -> `test`, `rising` -> `ris`; irregular forms by a list."""
    word = word.lower().replace("’", "'").removesuffix("()")
    word = word.removesuffix("'s").removesuffix("'")
    word = IRREGULAR.get(word, word)
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", "e"), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            if ending == "s" and word.endswith(("ss", "us", "is")):
                continue
            word = word[: -len(ending)] + instead
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


_DIRECTION = {
    stem(word): (stem(more.split()[0]), sign)
    for more, less in OPPOSITES
    for words, sign in ((more, 1), (less, -1))
    for word in words.split()
}


@lru_cache(maxsize=8192)
def meaning(text: str) -> Meaning:
    """Read one statement. Any text is read; what is no English gives words alone."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    hedged = bool(_MAY.search(text))
    plain = _FAILED_TO.sub(" not ", _NOT_ONLY.sub(" ", text))
    tokens = list(TOKEN.finditer(_PER_CENT.sub("%", plain)))
    # inside a sentence `None` is a value of code and denies nothing
    lowered = ["`none`" if n and token[0] == "None" else token[0].lower() for n, token in enumerate(tokens)]
    verb = find_verb(lowered)
    words, quantities, names, directions, anchors = [], [], set(), set(), set()
    before: set[str] = set()
    skip = -1
    for index, token in enumerate(tokens):
        word = lowered[index]
        hedged |= word in HEDGES
        value = _value(token, word)
        if value is not None:
            scaled, unit, skip = _scaled(value, token, lowered, index)
            quantities.append(Quantity(scaled, unit))
            anchors |= {(words[-1], quantities[-1])} if words else set()
            continue
        if index <= skip or word in STOPWORDS or word in NEGATIONS or word in HEDGES or word == "%":
            continue
        base = stem(word)
        if base in _DIRECTION:
            base, sign = _DIRECTION[base]
            directions.add((base, sign))
        words.append(base)
        if token[0][:1].isupper() or re.search(r"[\d_.()/]", token[0]):
            names.add(base)
        if verb is not None and index < verb:
            before.add(base)
    restricted = RESTRICTIONS.intersection(lowered) | ({"share"} if _SHARE.search(text) else set())
    return Meaning(
        tuple(words), frozenset(before), frozenset(words) - before, frozenset(names), frozenset(quantities),
        frozenset(anchors), frozenset(directions), frozenset(restricted),
        sum(word in NEGATIONS for word in lowered) % 2 == 1, hedged,
        verb is not None and lowered[verb] in COPULAS, bool(_COMPARED.search(text)),
    )  # fmt: skip


def find_verb(lowered: list[str]) -> int | None:
    """Index of the first finite verb: one of a list, or a regular form where a verb may stand."""
    for index, word in enumerate(lowered):
        after = lowered[index + 1] if index + 1 < len(lowered) else ""
        plural = word.endswith("s") and not word.endswith("ss")
        if index and word in PLURAL_VERBS and lowered[index - 1].endswith("s"):
            return index
        if word in VERBS:
            # "Costs rise": a plural noun that looks like a verb
            if index == 0 and plural and word not in AUXILIARIES and after in _ANY_VERB:
                continue
            return index
        regular = index and len(word) > 4 and word.isalpha() and (word.endswith("ed") or plural)
        last = index == len(lowered) - 1 and word.endswith("ed")
        if regular and (last or after in _AFTER_VERBS or after[:1].isdigit()):
            if not any(other in VERBS for other in lowered[index + 1 : index + 3]):
                return index
    return None


def opens_with_verb(lowered: list[str]) -> bool:
    """Whether a clause goes on with a verb of its own: "and carries about 90 cars"."""
    word, after = (*lowered, "", "")[:2]
    regular = len(word) > 4 and word.isalpha() and word.endswith(("s", "ed"))
    return word in VERBS or (regular and (after in _OBJECTS or after[:1].isdigit()))


def _value(token: re.Match[str], word: str) -> Fraction | None:
    if token["number"] is None:
        return Fraction(NUMBER_WORDS[word]) if word in NUMBER_WORDS else None
    if len(token["number"]) > MAX_DIGITS:
        return None
    return Fraction(token["number"].replace(",", "").replace("−", "-"))


def _scaled(
    value: Fraction, token: re.Match[str], lowered: list[str], index: int
) -> tuple[Fraction, str, int]:
    """With "million" and the like multiplied in: value, unit, and the last index that was used up."""
    while index + 1 < len(lowered) and lowered[index + 1] in SCALES:
        index += 1
        value *= SCALES[lowered[index]]
    if token["number"] is not None and (token["currency"] or token["unit"]):
        return value, token["currency"] or token["unit"].lower(), index
    after = lowered[index + 1] if index + 1 < len(lowered) else ""
    if after in UNITS:
        return value, UNITS[after], index + 1
    return value, stem(after) if after.isalpha() and after not in FUNCTION_WORDS else "", index
