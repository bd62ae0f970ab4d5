"""Variable tracking: which names stand for a value, over chains of assignments (arXiv 2404.06654)."""

from __future__ import annotations

import random
from typing import NamedTuple

from quietreasoning.data.tasks.ruler.layout import Page, Written, fill, place
from quietreasoning.data.tasks.ruler.wording import ASK, CHAINS, LET, STEPS, Wording


class Chain(NamedTuple):
    value: str
    names: tuple[str, ...]  # each but the first is set to the one before it


class Tracking(NamedTuple):
    hops: int
    chains: int

    def draw(self, wording: Wording, rng: random.Random) -> tuple[Chain, ...]:
        """The first is asked for."""
        each = self.hops + 1
        names = wording.names(each * self.chains, rng)
        values = wording.values(self.chains, rng)
        return tuple(Chain(value, tuple(names[i * each : (i + 1) * each])) for i, value in enumerate(values))

    def canonical(self, chains: tuple[Chain, ...]) -> str:
        return f"{' = '.join(chains[0].names)} = {chains[0].value}"

    def write(self, chains: tuple[Chain, ...], page: Page, rng: random.Random) -> Written:
        wording, asked = page.wording, chains[0]
        intro = wording.say(CHAINS)
        question = wording.say(ASK["vt"].format(value=asked.value))
        told = [(chain, self._told(wording, chain)) for chain in chains]
        room = page.room("vt", intro, question, *(line for _, lines in told for line in lines))
        filling = fill(wording.noise(), room)
        placed: list[tuple[float, str]] = []
        for chain, lines in told:  # an assignment follows the one it builds on
            start = (page.depth or 0.0) if chain is asked else rng.random()
            later = sorted(rng.uniform(start, 1) for _ in lines[1:])
            placed += zip([start, *later], lines, strict=True)
        before = (asked.value, *asked.names)
        return Written(
            prompt=wording.page(intro, " ".join(place(filling, placed)), question),
            references=asked.names,
            needles=tuple(told[0][1]),
            steps=tuple(
                STEPS["vt"].format(name=name, value=value)
                for name, value in zip(asked.names, before, strict=False)
            ),
            results=asked.names,
            guesses={"one-hop": asked.names[0]},
        )

    def _told(self, wording: Wording, chain: Chain) -> list[str]:
        before = (chain.value, *chain.names)
        return [
            wording.say(LET.format(name=name, value=value))
            for name, value in zip(chain.names, before, strict=False)
        ]
