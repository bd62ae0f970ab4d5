"""How alike two texts are: token F1, exact match, ROUGE-L, edit similarity. All lie in [0, 1], 1 for equals.

Chinese and Japanese characters are words of their own: a departure from LongBench, which segments Chinese
with a dictionary.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}
_MARKS = str.maketrans("", "", string.punctuation + "！？。，、；：「」『』【】（）《》〈〉“”‘’…—～·")
_SINGLE = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")
_WORD = re.compile(r"[^\W_]+")


def normal_words(text: str) -> list[str]:
    """Lower case, without punctuation and English articles, as SQuAD (arXiv 1606.05250) compares answers.

    Articles stay where nothing else is left, so that an answer "A" can be right.
    """
    words = _SINGLE.sub(r" \1 ", text.lower().translate(_MARKS)).split()
    return [word for word in words if word not in ARTICLES] or words


def exact_match(text: str, gold: str) -> bool:
    """Equal after normalisation; an empty gold equals nothing."""
    return normal_words(text) == normal_words(gold) != []


def token_f1(text: str, gold: str) -> float:
    """Harmonic mean of precision and recall over normal words, each counted min(in text, in gold) times."""
    said, wanted = normal_words(text), normal_words(gold)
    return _f1(sum((Counter(said) & Counter(wanted)).values()), len(said), len(wanted))


def rouge_l(text: str, gold: str) -> float:
    """ROUGE-L (Lin 2004) with beta 1: F1 of the longest common subsequence of lower-case words, no stemming.

    LongBench's own figures come from a variant over sets of words in sentences.
    """
    said, wanted = (_WORD.findall(_SINGLE.sub(r" \1 ", each.lower())) for each in (text, gold))
    return _f1(common_subsequence(said, wanted), len(said), len(wanted))


def edit_similarity(text: str, gold: str) -> float:
    """1 - (insertions and deletions that turn one into the other) / characters of both."""
    return _f1(common_subsequence(text, gold), len(text), len(gold))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table as bits of one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    whole = row = (1 << len(a)) - 1
    for item in b:
        match = row & places.get(item, 0)
        row = ((row + match) | (row - match)) & whole
    return len(a) - row.bit_count()


def _f1(common: int, said: int, wanted: int) -> float:
    return 2 * common / (said + wanted) if common else 0.0
