"""The classes of an answer's tokens: what in it is a call, what repeats a tool's result, what is code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.data.config import SpanFormat
from quietreasoning.data.example import Example
from quietreasoning.data.padding import pad_right
from quietreasoning.data.spans.allowed import allowed_tokens
from quietreasoning.data.spans.call_grammar import CallGrammar
from quietreasoning.data.spans.calls import Call, Parsed
from quietreasoning.data.spans.classes import painted, token_classes
from quietreasoning.data.spans.code import code_spans
from quietreasoning.data.spans.dialects import DIALECTS, parse_any
from quietreasoning.data.spans.direct_call import direct_calls
from quietreasoning.data.spans.integration import integration_spans
from quietreasoning.data.spans.offsets import tokenise
from quietreasoning.data.spans.span import Span, moved
from quietreasoning.data.spans.vocabulary import Vocabulary
from quietreasoning.kinds import Kind


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


class AnswerTokens(NamedTuple):
    """What the A tokens of an answer are, its end of sequence among them."""

    classes_A: NDArray[np.int64]  # Kind
    allowed_AW: NDArray[np.uint8] | None  # packed bits, 0 where the grammar says nothing; None without it


class AnswerReader:
    """From examples to what their answers' tokens are."""

    def __init__(self, tokenizer: Any, config: SpanFormat):
        self.tokenizer, self.config = tokenizer, config

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @cached_property
    def openers(self) -> tuple[int, ...]:
        """The tokens that begin a call, alone or as the first of several, behind a space, a new line or
        nothing; none where any dialect may be spoken."""
        if self.config.dialect == "any":
            return ()
        write, found = DIALECTS[self.config.dialect]().write, set()
        for calls in ([Call("f")], [Call("f"), Call("f")]):
            for spaced in (False, True):
                for before in ("", " ", "\n"):
                    text = before + write(calls, spaced=spaced)
                    ids, offsets = tokenise(self.tokenizer, text)
                    found.add(next(id for id, (a, b) in zip(ids, offsets, strict=True) if text[a:b].strip()))
        return tuple(sorted(found - {self.tokenizer.unk_token_id}))

    def _program_is_due(self, example: Example, spans: Sequence[Span]) -> bool:
        """Whether calls one by one were the wrong way to answer."""
        if self.config.direct_calls is None:
            return False
        said = example.meta.get("metadata", {}).get("code_mode")
        calls = sum(span.kind is Kind.TOOL_NAME for span in spans)
        return bool(said) if isinstance(said, bool) else calls >= self.config.direct_calls

    def read(self, example: Example, before: str = " ") -> AnswerTokens:
        """The tokens of an answer behind the text `before`. UserError as `answer_spans`."""
        text = before + example.answer
        ids, offsets = tokenise(self.tokenizer, text)
        classes_A = self._classes(example, text, offsets)
        if not self.config.grammar:
            return AnswerTokens(classes_A, None)
        eos, tools = self.tokenizer.eos_token_id, example.meta.get("tools", ())
        if not tools:
            return AnswerTokens(
                classes_A, np.zeros((len(ids) + 1, (len(self.vocabulary) + 7) // 8), np.uint8)
            )
        found = allowed_tokens(
            CallGrammar.start(tools, dialect=self.config.dialect),
            self.vocabulary,
            text,
            [*ids, eos],
            [*offsets, (len(text), len(text))],
            eos=eos,
            start=len(before),
        )
        return AnswerTokens(classes_A, found.bits_AW)

    def read_rejected(self, example: Example, before: str = " ") -> NDArray[np.int64]:
        """The classes of the rejected answer's tokens behind the text `before`, end of sequence included."""
        meta = {key: value for key, value in example.meta.items() if key not in ("calls", "spans")}
        other = replace(example, answer=example.rejected, meta=meta)
        text = before + other.answer
        return self._classes(other, text, tokenise(self.tokenizer, text)[1])

    def _classes(self, example: Example, text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        spans = moved(answer_spans(example, self.config), len(text) - len(example.answer))
        if self._program_is_due(example, spans):
            spans = direct_calls(spans, text)
        return np.append(token_classes(offsets, painted(spans, len(text))), Kind.OTHER)


def padded(rows: Sequence[AnswerTokens | None]) -> dict[str, Tensor]:
    """The fields of a Batch that say what answer tokens are; nothing where that is not known."""
    if rows[0] is None:
        return {}
    found = {"classes_BA": pad_right([row.classes_A for row in rows])}
    if rows[0].allowed_AW is not None:
        bits = [torch.from_numpy(row.allowed_AW) for row in rows]
        found["allowed_BAW"] = torch.nn.utils.rnn.pad_sequence(bits, batch_first=True)
    return found


def _free(spans: Iterable[Span], taken: Sequence[Span]) -> tuple[Span, ...]:
    return tuple(span for span in spans if not any(span.overlaps(other) for other in taken))


def _check(example: Example, parsed: Parsed, calls: Sequence[Mapping[str, Any]] | None) -> None:
    if calls is None:
        return
    wanted = tuple(Call(call["name"], call["arguments"]) for call in calls)
    if parsed.calls != wanted:
        fault = f": {parsed.faults[0]}" if parsed.faults else ""
        if _names(parsed.calls) == _names(wanted):
            fault = " with other arguments" + fault
        raise UserError(
            f"example {example.id}: its answer reads as {_names(parsed.calls)}, its row says "
            f"{_names(wanted)}{fault}; mend the row, or set data.format.spans.dialect to how it writes calls"
        )


def _names(calls: Sequence[Call]) -> str:
    return ", ".join(call.name for call in calls) or "no call"
