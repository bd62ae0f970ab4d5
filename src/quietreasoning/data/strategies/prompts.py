"""What a teacher reads before a question: the composite prompt, and a short one in few words."""

from __future__ import annotations

SHORT_PROMPT = (
    "think first : choose step , mece , falsify , expert , doubt or reason , as the question needs , then "
    "close the thought and give the answer .\n"
)
"""For tiny models; every word is in the vocabulary of task `strategies`."""

COMPOSITE_PROMPT = """\
Before you answer, think once between <think> and </think>. Open every part of the thought with a tag, and \
choose the one strategy that fits the question:
- chain of thought, for several operations in a row: one <step> each, at least two.
- MECE, for counting cases: <mece>, then `case NAME : ...` for branches that do not overlap, and say that \
nothing is missing.
- falsification, for a claim: <falsify>, the condition under which the claim fails, a check of it, and \
whether that refutes the claim or the claim holds.
- expert, for a question of one field: one <expert>, the field, a rule of that field, and its use.
- orthogonal wisdom, for an unusual question: <reason>, what it is like in another field, then mapped back.
- self-doubt, where a slip is easy: <doubt>, the first answer, a possible error, then kept or corrected.
- Bayesian rationalist, for evidence: <reason>, prior, evidence, updated belief.
- multidomain consultant, for questions of two fields: an <expert> for each, then a <reason> that brings \
both together.
End the thought with the answer, close it, and give the answer after ####.

Question: a box holds 3 red and 4 blue cups , and 2 more red cups are added . how many cups are there ?
<think> <step> 3 + 2 = 5 red cups .
<step> 5 + 4 = 9 .
<step> so 9 </think>
#### 9

Question: claim : all of 4 , 8 , 5 are even . is it true ?
<think> <falsify> the claim fails if one number is odd .
check each number : 5 is odd .
5 refutes the claim , so no </think>
#### no

Question: """
"""For instruction-following models, with two demonstrations; the question follows at once."""
