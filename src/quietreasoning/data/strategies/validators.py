"""Is this a thought of its kind? Pure functions on the text of a response, tags kept.

A response is one `<think> ... </think>` and then an answer; within, every section opens with a tag. What a
strategy must show beyond its tags is looked for in plain words, in their order. Validators judge structure:
whether the reasoning is right is the scorer's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from quietreasoning.data.example import Example
from quietreasoning.data.strategies.forms import (
    BAYESIAN,
    CHAIN,
    DOUBT,
    EXPERT,
    FALSIFICATION,
    MECE,
    MULTIDOMAIN,
    ORTHOGONAL,
    STRATEGIES,
)
from quietreasoning.data.strategies.lexicon import FIELD_TERMS
from quietreasoning.data.tags import CLOSE, OPEN, TAGS

_TAG = re.compile(r"</?[a-z]+>")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:\s*/\s*[1-9]\d*)?")
_BRANCH = re.compile(r"(?:^|[.;\n])\s*(?:(?:case|branch|group)\s|[-*]\s|\d+[.)]\s)\s*([^:.;\n]+?)\s*:", re.M)
_WHOLE = re.compile(
    r"\b(?:nothing|nobody|none|no one|no other)\b[^.]*\b(?:missing|left|remains?|else)\b|\bexhausti\w+"
    r"|\b(?:cover|covers)\b[^.]*\b(?:all|every|everything)\b"
)
_AGAINST = r"(?:fails?|false|wrong|refute[sd]?|disprove[sdn]?)"
_CONDITION = re.compile(rf"\b{_AGAINST}\b[^.\n]*\bif\b\s+\w+|\bif\b\s+\w+[^.\n]*\b{_AGAINST}\b")
_CHECK = re.compile(r"\b(?:check|checked|test|tested|look|search)\b")
_OUTCOME = re.compile(r"\b(?:refutes?|refuted|holds?|stands?|survives?|survived|fails)\b")
_ERROR = re.compile(r"\b(?:error|mistake|slip)\b\W+\w+")
_SETTLED = re.compile(r"\b(?:kept|keep|corrected|correction|stands|revised)\b")
_ANALOGY = re.compile(r"\b(?:like|similar to|analogous to)\b(?:\s+\S+){1,12}?\s+in\s+\w+")
_BACK = re.compile(r"\b(?:mapped back|mapping back|map back|back to)\b(?:\W+\w+){2}")
_FIELD = re.compile(r"\s*(?:as an? )?([a-z]+(?: [a-z]+){0,2})\s*[:,]\s*(.*)", re.S)
_SYNTHESIS = re.compile(r"\b(?:together|both|combined|combine|combining|synthesis)\b")
_OPPOSED = ({"yes", "true"}, {"no", "false"})
_SIDE = re.compile(r"\b(?:yes|true|no|false)\b")


@dataclass(frozen=True)
class Verdict:
    """Whether a text is what it should be; `reason` says why not."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class Appropriate:
    """Share of responses that fit their question in kind and form, beside what shuffled annotations give."""

    share: float
    chance: float
    n: int


Section = tuple[str, str]  # tag, the text up to the next one
FINE = Verdict(True)


def sections(text: str) -> list[Section] | str:
    """The tagged sections of a response, in lower case; or what is wrong with its tags."""
    text = text.strip()
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return f"{text.count(OPEN)} {OPEN} and {text.count(CLOSE)} {CLOSE}, not one of each"
    if not text.startswith(OPEN):
        return f"text before {OPEN}"
    inner, _, after = text.removeprefix(OPEN).partition(CLOSE)
    if not after.strip(" \n#.:"):
        return f"no answer after {CLOSE}"
    if _TAG.search(after):
        return f"a tag after {CLOSE}"
    strange = [tag for tag in _TAG.findall(inner) if tag not in TAGS]
    if strange:
        return f"{strange[0]} is no tag of a thought"
    tags = _TAG.findall(inner)
    before, *bodies = _TAG.split(inner.lower())
    if before.strip() or not tags:
        return "the thought does not open with a tag" if before.strip() else "the thought is empty"
    if not all(re.search(r"\w", body) for body in bodies):
        return "a section is empty"
    return list(zip(tags, bodies, strict=True))


