"""`kind: budget`: no more than so many words, calls, files, diff lines, latent spans or loops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from quietreasoning.evaluate.rules.base import COUNTS, Context, Finding, Mark, Rule, whole
from quietreasoning.evaluate.rules.traces import calls_in, diff_in, latent_spans_in, steps_in

TIERS = {1: (0, 1), 2: (1, 2), 3: (3, 3)}  # tier -> latent spans, loops
_PIECE = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\S+")
Spans = Sequence[tuple[int, int]]


class Budget(Rule):
    """1 up to the limit, then limit / count; of several limits the worst. Being short earns nothing."""

    kind = "budget"

    max_tokens: int | None = Field(None, ge=0)
    """Tokens by the tokenizer that is given, else words and marks."""
    max_words: int | None = Field(None, ge=0)
    """Words: whatever spaces part."""
    max_characters: int | None = Field(None, ge=0)
    """Characters, spaces among them."""
    max_steps: int | None = Field(None, ge=0)
    """Lines that begin with `Step 3`, `3.` or `3)`."""
    max_tool_calls: int | None = Field(None, ge=0)
    """Tool calls in the text or the facts."""
    max_files: int | None = Field(None, ge=0)
    """Files that diffs and tool calls touch."""
    max_diff_lines: int | None = Field(None, ge=0)
    """Lines that diffs add or remove."""
    max_latent_spans: int | None = Field(None, ge=0)
    """`<bot>` markers."""
    max_loops: int | None = Field(None, ge=0)
    """Loops of latent refinement, which the facts must give."""
    tier: Literal[1, 2, 3] | None = None
    """Latent spans and loops by tier: 0 and 1, 1 and 2, 3 and 3."""

    @model_validator(mode="after")
    def _something_is_limited(self) -> Budget:
        if not self.limits():
            names = ", ".join(f"max_{name}" for name in COUNTS)
            raise ValueError(f"nothing is limited; give one of {names}, tier")
        return self

    def limits(self) -> dict[str, int]:
        """What is counted -> the most that is allowed; the stricter one where a tier limits it as well."""
        found = {name: getattr(self, f"max_{name}") for name in COUNTS}
        if self.tier is not None:
            for name, most in zip(("latent_spans", "loops"), TIERS[self.tier], strict=True):
                found[name] = most if found[name] is None else min(most, found[name])
        return {name: most for name, most in found.items() if most is not None}

    def check(self, text: str, context: Context) -> Finding:
        score, marks = 1.0, []
        for name, most in self.limits().items():
            spans = counted(name, text, context)
            count = max(len(spans), context.fact_count(name))
            if count <= most:
                continue
            score = min(score, most / count)
            message = f"{count} {name.replace('_', ' ')}, {most} allowed"
            shown = len(spans) > most
            marks.append(Mark(spans[most][0], spans[-1][1], message) if shown else whole(text, message))
        return Finding(score, tuple(marks))


def counted(name: str, text: str, context: Context) -> Spans:
    """Places in the text of whatever a limit counts; facts that the text does not show have none."""
    if name == "tokens":
        return context.tokenize(text) if context.tokenize else [m.span() for m in _PIECE.finditer(text)]
    if name == "words":
        return [match.span() for match in _WORD.finditer(text)]
    if name == "characters":
        return _Characters(text)
    if name == "steps":
        return steps_in(text)
    if name == "latent_spans":
        return latent_spans_in(text)
    if name == "tool_calls":
        return [(call.start, call.end) for call in calls_in(text)]
    if name in ("files", "diff_lines"):
        return _changed(name, text, context)
    return []


def _changed(name: str, text: str, context: Context) -> Spans:
    here, given = diff_in(text), diff_in(str(context.facts.get("diff", "")))
    everywhere = (0, len(text))
    if name == "diff_lines":
        return [*here.lines, *(everywhere for _ in given.lines[len(here.lines) :])]
    touched = {place.name: (place.start, place.end) for place in here.files}
    for call in calls_in(text):
        for path in call.paths:
            touched.setdefault(path.name, (path.start, path.end))
    for path in (*(place.name for place in given.files), *context.fact_names("files")):
        touched.setdefault(path, everywhere)
    return list(touched.values())


class _Characters(Sequence):
    """(0, 1), (1, 2), ... of a text, without a list of that length."""

    def __init__(self, text: str):
        self.length = len(text)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, at):
        at = at + self.length if at < 0 else at
        return at, at + 1
