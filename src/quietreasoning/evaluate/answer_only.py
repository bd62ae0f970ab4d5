"""Answer-only decoding, for every method that takes a permit: phrases that show working become less likely in
the answer, and it ends at a stop text.

The bias acts on one set of tokens, those that would complete a phrase of the lexicon: on a word of one token
always, on the last token of a phrase where its others stand already. It is a penalty and no ban: a model that
has little else to say says it all the same. Thoughts and a chain before the answer prefix are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.contract import Method, Permit
from quietreasoning.evaluate.rationale import spellings

LOOK_BACK = 8  # tokens a character may take, and more: how far back a stop text is looked for


def completing(tokenizer: Any, lexicon: Iterable[str]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Tokens written last -> those that would then complete a phrase; () stands for any.

    Phrases are spelled as `spellings` says, and cut into tokens as when they stand alone; one that the
    tokenizer does not know in full is left out.
    """
    texts = [text for entry in lexicon for text in spellings(entry)]
    found: dict[tuple[int, ...], set[int]] = {}
    unknown = {tokenizer.unk_token_id, tokenizer.eos_token_id} - {None}
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ():
        if ids and not unknown & set(ids):
            found.setdefault(tuple(ids[:-1]), set()).add(ids[-1])
    return {before: tuple(sorted(last)) for before, last in found.items()}


class AnswerOnly:
    """What an evaluation holds answers to.

    bias: taken off the logits, 0 for none; stop: texts that end an answer. UserError where there is a bias
    and no token that it could act on.
    """

    def __init__(
        self, tokenizer: Any, lexicon: Sequence[str] = (), bias: float = 0.0, stop: Sequence[str] = ()
    ):
        self._tokenizer, self.bias, self.stop = tokenizer, bias, tuple(stop)
        self.completing = completing(tokenizer, lexicon) if bias else {}
        if bias and not self.completing:
            raise UserError(
                f"eval.rationale_bias={bias} has nothing to act on: this tokenizer can write no phrase of "
                "eval.lexicon; name words that it knows, or set eval.rationale_bias=0"
            )
        self._longest = max(map(len, self.completing), default=0)

    def __bool__(self) -> bool:
        return bool(self.bias or self.stop)

    def permit(self, method: Method, examples: Sequence[int] = ()) -> Permit:
        """For calls of `method.generate`."""
        size, end = method.backbone.vocab_size, max((len(text) for text in self.stop), default=0) + LOOK_BACK
        always_V = self._penalty(size, [()])

        def asked(row: int, tokens: Sequence[int], logits_V: Tensor) -> Tensor | None:
            if self.stop and tokens and self._stopped(self._decode(tokens[-end:])) is not None:
                return torch.zeros(size, dtype=torch.bool)
            tails = [tuple(tokens[len(tokens) - n :]) for n in range(1, min(self._longest, len(tokens)) + 1)]
            tails = [tail for tail in tails if tail in self.completing]
            return self._penalty(size, [(), *tails]) if tails else always_V

        return asked

    def _penalty(self, size: int, tails: Sequence[tuple[int, ...]]) -> Tensor | None:
        ids = [id for tail in tails for id in self.completing.get(tail, ())]
        if not ids:
            return None
        bias_V = torch.zeros(size)
        bias_V[ids] = -self.bias
        return bias_V

    def cut(self, ids: Sequence[int]) -> list[int]:
        """An answer without a stop text and what follows; a token that holds both stays."""
        ids = list(ids)
        if not self.stop or self._stopped(self._decode(ids)) is None:
            return ids
        ends = next(n for n in range(1, len(ids) + 1) if self._stopped(self._decode(ids[:n])) is not None)
        text = self._decode(ids[:ends])
        before = text[: self._stopped(text)]
        return next(ids[:n] for n in range(ends + 1) if self._decode(ids[:n]).startswith(before))

    def _stopped(self, text: str) -> int | None:
        """Where the first stop text begins."""
        places = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        return min(places, default=None)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def text(self, decode: Callable[[list[int]], str]) -> Callable[[list[int]], str]:
        """`decode`, cut at the stop text where a token holds both it and a part of the answer."""

        def cut(ids: list[int]) -> str:
            text = decode(ids)
            return text[: self._stopped(text)].rstrip() if self.stop else text

        return cut


def together(permits: Sequence[Permit]) -> Permit:
    """What all of them allow, with all they add."""

    def asked(row: int, tokens: Sequence[int], logits_V: Tensor) -> Tensor | None:
        said = [given for permit in permits if (given := permit(row, tokens, logits_V)) is not None]
        return sum(map(_added, said[1:]), _added(said[0])) if len(said) > 1 else next(iter(said), None)

    return asked


def _added(said_V: Tensor) -> Tensor:
    """What is added to the logits."""
    if said_V.dtype != torch.bool:
        return said_V
    return torch.zeros(len(said_V), device=said_V.device).masked_fill(~said_V, -torch.inf)
