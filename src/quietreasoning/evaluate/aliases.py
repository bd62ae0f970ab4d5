"""Does one of several names of an answer occur in a text? As PopQA (arXiv 2212.10511) asks it."""

from __future__ import annotations

from collections.abc import Sequence

from quietreasoning.data.example import Example


def alias(text: str, example: Example) -> bool:
    """One of `meta["answers"]` occurs in the first line of the text: as it is, in lower case, or with one
    capital at its beginning."""
    return occurs(example, text.lstrip("\n").partition("\n")[0])


def recall_at(
    spans: Sequence[Sequence[str] | None], examples: Sequence[Example], k: int = 5
) -> tuple[int, int]:
    """(examples with an alias in one of their first k retrieved spans, best first; examples that retrieved).

    None: no retrieval took place, which counts nowhere; an empty list is a miss.
    """
    asked = [(found, one) for found, one in zip(spans, examples, strict=True) if found is not None]
    return sum(any(occurs(one, span) for span in found[:k]) for found, one in asked), len(asked)


def occurs(example: Example, text: str) -> bool:
    """Whether an alias stands in the text; ValueError where one is empty and so would stand in any."""
    answers = example.meta["answers"]
    if not answers or not all(answer.strip() for answer in answers):
        raise ValueError(f"example {example.id}: an empty answer; nothing to look for")
    return any(form in text for one in answers for form in (one, one.lower(), one.capitalize()))
