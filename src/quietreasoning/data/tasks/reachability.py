"""Graph reachability after ProsQA: which of two candidates follows from what is said of a person?

`variant=original` grows graphs with the statistics of the public files and their shortcuts;
`variant=debiased` (the default) asks questions whose mirror image is as good, see `graph_makers.debiased`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal

from quietreasoning.config import Settings
from quietreasoning.data.example import Example
from quietreasoning.data.tasks.base import GeneratedTask, digest
from quietreasoning.data.tasks.graph_makers import debiased, original
from quietreasoning.data.tasks.graphs import Graph, Question, rules

PERSONS = tuple("Ada Ben Cleo Dora Emil Finn Gwen Hugo Iris Jon Kira Liam Mona Nils Olga Paul".split())
NODES = (*ascii_lowercase, "aa", "bb", "cc", "dd")
CONCEPTS = tuple(
    onset + middle + "pus"
    for onset in "b d f g h j k l m n p r s t v w y z".split()
    for middle in ("am", "or")
)


class ReachabilityConfig(Settings):
    variant: Literal["debiased", "original"] = "debiased"
    """debiased: no shortcut beats chance; original: ProsQA's statistics, shortcuts included."""
    style: Literal["symbols", "sentences"] = "symbols"
    """symbols: `A > c , ... ? A : x y`; sentences: `Every dorpus is a bampus. ...`."""


class Reachability(GeneratedTask):
    Config = ReachabilityConfig
    name = "reachability"
    describe = "which of two nodes can be reached, 3 to 6 hops away (ProsQA, debiased)"
    scorer = "exact"
    shares = {"train": 50, "valid": 25, "test": 25}
    config: ReachabilityConfig

    def vocabulary(self) -> list[str]:
        return [*NODES, *ascii_uppercase] if self.config.style == "symbols" else []

    def draw(self, rng: random.Random) -> Question:
        return debiased(rng) if self.config.variant == "debiased" else original(rng)

    def canonical(self, problem: Question) -> str:
        return repr(problem.graph.edges)  # the graph alone: its mirror question stays in the same split

    def render(self, problem: Question, id: str, rng: random.Random) -> Example:
        names = self._names(problem.graph, rng)
        edges = list(problem.graph.edges)
        rng.shuffle(edges)
        candidates = [problem.target, problem.other]
        rng.shuffle(candidates)
        first, second = (names[node] for node in candidates)
        person = names[problem.root]
        path = problem.graph.path(problem.root, problem.target)
        if self.config.style == "symbols":
            facts = " , ".join(f"{names[a]} > {names[b]}" for a, b in edges)
            prompt = f"{facts} ? {person} : {first} {second}"
            steps = tuple(f"{names[a]} > {names[b]}" for a, b in itertools.pairwise(path))
        else:
            facts = " ".join(_sentence(names, a, b) for a, b in edges)
            prompt = f"{facts} Is {person} a {first} or {second}?"
            steps = tuple(_sentence(names, a, b) for a, b in itertools.pairwise(path))
        return Example(
            id=id,
            prompt=prompt,
            steps=steps,
            results=tuple(names[node] for node in path[1:]),
            answer=self._answer(person, names[problem.target]),
            meta=meta(problem, names),
        )

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        """The candidate each rule of the audit chooses; a tie is broken by a coin of the example."""
        names = example.meta["names"]
        person = names[example.meta["root"]]
        return {rule: self._answer(person, names[node]) for rule, node in choices(example).items()}

    def _answer(self, person: str, concept: str) -> str:
        return concept if self.config.style == "symbols" else f"{person} is a {concept}."

    def _names(self, graph: Graph, rng: random.Random) -> list[str]:
        if self.config.style == "symbols":
            concepts, persons = list(NODES), list(ascii_uppercase)
        else:
            concepts, persons = list(CONCEPTS), list(PERSONS)
        rng.shuffle(concepts)
        rng.shuffle(persons)
        return [(concepts if graph.in_degree[node] else persons).pop() for node in range(graph.size)]


def _sentence(names: Sequence[str], parent: int, child: int) -> str:
    subject = names[parent] if names[parent][0].isupper() else f"Every {names[parent]}"
    return f"{subject} is a {names[child]}."


def meta(question: Question, names: Sequence[str]) -> dict[str, Any]:
    """The graph behind an example, from which every rule can be computed."""
    return {
        "names": tuple(names),
        "edges": question.graph.edges,
        "root": question.root,
        "target": question.target,
        "other": question.other,
    }


def question_of(example: Example) -> Question:
    """The question an example asks, rebuilt from its meta."""
    m = example.meta
    return Question(Graph(len(m["names"]), m["edges"]), m["root"], m["target"], m["other"])


def choices(example: Example) -> dict[str, int]:
    """Rule -> the candidate it chooses; ties go to a coin that is fixed by the example's id."""
    question = question_of(example)
    coin = (question.target, question.other)[digest(example.id) % 2]
    return {rule: coin if node is None else node for rule, node in rules(question).items()}
