"""Which tokens of a vocabulary may come next: an automaton run over all of them at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quietreasoning.config import UserError

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a part of a character decodes to


class State(Hashable, Protocol):
    """A place in a text, as automaton.py and call_grammar.py have them."""

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""

    @property
    def stir(self) -> str | None:
        """The characters that alone change what may follow, any others being allowed; None: all may."""

    @property
    def still(self) -> bool:
        """Whether others than those of `stir` leave the state itself as it is."""

    @property
    def nexts(self) -> str | None:
        """Characters beyond which none may come next, not all of them allowed; None: any may."""

    def feed(self, text: str) -> State | None:
        """The state after `text`; None where no text goes on like that."""


class Vocabulary:
    """Token texts as trees of characters, so that shared beginnings are read once.

    texts: of each id, as it continues a text (with the space that it brings); None: never allowed, as for
    special tokens and for parts of a character. Answers are kept by state: `cache` of them, then anew.
    """

    def __init__(self, texts: Sequence[str | None], cache: int = 4096):
        self.texts = tuple(texts)
        self._cache = cache
        self._known: dict[State, NDArray[np.uint8]] = {}
        self._trees: dict[tuple[str | None, bool], tuple[NDArray[np.bool_], dict]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, tokenizer: Any, size: int | None = None, *, allow: Sequence[str] = ()) -> Vocabulary:
        """The vocabulary of a tokenizer: each id's text is what it adds, decoded, after an ordinary word.

        Where decoding joins tokens by spaces, each text begins with one. Special tokens (but those named in
        `allow`) and byte pieces that are no whole characters have none. size: ids of the model, of which
        those beyond the tokenizer's have no text; None: as many as the tokenizer's. UserError where size is
        smaller than the tokenizer.
        """
        count = len(tokenizer)
        if size is not None and size < count:
            raise UserError(f"the model has {size} tokens, its tokenizer {count}; use the model's own")
        added = tokenizer.added_tokens_decoder
        special = {id for id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        special -= {id for id, token in added.items() if token.content in allow}

        def decoded(rows: list[list[int]]) -> list[str]:
            return tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)

        alone = decoded([[id] for id in range(count)])
        anchor = next((id for id in range(count) if id not in special and alone[id].strip().isalnum()), None)
        if anchor is None:
            return cls([None] * (size or count))
        before, texts = alone[anchor], []
        for id, whole in enumerate(decoded([[anchor, id] for id in range(count)])):
            text = whole.removeprefix(before) if whole.startswith(before) else ""
            texts.append(text if text and id not in special and _BROKEN not in text else None)
        return cls([*texts, *[None] * ((size or count) - count)])

    def allowed(self, state: State) -> tuple[int, ...]:
        """The ids whose whole text may follow, sorted. The end of sequence is for the caller: `complete`."""
        return tuple(np.flatnonzero(unpacked(self.bits(state), len(self))).tolist())

    def bits(self, state: State) -> NDArray[np.uint8]:
        """The same packed, uint8 [ceil(V/8)], to be read alone: id v is bit v % 8, from the highest, of byte
        v // 8, as numpy packs."""
        if state not in self._known:
            if len(self._known) >= self._cache:
                self._known.clear()
            found_V = np.packbits(self._search(state))
            found_V.flags.writeable = False
            self._known[state] = found_V
        return self._known[state]

    def _search(self, state: State) -> NDArray[np.bool_]:
        calm_V, root = self._tree(state.stir, state.still)
        found_V, open_nodes = calm_V.copy(), [(root, state, "")]  # "": characters that are still to be fed
        while open_nodes:
            node, state, calm = open_nodes.pop()
            if "" in node:
                found_V[node[""]] = True
            stir, nexts = state.stir, state.nexts
            for char in node if nexts is None else [char for char in nexts if char in node]:
                if char == "":
                    continue
                inner = node[char]
                if stir is not None and char not in stir:
                    open_nodes.append((inner, state, calm + char))
                elif (after := state.feed(calm + char)) is not None:
                    open_nodes.append((inner, after, ""))
        return found_V

    def _tree(self, stir: str | None, still: bool) -> tuple[NDArray[np.bool_], dict]:
        """The tokens with none of the characters `stir`, bool [V], and the tree of the others. Where a state
        stays `still` up to the first of these, each begins there, so that those that go on alike are one."""
        still = still and stir is not None
        if (stir, still) not in self._trees:
            calm_V, root = np.zeros(len(self), dtype=bool), {}
            for id, text in enumerate(self.texts):
                if not text:
                    continue
                if stir is not None and set(stir).isdisjoint(text):
                    calm_V[id] = True
                    continue
                if still:
                    text = text[next(at for at, char in enumerate(text) if char in stir) :]
                node = root
                for char in text:
                    node = node.setdefault(char, {})
                node.setdefault("", []).append(id)
            self._trees[stir, still] = calm_V, root
        return self._trees[stir, still]


def unpacked(bits: NDArray[np.uint8], size: int) -> NDArray[np.bool_]:
    """bool [..., V] of bits [..., ceil(V/8)], V = size."""
    return np.unpackbits(bits, axis=-1, count=size).astype(bool)