def strategy_of(text: str) -> str | None:
    """The strategy that the tags choose, well carried out or not; None where they choose none."""
    found = sections(text)
    return None if isinstance(found, str) else _chosen(found)


def _chosen(found: Sequence[Section]) -> str | None:
    tags = [tag for tag, _ in found]
    alone = {"<step>": CHAIN, "<mece>": MECE, "<falsify>": FALSIFICATION, "<doubt>": DOUBT}
    kinds = set(tags)
    if len(kinds) == 1 and tags[0] in alone:
        return alone[tags[0]]
    if kinds == {"<expert>"}:
        return EXPERT if len(tags) == 1 else MULTIDOMAIN
    if kinds == {"<expert>", "<reason>"}:
        return MULTIDOMAIN
    if kinds == {"<reason>"}:
        return BAYESIAN if re.search(r"\b(?:prior|evidence|posterior)\b", _all(found)) else ORTHOGONAL
    return None


def validate(text: str, strategy: str | None = None) -> Verdict:
    """Whether a response thinks by `strategy`, or by the one that its tags choose where none is given."""
    found = sections(text)
    if isinstance(found, str):
        return Verdict(False, found)
    chosen = _chosen(found)
    if chosen is None:
        return Verdict(False, "its tags belong to no one strategy")
    if strategy is not None and chosen != strategy:
        return Verdict(False, f"its tags are those of {chosen}, not of {strategy}")
    return VALIDATORS[chosen](found)


def _chain(found: Sequence[Section]) -> Verdict:
    said = [" ".join(body.split()) for _, body in found]
    return _rule(len(set(said)) >= 2, "fewer than two different steps")


def _mece(found: Sequence[Section]) -> Verdict:
    text = _all(found)
    names = [frozenset(name.split()) for name in _BRANCH.findall(text)]
    if len(names) < 2:
        return Verdict(False, "fewer than two branches, written `case NAME :`")
    if any(a <= b for i, a in enumerate(names) for j, b in enumerate(names) if i != j):
        return Verdict(False, "branches overlap in their wording")
    return _rule(bool(_WHOLE.search(text)), "no statement that nothing is missing")


def _falsification(found: Sequence[Section]) -> Verdict:
    parts = ((_CONDITION, "condition that would refute"), (_CHECK, "check of it"), (_OUTCOME, "outcome"))
    return _in_order(_all(found), parts)


def _doubt(found: Sequence[Section]) -> Verdict:
    parts = ((_ERROR, "possible error named"), (_SETTLED, "decision to keep or correct"))
    return _in_order(_all(found), parts)


def _bayesian(found: Sequence[Section]) -> Verdict:
    parts = [
        (re.compile(rf"\b(?:{word})\b[^.\n]*\w"), f"{word.partition('|')[0]}")
        for word in ("prior", "evidence", "updated|update|posterior")
    ]
    return _in_order(_all(found), parts)


def _orthogonal(found: Sequence[Section]) -> Verdict:
    parts = ((_ANALOGY, "analogy `like ... in FIELD`"), (_BACK, "mapping back"))
    return _in_order(_all(found), parts)


def _expert(found: Sequence[Section]) -> Verdict:
    return _speaks(found[0][1])[1]


def _multidomain(found: Sequence[Section]) -> Verdict:
    experts = [_speaks(body) for tag, body in found if tag == "<expert>"]
    for _, verdict in experts:
        if not verdict:
            return verdict
    if len({field for field, _ in experts}) < 2:
        return Verdict(False, "fewer than two fields")
    tag, last = found[-1]
    if tag != "<reason>" or not _SYNTHESIS.search(last):
        return Verdict(False, "no synthesis in a closing <reason>")
    return FINE


