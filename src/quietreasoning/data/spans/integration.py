"""Where an answer repeats the values of tool results.

Values are the leaves of each result, read as JSON where it is JSON. What matches:
- numbers by value, however they are written: 1,200 = 1200 = 1200.0 = 1.2e3; a text that is nothing but a
  number counts as one. A minus counts as a sign at the start of a word only. No rounding, no units, no words.
- texts as a whole, whatever their case and white space, between word borders.
- numbers inside a longer text of a result, with less confidence.
Trivial values match nothing: true, false, null, numbers of one digit, texts of fewer than three letters and
digits, and the words in TRIVIAL. Where matches overlap the longest stays. Lead-in phrases mark any prose, so
they are hints of low confidence: token classes leave them out unless asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from quietreasoning.data.spans.span import Kind, Span

TRIVIAL = frozenset("true false null none nan yes not found success error unknown the and".split())
LEAD_INS = (
    "according to",
    "based on",
    "the result",
    "the results show",
    "i found",
    "found",
    "the tool returned",
    "returned",
    "as shown",
)
VALUE, INSIDE, HINT = 1.0, 0.8, 0.2  # confidence: a whole value, a number within one, a lead-in
_NUMBER = re.compile(  # a sign at the start of a word; not inside a word or a longer number
    r"(?:(?<![\w.,)\]])[-−+])?(?<![\w.])(?<!\d,)"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?(?!\d|[.,]\d)"
)


def result_leaves(result: Any, path: str = "result") -> Iterator[tuple[str, Any]]:
    """(path, value) of each leaf of a tool result; text that is JSON is read as JSON."""
    if isinstance(result, str):
        try:
            inner = json.loads(result)
        except (ValueError, RecursionError):
            inner = None
        if isinstance(inner, dict | list):
            result = inner
    if isinstance(result, dict):
        for key, value in result.items():
            yield from result_leaves(value, f"{path}.{key}")
    elif isinstance(result, list | tuple):
        for index, value in enumerate(result):
            yield from result_leaves(value, f"{path}[{index}]")
    else:
        yield path, result


def number_of(written: str) -> Decimal | None:
    """The number that a text is, if it is nothing but one."""
    text = written.strip()
    return _decimal(text) if _NUMBER.fullmatch(text) else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("−", "-")).normalize() + 0  # -0 is 0
    except ArithmeticError:  # an exponent beyond all bounds
        return None


def _trivial_number(number: Decimal) -> bool:
    return number == int(number) and abs(number) < 10 if abs(number) < 1000 else False


def trivial(value: Any) -> bool:
    """Whether a value is too common to say where it comes from."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        number = _decimal(repr(value))
        return number is None or not number.is_finite() or _trivial_number(number)
    number = number_of(value)
    if number is not None:
        return _trivial_number(number)
    return sum(map(str.isalnum, value)) < 3 or value.strip().casefold() in TRIVIAL


def integration_spans(answer: str, results: Sequence[Any], *, hints: bool = True) -> tuple[Span, ...]:
    """INTEGRATION spans of an answer, in order, by the rules above.

    results: tool results, plain values or text. Without results there is nothing to repeat, nor a hint.
    """
    numbers, texts = _wanted(results)
    matches = list(_number_matches(answer, numbers))
    for value, path in texts.items():
        pattern = r"\s+".join(map(re.escape, value.split()))
        for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", answer, re.IGNORECASE):
            matches.append(Span(*match.span(), Kind.INTEGRATION, f"value of {path}", VALUE))
    if hints and results:
        matches += _hints(answer)
    return _longest(matches)


def _wanted(results: Sequence[Any]) -> tuple[dict[Decimal, tuple[str, float]], dict[str, str]]:
    """The values to look for: number -> (path, confidence), text -> path."""
    numbers: dict[Decimal, tuple[str, float]] = {}
    texts: dict[str, str] = {}
    for index, result in enumerate(results):
        for path, value in result_leaves(result, f"result {index}"):
            if trivial(value) and not (isinstance(value, str) and number_of(value) is None):
                continue
            number = number_of(value) if isinstance(value, str) else _decimal(repr(value))
            if number is not None:
                if numbers.get(number, ("", 0.0))[1] < VALUE:
                    numbers[number] = (path, VALUE)
                continue
            if not trivial(value):
                texts.setdefault(value, path)
            for match in _NUMBER.finditer(value):
                number = _decimal(match.group())
                if number is not None and not _trivial_number(number):
                    numbers.setdefault(number, (f"{path}, inside", INSIDE))
    return numbers, texts


def _number_matches(answer: str, numbers: dict[Decimal, tuple[str, float]]) -> Iterator[Span]:
    for match in _NUMBER.finditer(answer):
        number = _decimal(match.group())
        if number in numbers:
            path, confidence = numbers[number]
            yield Span(*match.span(), Kind.INTEGRATION, f"value of {path}", confidence)


def _hints(answer: str) -> Iterator[Span]:
    for phrase in LEAD_INS:
        for match in re.finditer(rf"\b{phrase}\b", answer, re.IGNORECASE):
            yield Span(*match.span(), Kind.INTEGRATION, "lead-in", HINT)


def _longest(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Of spans that overlap, the surer one, then the longer one, then the first."""
    kept: list[Span] = []
    for span in sorted(
        spans, key=lambda s: (-(s.confidence > HINT), s.start - s.end, -s.confidence, s.start)
    ):
        if not any(span.overlaps(other) for other in kept):
            kept.append(span)
    return tuple(sorted(kept, key=lambda span: span.start))
