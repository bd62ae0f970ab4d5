"""LongBench's measures (arXiv 2308.14508): one a data set, the best over all reference answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from quietreasoning.data.example import Example
from quietreasoning.evaluate.overlap import edit_similarity, rouge_l, token_f1


def longbench(text: str, example: Example) -> float:
    """The measure `meta["metric"]` of the text, with the best of `meta["answers"]`; of some data sets the
    first line alone counts."""
    meta = example.meta
    said = text.lstrip("\n").partition("\n")[0] if meta["first_line"] else text
    if not meta["answers"] or not all(answer.strip() for answer in meta["answers"]):
        raise ValueError(f"example {example.id}: an empty answer; nothing to compare with")
    return max(METRICS[meta["metric"]](said, gold, meta["classes"]) for gold in meta["answers"])


def class_share(text: str, gold: str, classes: Sequence[str]) -> float:
    """1 / n where gold is one of the n classes that the text names; part of gold's name is no other class."""
    named = {name for name in classes if name in text}
    named -= {name for name in named if name in gold and name != gold}
    return 1 / len(named) if gold in named else 0.0


def number_share(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the text that are the one of gold: "Paragraph 12"."""
    said = re.findall(r"[0-9]+", text)
    wanted = re.findall(r"[0-9]+", gold)[0]
    return said.count(wanted) / len(said) if said else 0.0


def code_line(text: str, gold: str, classes: Sequence[str] = ()) -> float:
    """Edit similarity of the first line that is neither comment nor fence."""
    lines = (
        line for line in text.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//"))
    )
    return edit_similarity(next(lines, ""), gold)


METRICS: dict[str, Callable[[str, str, Sequence[str]], float]] = {
    "f1": lambda text, gold, classes: token_f1(text, gold),
    "rouge-l": lambda text, gold, classes: rouge_l(text, gold),
    "class": class_share,
    "retrieval": number_share,
    "count": number_share,
    "edit": code_line,
}
