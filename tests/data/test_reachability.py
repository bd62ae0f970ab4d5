"""ProsQA's shortcuts: the rules score what the audit measured, and chance on the debiased generator."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import pytest

from quietreasoning.data.example import Example
from quietreasoning.data.tasks import TASKS
from quietreasoning.data.tasks.graph_makers import is_fair
from quietreasoning.data.tasks.graphs import from_root, rules
from quietreasoning.data.tasks.reachability import question_of

# per cent on the public validation file, 300 questions; a tie counts one half
AUDIT = {
    "in-degree": 66.7, "others-1": 59.7, "others-2": 85.3, "others-3": 95.5,
    "root-and-others-2": 86.7, "root-and-others-3": 97.0, "root-and-others-4": 99.5,
    "root-2": 50.0, "root-3": 70.7, "root-4": 92.8, "root-5": 98.8,
}  # fmt: skip
PUBLIC_HOPS = {3: 0.413, 4: 0.443, 5: 0.120, 6: 0.023}
PUBLIC_IN_DEGREE = {0: 0.110, 1: 0.437, 2: 0.277, 3: 0.124, 4: 0.037, 5: 0.012}


def wilson(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    share, centre = right / n, (right + z * z / 2) / (n + z * z)
    spread = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - spread, centre + spread


def scores(examples: Iterable[Example]) -> dict[str, float]:
    """Rule -> how many it gets right, a tie counting one half."""
    right = Counter()
    for example in examples:
        question = question_of(example)
        for rule, choice in rules(question).items():
            right[rule] += 0.5 if choice is None else float(choice == question.target)
    return right


@pytest.fixture(scope="module")
def grown() -> list[Example]:
    task = TASKS["reachability"](TASKS["reachability"].Config(variant="original"))
    return list(task.split("train", 1500))


@pytest.fixture(scope="module")
def fair() -> list[Example]:
    return list(TASKS["reachability"]().split("train", 1000))


def test_rules_score_what_the_audit_measured(real):
    examples = TASKS["prosqa"](path=str(real("prosqa/valid.json"))).split("valid")
    assert len(examples) == 300
    measured = scores(examples)
    assert {rule: measured[rule] / 3 for rule in AUDIT} == pytest.approx(AUDIT, abs=0.06)


def test_original_has_the_public_statistics(grown):
    questions = [question_of(example) for example in grown]
    n = len(questions)
    sizes = [q.graph.size for q in questions]
    assert 14 <= min(sizes) <= max(sizes) <= 28
    assert sum(sizes) / n == pytest.approx(22.8, abs=0.3)
    assert sum(len(q.graph.edges) for q in questions) / n == pytest.approx(36, abs=1)
    degrees = Counter(degree for q in questions for degree in q.graph.in_degree)
    for degree, share in PUBLIC_IN_DEGREE.items():
        assert degrees[degree] / sum(sizes) == pytest.approx(share, abs=0.02)
    hops = Counter(example.meta["num_steps"] for example in grown)
    for length, share in PUBLIC_HOPS.items():
        assert hops[length] / n == pytest.approx(share, abs=0.06)
    assert {q.root for q in questions} == {0, 1}
    assert sum(len(q.graph.persons) == 2 for q in questions) / n == pytest.approx(0.57, abs=0.06)


def test_original_has_the_public_shortcuts(grown):
    n = len(grown)
    measured = scores(grown)
    for rule, share in AUDIT.items():
        assert 100 * measured[rule] / n == pytest.approx(share, abs=4), rule


def test_debiased_leaves_avoiding_rules_at_chance(fair):
    measured = scores(fair)
    avoiding = {rule for rule in measured if "root" not in rule}
    assert avoiding == {"in-degree", "others-1", "others-2", "others-3", "fewer-others-3", "fewer-others"}
    for rule in avoiding:
        low, high = wilson(measured[rule], len(fair))
        assert low <= 0.5 <= high, (rule, measured[rule])
    # the intended computation still answers
    assert measured["root-5"] / len(fair) > 0.97


def test_debiased_candidates_match_and_the_mirror_holds(fair):
    for example in fair:
        q = question_of(example)
        assert q.graph.in_degree[q.target] == q.graph.in_degree[q.other]
        assert q.from_others(q.target) == q.from_others(q.other) < math.inf
        mirror = type(q)(q.graph, 1 - q.root, q.other, q.target)
        assert from_root(mirror, 6) == mirror.target
        assert is_fair(q.graph, *((q.target, q.other) if q.root == 0 else (q.other, q.target)))
        assert 3 <= len(example.steps) <= 6


def test_debiased_is_blind_to_order_and_number(fair):
    """What a model might read off without the graph: place in the question, node number, end or not."""
    questions = [question_of(example) for example in fair]
    asked = [example.prompt.rpartition(": ")[2].split()[0] == example.answer for example in fair]
    later = [q.target > q.other for q in questions]
    roots = [q.root for q in questions]
    for hits in (asked, later, roots):
        low, high = wilson(sum(hits), len(hits), z=2.6)
        assert low <= 0.5 <= high


def test_paths_are_shortest_and_made_of_facts(grown):
    for example in grown[:100]:
        q = question_of(example)
        path = q.graph.path(q.root, q.target)
        assert set(itertools.pairwise(path)) <= set(q.graph.edges)
        assert len(path) - 1 == q.graph.distances[q.root][q.target] == len(example.steps)


def test_shortcuts_answer_in_the_tasks_own_words(fair):
    task = TASKS["reachability"]()
    for example in fair[:50]:
        first, second = example.prompt.rpartition(": ")[2].split()
        assert set(task.shortcuts(example).values()) <= {first, second}
