"""Which tokens a grammar allows at each token of an answer that is known, or at the next one of one that is
being written.

Shapes: A tokens of an answer, V tokens of the vocabulary. Bits are packed as `Vocabulary.bits` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quietreasoning.data.spans.call_grammar import CallGrammar
from quietreasoning.data.spans.offsets import Offsets
from quietreasoning.data.spans.vocabulary import Vocabulary, unpacked


class Allowed(NamedTuple):
    """What a grammar says at each token: what may stand there after the tokens before it."""

    bits_AW: NDArray[np.uint8]  # W = ceil(V / 8): id v is bit v % 8, from the highest, of byte v // 8
    said_A: NDArray[np.bool_]  # whether it says anything; elsewhere the bits are 0


def allowed_tokens(
    grammar: CallGrammar,
    vocabulary: Vocabulary,
    text: str,
    ids: Sequence[int],
    offsets: Offsets,
    *,
    eos: int,
    start: int = 0,
    end: int | None = None,
) -> Allowed:
    """The ids that may stand at each token of a text, the end of sequence `eos` among them where the answer
    may end.

    ids, offsets: A tokens and the characters of `text` that each stands for. start, end: the characters that
    the answer fills; the first token that begins at `end` is where it ends. The grammar says nothing before
    and after, where the text is free, once the text has left the grammar, and where a token is none that the
    vocabulary could write there, such as a part of a character. Wherever it speaks it allows the token.
    ValueError where lengths differ.
    """
    if len(ids) != len(offsets):
        raise ValueError(f"{len(ids)} ids have {len(offsets)} offsets")
    end = len(text) if end is None else end
    bits_AW = np.zeros((len(ids), (len(vocabulary) + 7) // 8), dtype=np.uint8)
    said_A = np.zeros(len(ids), dtype=bool)
    state, at = grammar, start  # after the characters before `at`
    for token, (id, (left, right)) in enumerate(zip(ids, offsets, strict=True)):
        if right <= start and left < start:
            continue
        if left >= start and state.inside:
            row_W = _row(state, vocabulary, eos)
            if row_W[id // 8] & _bit(id):
                bits_AW[token], said_A[token] = row_W, True
        state = state.feed(text[at : min(right, end)])
        at = max(at, right)
        if left >= end or state is None:
            break
    return Allowed(bits_AW, said_A)


def _bit(id: int) -> int:
    return 128 >> id % 8


def _row(state: CallGrammar, vocabulary: Vocabulary, eos: int) -> NDArray[np.uint8]:
    row_W = vocabulary.bits(state)
    if state.complete:
        row_W = row_W.copy()
        row_W[eos // 8] |= _bit(eos)
    return row_W


class CallPermit:
    """`contract.Permit` for a batch: each row is written under its own grammar, or freely where it has none.

    Rows are those of the prompts, tokens what a row has written after the answer prefix. One object serves
    one call of `generate`.
    """

    def __init__(self, grammars: Sequence[CallGrammar | None], vocabulary: Vocabulary, eos: int):
        self._grammars, self._vocabulary, self._eos = grammars, vocabulary, eos
        self._wordless_V = np.array([text is None for text in vocabulary.texts], dtype=bool)
        self._states: dict[int, tuple[int, CallGrammar]] = {}  # row -> tokens that have been read, state

    def __call__(self, row: int, tokens: Sequence[int], logits_V: Tensor | None = None) -> Tensor | None:
        """bool [V] of the ids that may come next; None where all may."""
        grammar = self._grammars[row]
        if grammar is None:
            return None
        count, state = self._states.get(row, (0, grammar))
        if count > len(tokens):
            count, state = 0, grammar
        for id in tokens[count:]:
            # what has no text is a special token or a part of a character, and stands in free text alone
            state = state.feed(self._vocabulary.texts[id] or "\N{REPLACEMENT CHARACTER}")
            if state is None:
                raise ValueError(
                    f"row {row} has left the grammar at token {id}: its tokens were not permitted"
                )
        self._states[row] = len(tokens), state
        if state.stir == "":
            return None
        row_V = unpacked(_row(state, self._vocabulary, self._eos), len(self._vocabulary))
        if not state.inside:  # free text may hold them; what begins a call has been read above
            row_V |= self._wordless_V
        return torch.from_numpy(row_V)
