"""Questions about one of many paragraphs, or about two of them in turn.

Departure from the paper (arXiv 2404.06654), which hides SQuAD and HotpotQA paragraphs among others: facts of
made-up places, drawn anew for each example, so that nothing but the text can give the answer. All paragraphs
tell the same relations, so that the relation alone never leads to one.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from quietreasoning.data.tasks.ruler.layout import Page, Written, count
from quietreasoning.data.tasks.ruler.wording import ABOUT, ASK, HAS, PAGES, STEPS, Wording
from quietreasoning.data.tasks.world import RELATIONS

TWIN = "twin"


class Asked(NamedTuple):
    names: tuple[str, ...]  # the place that is named, and the one that tells the answer
    relation: str
    other: str  # a second relation that paragraphs tell
    value: str


class Questions(NamedTuple):
    hops: int  # 1 or 2

    @property
    def kind(self) -> str:
        return f"qa_{self.hops}"

    def draw(self, wording: Wording, rng: random.Random) -> Asked:
        relation, other = rng.sample(RELATIONS, 2)
        return Asked(tuple(wording.keys(self.hops, rng)), relation, other, wording.told(1, rng)[0])

    def canonical(self, asked: Asked) -> str:
        return f"{' , '.join(asked.names)} {asked.relation} {asked.value}"

    def write(self, asked: Asked, page: Page, rng: random.Random) -> Written:
        wording = page.wording
        intro = wording.say(PAGES)
        named, last = asked.names[0], asked.names[-1]
        question = wording.say(ASK[self.kind].format(relation=asked.relation, name=named))
        one = self._paragraph(wording, named, named, asked, asked.value, asked.value)
        n = self.hops + page.room(self.kind, intro, question, *[one] * (self.hops + 1)) // count(one) + 1
        others = wording.keys(n - self.hops, rng, taken=asked.names)
        ring = [*asked.names, *others]  # the twin of each is the next
        order = [*others, *asked.names[:-1]]
        rng.shuffle(order)
        order.insert(round((page.depth or 0.0) * len(order)), last)
        values = {name: wording.told(2, rng) for name in ring}
        values[last][0] = asked.value
        twins = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
        told = {name: self._paragraph(wording, name, twins[name], asked, *values[name]) for name in order}
        return Written(
            prompt=wording.page(intro, " ".join(told.values()), question),
            references=(asked.value,),
            needles=tuple(told[name] for name in asked.names),
            steps=(STEPS["qa_2"].format(name=named, value=last),) if self.hops == 2 else (),
            results=(last,) if self.hops == 2 else (),
            guesses={
                "first-paragraph": values[order[0]][0],
                **({"one-hop": values[named][0]} if self.hops == 2 else {}),
            },
        )

    def _paragraph(self, wording: Wording, name: str, twin: str, asked: Asked, *values: str) -> str:
        facts = [(asked.relation, values[0]), (asked.other, values[1])]
        if self.hops == 2:
            facts = [(TWIN, twin), facts[0]]
        lines = [HAS.format(relation=relation, value=value) for relation, value in facts]
        return " ".join(map(wording.say, [ABOUT.format(name=name), *lines]))