def _speaks(body: str) -> tuple[str, Verdict]:
    """(field, verdict) of one expert: `FIELD : a step`, where known fields must speak of their own."""
    match = _FIELD.match(body)
    if match is None:
        return "", Verdict(False, "no field is named, as in `physics : ...`")
    field, rest = match[1], match[2]
    words = re.findall(r"[a-z]+", rest)
    if len(words) < 3:
        return field, Verdict(False, f"{field} says too little")
    terms = FIELD_TERMS.get(field)
    if terms is not None and not terms & set(words):
        return field, Verdict(False, f"nothing of {field} is said")
    return field, FINE


def _in_order(text: str, parts: Sequence[tuple[re.Pattern, str]]) -> Verdict:
    at = 0
    for pattern, name in parts:
        match = pattern.search(text, at)
        if match is None:
            return Verdict(False, f"no {name}" + (" after what must come before" if at else ""))
        at = match.start() + 1
    return FINE


def _all(found: Sequence[Section]) -> str:
    return "\n".join(body for _, body in found)


VALIDATORS: dict[str, Callable[[Sequence[Section]], Verdict]] = {
    CHAIN: _chain,
    MECE: _mece,
    FALSIFICATION: _falsification,
    EXPERT: _expert,
    ORTHOGONAL: _orthogonal,
    DOUBT: _doubt,
    BAYESIAN: _bayesian,
    MULTIDOMAIN: _multidomain,
}
assert tuple(VALIDATORS) == STRATEGIES


def usage(texts: Sequence[str]) -> float:
    """Share of responses with `<think>`."""
    return sum(OPEN in text for text in texts) / len(texts)


def appropriate(texts: Sequence[str], examples: Sequence[Example]) -> Appropriate:
    """Whether each response chose a strategy that its question accepts, and passes its validator.

    chance: the mean of the share over all ways to shuffle `meta["acceptable"]` among the examples.
    """
    sets = [frozenset(example.meta["acceptable"]) for example in examples]
    chosen = [strategy_of(text) if validate(text) else None for text in texts]
    hits = sum(choice in accepted for choice, accepted in zip(chosen, sets, strict=True))
    by_chance = sum(choice in accepted for choice in chosen for accepted in sets)
    n = len(texts)
    return Appropriate(hits / n, by_chance / n**2, n)


def verified(thought: str, answer: str) -> Verdict:
    """Whether the last statement of a thought bears the answer out; a number, a yes or no, or a phrase."""
    inner = " ".join(_TAG.sub(" ", thought).lower().split())
    wanted = " ".join(answer.lower().split()).rstrip(".").rstrip()
    if not wanted:
        return Verdict(False, "no answer")
    if _NUMBER.fullmatch(wanted):
        said = [match[0] for match in _NUMBER.finditer(inner)]
        last = said[-1] if said else "no number"
        return _rule(bool(said) and _value(last) == _value(wanted), _contradicts(wanted, last))
    side = next((side for side in _OPPOSED if wanted in side), None)
    if side:
        last = (_SIDE.findall(inner) or ["neither yes nor no"])[-1]
        return _rule(last in side, _contradicts(wanted, last))
    parts = [part for part in re.split(r"[.;]", inner) if part.strip()]
    found = parts and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", parts[-1])
    return _rule(bool(found), _contradicts(wanted, parts[-1].strip() if parts else "nothing"))


def _contradicts(answer: str, last: str) -> str:
    return f"the answer is '{answer:.40}', but the thought ends with '{last:.60}'"


def _rule(ok: bool, reason: str) -> Verdict:
    return FINE if ok else Verdict(False, reason)


def _value(written: str) -> Fraction:
    above, _, below = written.replace(" ", "").partition("/")
    return Fraction(above) / Fraction(below or 1)
