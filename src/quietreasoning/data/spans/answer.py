"""The classes of an answer's tokens: what in it is a call, what repeats a tool's result, what is code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietreasoning.config import UserError
from quietreasoning.contract import Kind
from quietreasoning.data.config import SpanFormat
from quietreasoning.data.example import Example
from quietreasoning.data.spans.calls import Call, Parsed
from quietreasoning.data.spans.classes import painted, token_classes
from quietreasoning.data.spans.code import code_spans
from quietreasoning.data.spans.dialects import DIALECTS, parse_any
from quietreasoning.data.spans.integration import integration_spans
from quietreasoning.data.spans.offsets import tokenise
from quietreasoning.data.spans.span import Span, moved


def answer_spans(example: Example, config: SpanFormat) -> tuple[Span, ...]:
    """Spans in the characters of the answer: its calls, and outside of them code and repeated results.

    `meta["spans"]`, where a task gives them, are taken as they are and leave no room for others;
    `meta["calls"]` are the calls that it must hold; `meta["result"]` are the results it has seen.
    UserError where the text reads as other calls than those.
    """
    text, meta = example.answer, example.meta
    parsed = parse_any(text) if config.dialect == "any" else DIALECTS[config.dialect]().parse(text)
    if meta.get("kind") != "answer":
        _check(example, parsed, meta.get("calls"))
    given = tuple(meta.get("spans", ()))
    taken = given + _free(parsed.spans, given)
    results = meta.get("result", ()) if not parsed.found else ()
    prose = (*code_spans(text), *integration_spans(text, results, hints=False))
    return tuple(sorted((*taken, *_free(prose, taken)), key=lambda span: (span.start, span.end)))


class AnswerReader:
    """From examples to what their answers' tokens are."""

    def __init__(self, tokenizer: Any, config: SpanFormat):
        self.tokenizer, self.config = tokenizer, config

    def read(self, example: Example, before: str = " ") -> NDArray[np.int64]:
        """classes_A (Kind) of the tokens of `before` and the answer, and of the end of sequence."""
        text = before + example.answer
        _, offsets = tokenise(self.tokenizer, text)
        spans = moved(answer_spans(example, self.config), len(before))
        return np.append(token_classes(offsets, painted(spans, len(text))), Kind.OTHER)


def _free(spans: Iterable[Span], taken: Sequence[Span]) -> tuple[Span, ...]:
    return tuple(span for span in spans if not any(span.overlaps(other) for other in taken))


def _check(example: Example, parsed: Parsed, calls: Sequence[Mapping[str, Any]] | None) -> None:
    if calls is None:
        return
    wanted = tuple(Call(call["name"], call["arguments"]) for call in calls)
    if parsed.calls != wanted:
        fault = f": {parsed.faults[0]}" if parsed.faults else ""
        raise UserError(
            f"example {example.id}: its answer reads as {_names(parsed.calls)}, its row says "
            f"{_names(wanted)}{fault}; mend the row, or set data.format.spans.dialect to how it writes calls"
        )


def _names(calls: Sequence[Call]) -> str:
    return ", ".join(call.name for call in calls) or "no call"
