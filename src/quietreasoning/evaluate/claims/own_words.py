"""What of a text is the writer's own: sentences lifted whole from the prompt earn nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quietreasoning.data.spans.sentences import segments

LEAST_WORDS = 4  # shorter ones may be an answer: "Is it 4 or 5?" "It is 5."
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n.*?(?:^[ \t]*```|\Z)", re.M | re.S)
_WORD = re.compile(r"\w+")


def own_words(text: str, prompt: str, evidence: Iterable[str] = ()) -> str:
    """`text` with spaces in place of each sentence that stands word for word in the prompt: places stay true.

    A sentence that stands in the evidence as well stays: quoting evidence is what an answer should do.
    """
    asked = _words(prompt)
    if not asked.strip():
        return text
    known = [_words(one) for one in evidence]
    kept = list(text)
    fences = (match.span() for match in _FENCE.finditer(text))
    for start, end in ((0, len(text)), *segments(text), *fences):
        said = _words(text[start:end])
        lifted = said in asked and (said.count(" ") > LEAST_WORDS or said == asked)
        if lifted and not any(said in words for words in known):
            kept[start:end] = (c if c == "\n" else " " for c in text[start:end])
    return "".join(kept)


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.lower()))} "
