"""Words and phrases by which a text shows its working. Imports no torch.

Chosen so that good answers seldom hold them: `first,` and not `first`. What chains look like elsewhere, such
as commas where they are lists, a recipe names in `eval.lexicon`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PHRASES = """
let's think / let us think / let me think / think step by step / step by step / let's see / let's start
/ let's break / let's calculate / let's compute / let me check / let me double-check / let me see / to
begin with / we know that / first, / firstly / first of all / second, / secondly / third, / thirdly /
next, / then, / finally, / lastly, / step 1 / step 2 / step 3 / step one / step two / therefore / thus /
hence / because / consequently / it follows that / which means / this means / so we have / so we get /
we need to find / we can conclude / the reason is / reasoning: / explanation: / rationale: / thought: /
thoughts: / my reasoning / chain of thought / so the answer / wait, / hmm
"""
RATIONALE = tuple(" ".join(_PHRASES.split()).split(" / "))
TAGS = ("think", "thinking", "thought", "reasoning", "scratchpad")
_APOSTROPHES = str.maketrans("’‘", "''")  # as long as what they replace


def pattern(lexicon: Iterable[str]) -> re.Pattern[str]:
    """What finds the phrases of a lexicon in `straight(text)`, the longest first, and what stands in tags for
    thoughts, up to the end where none closes.

    An entry in lower case is found in any case, one with a capital as it stands; white space is any white
    space; an entry that begins or ends in a letter does so at a word's edge.
    """
    tags = "|".join(TAGS)
    parts = [rf"(?i:<(?P<tag>{tags})>.*?(?:</(?P=tag)>|\Z))", rf"(?i:</(?:{tags})>)"]
    for entry in sorted(set(lexicon), key=lambda entry: (-len(entry), entry)):
        words = r"\s+".join(map(re.escape, straight(entry).split()))
        left = r"(?<!\w)" if re.match(r"\w", entry) else ""
        right = r"(?!\w)" if re.search(r"\w\Z", entry) else ""
        parts.append(f"{left}(?{'i' if entry == entry.lower() else ''}:{words}){right}")
    return re.compile("|".join(parts), re.DOTALL)


def straight(text: str) -> str:
    """Curly apostrophes as straight ones."""
    return text.translate(_APOSTROPHES)


def spellings(entry: str) -> tuple[str, ...]:
    """How a text may write an entry: with a space before it or none, and capitals where any case counts."""
    cases = (entry, entry[:1].upper() + entry[1:]) if entry == entry.lower() else (entry,)
    return tuple(dict.fromkeys(space + case for case in cases for space in ("", " ")))
