"""`quiet data texts --keep pairs`: of a prompt's answers the best against the worst, as rows that task
`preferences` reads.

A pair is of answers: steps before one are not in it, since a student of pairs answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quietreasoning.data.pairs.keys import Item
from quietreasoning.evaluate.rewards import reward_of
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.scorer import SAME, Preference, RuleScorer
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.scribe import CUT, MALFORMED, WHOLE, Line

PAIRS = "pairs"


def paired(
    items: Sequence[Item], lines: Mapping[str, Line], scorer: str, rules: RuleScorer | None
) -> tuple[list[Line], dict[str, int]]:
    """A row for each prompt with two answers that differ in worth, by the rules or, without any, by the
    reward of the task's scorer; and how many samples and prompts fell out where.

    one_answer: prompts without two different answers. tied: prompts whose answers are all worth the same.
    """
    counts = dict.fromkeys((WHOLE, CUT, MALFORMED, "right", "twice", "one_answer", "tied"), 0)
    asked: dict[str, dict[str, Item]] = {}
    for item in items:
        line, said = lines[item.key], asked.setdefault(item.problem.id, {})
        counts[line["outcome"]] += 1
        if line["outcome"] == WHOLE:
            answer = line["answer"]
            counts["right"] += SCORERS[scorer](answer, item.problem.example)
            counts["twice"] += answer in said
            said.setdefault(answer, item)
    rows = []
    for said in asked.values():
        if len(said) < 2:
            counts["one_answer"] += 1
        elif row := _row(said, scorer, rules):
            rows.append(row)
        else:
            counts["tied"] += 1
    return rows, counts


def _row(said: Mapping[str, Item], scorer: str, rules: RuleScorer | None) -> Line | None:
    """said: answer -> the first sample that gave it. None where no answer is better than another."""
    example = next(iter(said.values())).problem.example
    context = Context(prompt=example.prompt)
    judge = reward_of(scorer)
    worth = {a: judge(a, example) if rules is None else rules.reward(a, context) for a in said}
    best, worst = max(worth, key=worth.__getitem__), min(worth, key=worth.__getitem__)  # the first of equals
    if rules is None:
        found = _by_task(worth[best], worth[worst], scorer)
    else:
        found = rules.prefer(best, worst, context)
    if found.chosen is None:
        return None
    facts = {"source": example.id, "samples": [said[best].sample, said[worst].sample]}
    row = {"prompt": example.prompt, "chosen": best, "rejected": worst}
    if example.meta.get("tools"):
        row["prompt_tools"] = list(example.meta["tools"])
    return row | {"margin": found.margin, "why": list(found.reasons), "metadata": facts}


def _by_task(best: float, worst: float, scorer: str) -> Preference:
    if best - worst < SAME:
        return Preference(None, best - worst, ())
    return Preference("a", best - worst, (f"{scorer}: {best:.2f} against {worst:.2f}",))
