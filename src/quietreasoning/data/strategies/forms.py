"""Names of the strategies, and how a thought is put between its tags.

A thought is its pieces, one a line: the first begins with `<think>`, the last ends with `</think>`, and each
section between opens with a tag. Three strategies share `<reason>` or `<expert>`: their structure tells them
apart, not their tag alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from quietreasoning.data.tags import CLOSE, OPEN, TAGS

CHAIN = "chain-of-thought"
MECE = "mece"
FALSIFICATION = "falsification"
EXPERT = "expert"
ORTHOGONAL = "orthogonal-wisdom"
DOUBT = "self-doubt"
BAYESIAN = "bayesian"
MULTIDOMAIN = "multidomain"
STRATEGIES = (CHAIN, MECE, FALSIFICATION, EXPERT, ORTHOGONAL, DOUBT, BAYESIAN, MULTIDOMAIN)
# 400 + 7 * 200 of 1,800: in each nine in a row, two chains and one of every other
ROUND = (CHAIN, MECE, FALSIFICATION, EXPERT, ORTHOGONAL, CHAIN, DOUBT, BAYESIAN, MULTIDOMAIN)

_SECTION = re.compile(rf"(?=(?:{'|'.join(TAGS)}))|\n")


def enclosed(pieces: Sequence[str]) -> tuple[str, ...]:
    """The pieces as steps of an Example, the whole within `<think>` and `</think>`."""
    first, *rest = pieces
    lines = [f"{OPEN} {first}", *rest]
    return (*lines[:-1], f"{lines[-1]} {CLOSE}")


def pieces_of(thought: str) -> tuple[str, ...]:
    """A written thought, from `<think>` to `</think>`, as steps: cut at its lines and before its tags."""
    inner = thought.strip().removeprefix(OPEN).removesuffix(CLOSE)
    return enclosed([piece.strip() for piece in _SECTION.split(inner) if piece.strip()])


def response(steps: Sequence[str], answer: str, prefix: str = "####") -> str:
    """A whole response, as a method would write it and validators read it."""
    return "\n".join([*steps, f"{prefix} {answer}"])
