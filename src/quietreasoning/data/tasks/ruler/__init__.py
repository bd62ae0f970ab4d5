"""RULER's thirteen kinds of long-context problems (arXiv 2404.06654), drawn offline in words of our own.

Lengths are words between white space: a task knows no tokenizer. Under a tokenizer of whole words a prompt of
made-up `words` has just so many tokens, and one more for the prompt's suffix; English takes more.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask
from quietreasoning.data.tasks.ruler.config import KINDS, NO_DEPTH, RulerConfig
from quietreasoning.data.tasks.ruler.counting import Common, Frequent
from quietreasoning.data.tasks.ruler.layout import Page, count
from quietreasoning.data.tasks.ruler.needles import Needles
from quietreasoning.data.tasks.ruler.questions import Questions
from quietreasoning.data.tasks.ruler.tracking import Tracking
from quietreasoning.data.tasks.ruler.wording import English, Made

DEPTHS = 10


class Problem(NamedTuple):
    kind: str
    length: int
    depth: float | None
    facts: Any  # what the kind drew


class Ruler(GeneratedTask):
    Config = RulerConfig
    name = "ruler"
    describe = "long contexts: needles, variable tracking, words to count, questions among paragraphs"
    scorer = "references"
    config: RulerConfig

    def draw_at(self, i: int, rng: random.Random) -> Problem:
        """Kinds change fastest with i, then lengths, then depths: every run of examples is balanced."""
        c = self.config
        turn, at = divmod(i, len(c.all_kinds))
        kind = c.all_kinds[at]
        turn, at = divmod(turn, len(c.lengths))
        depth = turn % DEPTHS / (DEPTHS - 1) if c.depth is None else c.depth
        facts = self._makers[kind].draw(self._wording, rng)
        return Problem(kind, c.lengths[at], None if kind in NO_DEPTH else depth, facts)

    def draw(self, rng: random.Random) -> Problem:
        return self.draw_at(rng.randrange(1_000_000), rng)

    def canonical(self, problem: Problem) -> str:
        # the facts asked for, whatever kind, length, depth and filling
        return self._makers[problem.kind].canonical(problem.facts)

    def render(self, problem: Problem, id: str, rng: random.Random) -> Example:
        kind, length, depth, facts = problem
        written = self._makers[kind].write(facts, Page(self._wording, length, depth), rng)
        return Example(
            id=id,
            prompt=written.prompt,
            steps=written.steps,
            results=written.results,
            answer=self._wording.listed(written.references),
            meta={
                "kind": kind,
                "length": length,
                "words": count(written.prompt),
                "depth": depth,
                "references": written.references,
                "match": "any" if kind.startswith("qa") else "all",
                "needles": written.needles,
                "guesses": written.guesses,
            },
        )

    def group(self, example: Example) -> str:
        """Kind or depth; before it the length where several mix."""
        meta = example.meta
        name = meta["kind"]
        if self.config.groups == "depth":
            name = "no depth" if meta["depth"] is None else f"depth {meta['depth']:.2f}"
        return f"{meta['length']} words: {name}" if len(self.config.lengths) > 1 else name

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """What comes first in the text, or the first hop; a rule says nothing where it does not apply."""
        return example.meta["guesses"]

    def vocabulary(self) -> list[str]:
        """Every word of prompts and answers; in English all but numbers and names."""
        return sorted({*self._wording.vocabulary(), str(self.config.common), str(self.config.frequent)})

    @cached_property
    def _wording(self) -> English | Made:
        c = self.config
        return English() if c.words is None else Made(c.words, c.key_words)

    @cached_property
    def _makers(self) -> dict[str, Needles | Tracking | Common | Frequent | Questions]:
        """The settings of the paper, and what the options replace in them."""
        c = self.config
        needles = (
            Needles("niah_single_1", "noise"),
            Needles("niah_single_2", "essay"),
            Needles("niah_single_3", "essay", long_value=True),
            Needles("niah_multikey_1", "essay", keys=c.keys),
            Needles("niah_multikey_2", "needles"),
            Needles("niah_multikey_3", "needles", long_key=True, long_value=True),
            Needles("niah_multivalue", "essay", values=c.values),
            Needles("niah_multiquery", "essay", queries=c.queries),
        )
        return {
            **{each.name: each for each in needles},
            "vt": Tracking(c.hops, c.chains),
            "cwe": Common(c.common, c.common_times, c.rare_times),
            "fwe": Frequent(c.frequent, c.alpha),
            "qa_1": Questions(1),
            "qa_2": Questions(2),
        }


__all__ = ["KINDS", "Ruler", "RulerConfig"]
