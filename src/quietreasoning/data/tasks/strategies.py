"""Problems that call for eight ways to think, each with a thought by one that fits, tagged and checked.

Example i thinks by a strategy that i alone fixes, so that any number of them keeps the shares: of 1,800
there are 400 chains of thought and 200 of each other. A share `instructed` carries the short prompt and
thinks with tags while the rest answers plainly: what a base model must learn for the prompt to change it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.strategies.forms import (
    BAYESIAN,
    CHAIN,
    DOUBT,
    EXPERT,
    FALSIFICATION,
    MECE,
    MULTIDOMAIN,
    ORTHOGONAL,
    ROUND,
    STRATEGIES,
    enclosed,
)
from quietreasoning.data.strategies.prompts import SHORT_PROMPT
from quietreasoning.data.tags import untagged
from quietreasoning.data.tasks.base import GeneratedTask, digest, stream
from quietreasoning.data.tasks.strategy_fields import consultant, expert
from quietreasoning.data.tasks.strategy_problems import (
    LARGEST,
    Problem,
    claim,
    fence,
    groups,
    hands,
    parity,
    rides,
    story,
    swaps,
)
from quietreasoning.data.tasks.strategy_views import alarm, boxes, couples, cup, meetings, rumor

FAMILIES: Mapping[str, tuple[Callable[[random.Random], Problem], ...]] = {
    CHAIN: (story, hands, swaps, fence),
    MECE: (groups, parity),
    FALSIFICATION: (claim,),
    EXPERT: (expert,),
    ORTHOGONAL: (meetings, couples, cup, rumor),
    DOUBT: (claim, fence, rides),
    BAYESIAN: (boxes, alarm),
    MULTIDOMAIN: (consultant,),
}
_DRAWS = 150  # of each family, in which every word of its templates occurs


class StrategiesConfig(Settings):
    tags: bool = True
    """Think with tags; without, answer as `plain` says."""
    instructed: float = Field(0.0, ge=0, le=1)
    """Share of examples with the short prompt before the question, which think with tags while the others
    answer as `plain` says. 0: none carries a prompt, and `tags` holds for all."""
    plain: Literal["direct", "steps"] = "direct"
    """How an example without tags answers: at once, or after one short step."""

    @model_validator(mode="after")
    def _something_is_plain(self) -> StrategiesConfig:
        if self.instructed and not self.tags:
            raise ValueError(f"instructed={self.instructed:g} thinks with tags; drop tags=false")
        if self.plain != "direct" and self.tags and self.instructed in (0, 1):
            raise ValueError(
                f"plain={self.plain} has no effect: every example thinks with tags; set tags=false, or a "
                "share instructed"
            )
        return self


class Assigned(NamedTuple):
    problem: Problem
    strategy: str
    instructed: bool


class Strategies(GeneratedTask):
    Config = StrategiesConfig
    name = "strategies"
    describe = "eight ways to think, tagged: chain of thought, falsification, Bayes and others"
    scorer = "exact"
    sizes = {"train": 1800, "valid": 450, "test": 900}
    config: StrategiesConfig

    def vocabulary(self) -> list[str]:
        """Every word of the problems, their thoughts and the short prompt."""
        return list(_words())

    def fingerprint(self) -> dict[str, str]:
        """As above, with a hash of what the problems look like."""
        return super().fingerprint() | {"content": _content()}

    def draw_at(self, i: int, rng: random.Random) -> Assigned:
        strategy, share = ROUND[i % len(ROUND)], self.config.instructed
        turn = i // len(ROUND)
        return Assigned(
            rng.choice(FAMILIES[strategy])(rng), strategy, int((turn + 1) * share) > int(turn * share)
        )

    def draw(self, rng: random.Random) -> Assigned:
        return self.draw_at(rng.randrange(len(ROUND)), rng)

    def canonical(self, problem: Assigned) -> str:
        return f"{problem.problem.family} {problem.problem.facts}"

    def render(self, problem: Assigned, id: str, rng: random.Random) -> Example:
        given, strategy, instructed = problem
        answer = str(given.answer)
        tagged = instructed or (self.config.tags and not self.config.instructed)
        texts, results = zip(*given.thoughts[strategy], strict=True)
        if tagged:
            steps = enclosed(texts)
        elif self.config.plain == "steps":
            steps, results = (f"the answer is {answer}",), (answer,)
        else:
            steps, results = (), ()
        return Example(
            id=id,
            prompt=(SHORT_PROMPT if instructed else "") + given.question,
            steps=steps,
            results=results,
            answer=answer,
            meta={
                "strategy": strategy,
                "acceptable": tuple(s for s in STRATEGIES if s in given.thoughts),
                "family": given.family,
                "instructed": instructed,
                "answers": (answer.replace(" ", ""),),
            },
        )

    def group(self, example: Example) -> str:
        return example.meta["strategy"]

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """A number of the question, and what most claims come to."""
        numbers = [word for word in example.prompt.split() if word.isdigit()] or ["none"]
        return {"first-number": numbers[0], "last-number": numbers[-1], "yes": "yes"}


@cache
def _words() -> tuple[str, ...]:
    """Drawn, not listed: the templates say everything, and so many draws leave no word out."""
    texts = [SHORT_PROMPT, "the answer is", " ".join(map(str, range(LARGEST + 1)))]
    for strategy, families in FAMILIES.items():
        for family in families:
            rng = stream("words", family.__name__)
            for _ in range(_DRAWS):
                made = family(rng)
                texts += [
                    made.question,
                    str(made.answer),
                    *(untagged(text) for text, _ in made.thoughts[strategy]),
                ]
    return tuple(sorted({word for text in texts for word in text.split()}))


@cache
def _content() -> str:
    """Changes when a template, a word or a number of any family does."""
    made = [
        family(stream("content", name, i)) for name, fs in FAMILIES.items() for family in fs for i in range(8)
    ]
    return f"{digest(repr(made)):016x}"
