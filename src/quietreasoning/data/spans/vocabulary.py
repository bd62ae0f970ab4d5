"""Which tokens of a vocabulary may come next: the automaton run over all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

from quietreasoning.data.spans.automaton import Automaton


class Vocabulary:
    """Token texts as a tree of characters, so that shared beginnings are read once.

    texts: of each id, as it continues a text (with the space that it brings); None: never allowed, as for
    special tokens and for parts of a character. Answers are kept by state: `cache` of them, then anew.
    """

    def __init__(self, texts: Sequence[str | None], cache: int = 4096):
        self._root: dict = {}
        self._cache, self._known = cache, {}
        for id, text in enumerate(texts):
            if text:
                node = self._root
                for char in text:
                    node = node.setdefault(char, {})
                node.setdefault("", []).append(id)

    def allowed(self, state: Automaton) -> tuple[int, ...]:
        """The ids whose whole text may follow, sorted. The end of sequence is for the caller: `complete`."""
        if state not in self._known:
            if len(self._known) >= self._cache:
                self._known.clear()
            self._known[state] = tuple(sorted(self._search(state)))
        return self._known[state]

    def _search(self, state: Automaton) -> list[int]:
        found, open_nodes = [], [(self._root, state)]
        while open_nodes:
            node, state = open_nodes.pop()
            for char, inner in node.items():
                if char == "":
                    found += inner
                elif (after := state.feed(char)) is not None:
                    open_nodes.append((inner, after))
        return found
