"""ProsQA (Coconut, arXiv 2412.06769): the public files, with their graphs and the audit's rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quietreasoning.data.example import Example
from quietreasoning.data.records import Fault, text
from quietreasoning.data.tasks.files import FileTask
from quietreasoning.data.tasks.graphs import Graph, Question
from quietreasoning.data.tasks.jsonl import as_steps
from quietreasoning.data.tasks.reachability import choices, meta


class ProsQA(FileTask):
    name = "prosqa"
    describe = "ProsQA's public files, shortcuts included; see reachability for a clean one"
    scorer = "exact"
    carves = False

    def parse(self, record: Mapping[str, Any], number: int) -> Example:
        steps = as_steps(record, "steps")
        names, question = _graph(record)
        return Example(
            id=f"prosqa-{number}",
            prompt=text(record, "question").strip(),
            steps=steps,
            results=tuple(step.rstrip(".").rpartition(" ")[2] for step in steps),
            answer=text(record, "answer").strip(),
            meta=meta(question, names),
        )

    def shortcuts(self, example: Example) -> Mapping[str, str]:
        names = example.meta["names"]
        person = names[example.meta["root"]]
        return {rule: f"{person} is a {names[node]}." for rule, node in choices(example).items()}


def _graph(record: Mapping[str, Any]) -> tuple[list[str], Question]:
    try:
        names = [str(name) for name in record["idx_to_symbol"]]
        edges = tuple((int(parent), int(child)) for parent, child in record["edges"])
        nodes = [int(record[key]) for key in ("root", "target", "neg_target")]
    except KeyError as error:
        raise Fault(f"no field {error}") from None
    except (TypeError, ValueError):
        raise Fault("field 'edges', 'root', 'target' or 'neg_target' is no graph") from None
    if not all(0 <= node < len(names) for node in [*nodes, *(node for edge in edges for node in edge)]):
        raise Fault(f"a node number lies outside the {len(names)} symbols")
    return names, Question(Graph(len(names), edges), *nodes)
