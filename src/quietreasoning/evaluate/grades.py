"""How much of an answer is right: shares beside the accuracy, of tasks whose answers can be right in part.

`GRADES[scorer]` names the figure and gives `grade(text, example)` in [0, 1]; an answer is correct where its
grade is 1. Means stand in a row's `figures`, those of each group in `group_figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from quietreasoning.data.example import Example
from quietreasoning.evaluate.long_texts import longbench

Grade = Callable[[str, Example], float]


def references(text: str, example: Example) -> float:
    """Share of `meta["references"]` that occur in the text, whatever the case; with `meta["match"]` any, 1
    where one of them does (RULER, arXiv 2404.06654)."""
    wanted = [found.casefold() for found in example.meta["references"]]
    if not wanted or not all(each.strip() for each in wanted):
        # an empty text is part of every text, so that whoever says nothing would be right
        raise ValueError(f"example {example.id}: an empty reference; nothing to look for")
    said = text.casefold()
    hits = [each in said for each in wanted]
    return float(any(hits)) if example.meta.get("match") == "any" else sum(hits) / len(hits)


GRADES: dict[str, tuple[str, Grade]] = {
    "references": ("recall", references),
    "longbench": ("score", longbench),
}
FIGURES = tuple(dict.fromkeys(name for name, _ in GRADES.values()))


def grade_figures(
    scorer: str, texts: Sequence[str], examples: Sequence[Example], groups: Sequence[str | None]
) -> dict[str, dict[str, Any]]:
    """`figures`, name -> mean grade; `figure_rows`, name -> rows; `group_figures`, group -> [mean, rows]."""
    name, grade = GRADES[scorer]
    grades = [grade(text, example) for text, example in zip(texts, examples, strict=True)]
    by_group: dict[str, list[float]] = {}
    for group, share in zip(groups, grades, strict=True):
        if group is not None:
            by_group.setdefault(group, []).append(share)
    return {
        "figures": {name: fmean(grades)},
        "figure_rows": {name: len(grades)},
        "group_figures": {group: [fmean(each), len(each)] for group, each in by_group.items()},
    }


def whole(scorer: str) -> Callable[[str, Example], bool]:
    """The scorer that a grade of 1 passes."""
    _, grade = GRADES[scorer]
    return lambda text, example: grade(text, example) >= 1
