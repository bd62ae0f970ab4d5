"""Conversations to rows of ids, classes and labels, and rows to a batch.

Rendered once, tokenised once: every class and every label is read off the characters a token stands for.
Labels stand at their own token; a loss shifts them, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.padding import pad_right
from quietreasoning.data.spans.calls import Parsed
from quietreasoning.data.spans.classes import SURE, learned_tokens, painted, token_classes
from quietreasoning.data.spans.code import code_spans
from quietreasoning.data.spans.conversation import Conversation
from quietreasoning.data.spans.dialects import DIALECTS
from quietreasoning.data.spans.integration import integration_spans
from quietreasoning.data.spans.offsets import Offsets, tokenise
from quietreasoning.data.spans.render import Format, Rendered, Written
from quietreasoning.data.spans.span import Kind, Span, moved


@dataclass(frozen=True)
class SpanRow:
    """One conversation: T tokens with the characters they stand for."""

    text: str
    spans: tuple[Span, ...]  # in `text`; also those too unsure to give a class
    offsets: Offsets  # T pairs
    ids_T: NDArray[np.int32]
    classes_T: NDArray[np.int64]  # Kind
    learned_T: NDArray[np.bool_]

    @property
    def labels_T(self) -> NDArray[np.int64]:
        """The ids that are learned, at their own place; IGNORE elsewhere."""
        return np.where(self.learned_T, self.ids_T, IGNORE).astype(np.int64)


@dataclass(frozen=True)
class SpanBatch:
    """B rows, padded on the right with IGNORE."""

    ids_BT: Tensor
    labels_BT: Tensor
    classes_BT: Tensor


class SpanEncoder:
    """Renders in a format, tokenises with its tokenizer, and classifies. Nothing is ever cut.

    latent: text of a placeholder for a latent thought; its tokens are LATENT and no labels.
    context: most tokens that a row may have; more is refused.
    min_confidence: spans below it give no class.
    """

    def __init__(
        self,
        tokenizer: Any,
        format: Format,
        *,
        latent: str | None = None,
        context: int | None = None,
        min_confidence: float = SURE,
    ):
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token; set eos_token in its settings")
        self.tokenizer, self.format = tokenizer, format
        self.latent, self.context, self.min_confidence = latent, context, min_confidence

    def encode(self, conversation: Conversation, spans: Sequence[Span] = ()) -> SpanRow:
        """One row. spans: further ones, in the characters of the last learned turn's content.

        UserError where the format cannot place a turn or a span, a template's calls read back otherwise, a
        learned word is unknown to the tokenizer, or the row is longer than the context.
        """
        rendered = self.format.render(conversation)
        text = rendered.text
        found = list(self._placed(conversation, rendered, spans))
        for turn in rendered.written:
            found += self._turn_spans(conversation, turn, text, found)
        found += _latents(text, self.latent)
        ids, offsets = rendered.tokens or tokenise(self.tokenizer, text)
        kinds_C = painted(found, len(text), self.min_confidence)
        classes_T = token_classes(offsets, kinds_C)
        written = [(turn.start, turn.end) for turn in rendered.written]
        learned_T = learned_tokens(offsets, written, kinds_C)
        if not rendered.ends:
            ids, offsets = [*ids, self.tokenizer.eos_token_id], [*offsets, (len(text), len(text))]
            classes_T, learned_T = np.append(classes_T, Kind.OTHER), np.append(learned_T, True)
        order = sorted(found, key=lambda span: (span.start, span.end))
        row = SpanRow(text, tuple(order), offsets, np.array(ids, dtype=np.int32), classes_T, learned_T)
        self._check(row)
        return row

    def _turn_spans(
        self, conversation: Conversation, turn: Written, text: str, placed: Sequence[Span]
    ) -> list[Span]:
        """What one assistant turn holds: its calls, and outside of them and of `placed` its code and
        repeated results."""
        body = text[turn.start : turn.end]
        calls = self._calls(conversation, turn, body)
        prose = [
            *code_spans(body),
            *integration_spans(body, conversation.results_before(turn.index)),
        ]
        taken = [*moved(calls.spans, turn.start), *placed]
        free = (s for s in moved(prose, turn.start) if not any(s.overlaps(other) for other in taken))
        return [*moved(calls.spans, turn.start), *free]

    def _calls(self, conversation: Conversation, turn: Written, body: str) -> Parsed:
        wanted = conversation.turns[turn.index].calls
        if not wanted:
            return Parsed()
        spoken = [self.format.dialect] if self.format.dialect else [one() for one in DIALECTS.values()]
        readings = [one.parse(body) for one in spoken]
        for parsed in readings:  # calls come after the content, which may show some of its own
            if parsed.calls[-len(wanted) :] == wanted:
                return Parsed(parsed.found[-len(wanted) :])
        best = max(readings, key=lambda parsed: (len(parsed.calls), len(parsed.faults)))
        fault = f": {best.faults[0]}" if best.faults else ""
        raise UserError(
            f"turn {turn.index} calls {', '.join(call.name for call in wanted)}, but its text reads as "
            f"{', '.join(call.name for call in best.calls) or 'no call'} or with other arguments{fault}; "
            f"name the dialect in which the format writes calls: {', '.join(DIALECTS)}"
        )

    def _placed(
        self, conversation: Conversation, rendered: Rendered, spans: Sequence[Span]
    ) -> tuple[Span, ...]:
        if not spans:
            return ()
        turn = rendered.written[-1]
        content = conversation.turns[turn.index].content
        core = content.strip()
        at = rendered.text.find(core, turn.start, turn.end) if core else -1
        lead = len(content) - len(content.lstrip())
        inside = all(lead <= span.start and span.end <= lead + len(core) for span in spans)
        if at < 0 or not inside:
            raise UserError(f"the spans given with turn {turn.index} do not stand in its content as rendered")
        return moved((Span(s.start - lead, s.end - lead, s.kind, s.reason, s.confidence) for s in spans), at)

    def _check(self, row: SpanRow) -> None:
        unknown = self.tokenizer.unk_token_id
        bad = np.flatnonzero(row.learned_T & (row.ids_T == unknown)) if unknown is not None else ()
        if len(bad):
            start, end = row.offsets[bad[0]]
            raise UserError(
                f"the assistant's word {row.text[start:end]!r:.40} is unknown to this tokenizer; train it on "
                "this data, or use tokenizer.train=bpe"
            )
        if self.context is not None and len(row.ids_T) > self.context:
            raise UserError(
                f"a conversation has {len(row.ids_T)} tokens, the model's context is {self.context}; use a "
                "longer context, or drop such rows"
            )


def _latents(text: str, latent: str | None) -> Iterable[Span]:
    at = text.find(latent) if latent else -1
    while at >= 0:
        yield Span(at, at + len(latent), Kind.LATENT, "placeholder")
        at = text.find(latent, at + len(latent))


def collate(rows: Sequence[SpanRow]) -> SpanBatch:
    """Rows to one batch: ids, labels and classes, each [B, T] int64 and IGNORE beyond a row's end."""
    return SpanBatch(
        ids_BT=pad_right([row.ids_T for row in rows]),
        labels_BT=pad_right([row.labels_T for row in rows]),
        classes_BT=pad_right([row.classes_T for row in rows]).to(torch.int64),
    )
