"""Leakage: how much of what stands in an answer is working that should have stayed inside.

Counted are tokens of the answer, that is of what a method wrote behind the answer prefix; a chain that it may
write before that, as `cot` does, is no leakage and stands in `visible_tokens`. A token leaks if one of its
characters lies inside

- a match of the lexicon (`evaluate/rationale.py`), or between thinking tokens;
- a run of at least `NGRAM` words which the gold steps of its row hold too. What the question says, the result
  of a step and the gold answer are no working, unless the gold answer itself holds a whole step.

Not found: working in other words than these, and working that no row's steps spell out. Read samples as well.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quietreasoning.data.example import Example
from quietreasoning.evaluate.rationale import pattern, straight
from quietreasoning.evaluate.statistics import Interval, ratio_bootstrap, wilson_share

NGRAM = 4  # words; a step of a pointer chain is four
BOUND = 0.005  # of answer tokens: what an answer-only model may leak
_WORD = re.compile(r"\w+|[^\w\s]")
Span = tuple[int, int]  # characters [first, end)


@dataclass(frozen=True)
class Leaked:
    """Tokens of one answer: all, and those inside the lexicon, inside steps, inside either."""

    tokens: int
    lexicon: int
    steps: int
    either: int


class Audit:
    """Reads answers; `decode` gives the text of ids, `thinking` are a model's thinking tokens, the one that
    opens and the one that closes first."""

    def __init__(
        self, lexicon: Iterable[str], decode: Callable[[list[int]], str], thinking: Sequence[int] = ()
    ):
        self._pattern, self._decode, self._thinking = pattern(lexicon), decode, tuple(thinking)

    def read(self, ids: Sequence[int], example: Example) -> Leaked:
        ids = list(ids)
        text = straight(self._decode(ids))
        said = self._tokens(ids, [match.span() for match in self._pattern.finditer(text)])
        said |= between(ids, self._thinking)
        shown = self._tokens(ids, repeated(text, working(example)))
        return Leaked(len(ids), len(said), len(shown), len(said | shown))

    def _tokens(self, ids: list[int], spans: Sequence[Span]) -> set[int]:
        """The places of the tokens that hold these characters: with each token the text grows, so an edge is
        looked for by halves."""

        def length(count: int) -> int:
            return len(self._decode(ids[:count]))

        found: set[int] = set()
        counts = range(len(ids) + 1)
        for first, end in spans:
            found.update(
                range(bisect_right(counts, first, key=length) - 1, bisect_left(counts, end, key=length))
            )
        return found


def between(ids: Sequence[int], thinking: Sequence[int]) -> set[int]:
    """Places from a thinking token that opens to the one that closes, or to the end; and of all others."""
    found, inside = set(), False
    for place, id in enumerate(ids):
        inside = inside or id in thinking[:1]
        if inside or id in thinking:
            found.add(place)
        inside = inside and id not in thinking[1:2]
    return found


def working(example: Example) -> set[tuple[str, ...]]:
    """The runs of NGRAM words that betray the steps of a row."""
    answer = " ".join(words(example.answer))
    steps = [step for step in example.steps if " ".join(words(step)) != answer]
    betrays = any(len(words(step)) > 1 and f" {' '.join(words(step))} " in f" {answer} " for step in steps)
    fine = [example.prompt, *example.results, *([] if betrays else [example.answer])]
    return runs(words(" ".join(steps))) - {run for text in fine for run in runs(words(text))}


def words(text: str) -> list[str]:
    return [match[0].casefold() for match in _WORD.finditer(text)]


def runs(found: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(found[i : i + NGRAM]) for i in range(len(found) - NGRAM + 1)}


def repeated(text: str, wanted: set[tuple[str, ...]]) -> list[Span]:
    """Where a text holds one of the runs; neighbours that overlap are one."""
    matches = list(_WORD.finditer(text))
    said = [match[0].casefold() for match in matches]
    spans: list[Span] = []
    for i in range(len(said) - NGRAM + 1) if wanted else ():
        if tuple(said[i : i + NGRAM]) not in wanted:
            continue
        first, end = matches[i].start(), matches[i + NGRAM - 1].end()
        if spans and first <= spans[-1][1]:
            first = spans.pop()[0]
        spans.append((first, end))
    return spans


def leakage(found: Sequence[Leaked]) -> dict[str, float] | None:
    """share of all answer tokens that leak, low and high; shares inside the lexicon and inside steps; tokens,
    and answers with at least one that leaks. None where no token was written.

    low, high: 95 %, at each end the wider of a bootstrap over answers, whose tokens belong together, and
    Wilson at the number of answers: no leak in few answers is no proof.
    """
    found = [one for one in found if one.tokens]
    tokens = sum(one.tokens for one in found)
    if not tokens:
        return None
    inside, each = np.array([one.either for one in found]), np.array([one.tokens for one in found])
    share = inside.sum().item() / tokens
    items = wilson_share(share, len(found))
    drawn = ratio_bootstrap(inside, each, draws=1000) if share else items
    return {
        "share": share,
        "low": min(drawn.low, items.low),
        "high": max(drawn.high, items.high),
        "lexicon": sum(one.lexicon for one in found) / tokens,
        "steps": sum(one.steps for one in found) / tokens,
        "tokens": tokens,
        "answers": sum(one.either > 0 for one in found),
    }


def pooled_leakage(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of one arm over its seeds: shares of all tokens, the mean reach of the intervals."""
    found = [row["leakage"] for row in rows if row.get("leakage")]
    if not found:
        return {}
    tokens = sum(one["tokens"] for one in found)
    shares = {
        name: sum(one[name] * one["tokens"] for one in found) / tokens
        for name in ("share", "lexicon", "steps")
    }
    reach = Interval(
        shares["share"] - sum(one["share"] - one["low"] for one in found) / len(found),
        shares["share"] + sum(one["high"] - one["share"] for one in found) / len(found),
    )
    counts = {"tokens": tokens, "answers": sum(one["answers"] for one in found)}
    return {"leakage": {**shares, "low": max(0.0, reach.low), "high": min(1.0, reach.high), **counts}}


def leakage_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What an evaluation says of it: an arm that leaks has a line; the others share one."""
    known = [row for row in rows if row.get("leakage") and row["control"] is None and row["effort"] is None]
    lines, clean = [], [row for row in known if not row["leakage"]["answers"]]
    for row in known:
        one = row["leakage"]
        if one["answers"]:
            lines.append(
                f"{row['method']}: {100 * one['share']:.2f} % of {one['tokens']} answer tokens leak "
                f"[{100 * one['low']:.2f}, {100 * one['high']:.2f}]: {100 * one['lexicon']:.2f} % in phrases "
                f"of eval.lexicon, {100 * one['steps']:.2f} % in words of the gold steps"
            )
    if clean:
        high = max(row["leakage"]["high"] for row in clean)
        names = ", ".join(row["method"] for row in clean)
        lines.append(f"no leakage in answers of {names} (95 %: at most {100 * high:.2f} % of their tokens)")
    return lines
