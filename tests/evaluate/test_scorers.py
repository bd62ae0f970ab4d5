"""Scorers on hard answers, and on the real golds where the files are there."""

import gzip
import json
from fractions import Fraction
from pathlib import Path

import pytest

from quietreasoning.data.example import Example
from quietreasoning.evaluate.sandbox import Limits
from quietreasoning.evaluate.scorers import SCORERS, code, exact, number, numeric
from quietreasoning.evaluate.spelling import strip_fence

DATA = Path(__file__).parents[3] / "shared" / "data"


def gold(answer, **meta):
    return Example("x", "?", (), (), answer, meta)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("b", "b", True),
        ("  b .", "b", True),
        ("a  b\nc", "a b c", True),
        ("B", "b", False),
        ("bc", "b", False),
        ("", "b", False),
        ("", "", False),
        ("cafe\u0301", "caf\u00e9", True),
    ],
)
def test_exact(text, answer, right):
    assert exact(text, gold(answer)) is right


def test_exact_accepts_aliases():
    assert exact("NYC", gold("New York", answers=("NYC", "New York City")))
    assert not exact("Boston", gold("New York", answers=("NYC",)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2,125", 2125),
        ("$2,125.00", 2125),
        ("2125.", 2125),
        (" $ 18 dollars.", 18),
        ("-5", -5),
        ("\u22125", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("+7", 7),
        ("1,450,000 people", 1450000),
        ("3.50", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("1e3", 1000),
        ("18%", 18),
        ("073", 73),
        ("€40", 40),
        ("answer: 12 apples", 12),
        ("x-3", 3),
        ("1,2", 1),
        ("1,2345", 1),
        ("12,34", 12),
        ("", None),
        ("none.", None),
        ("-", None),
        ("$", None),
        ("1/0", None),
        ("9" * 5000, None),
        ("1e999999999", 1),
    ],
)
def test_number(text, value):
    if text == "1/0":
        assert number(text) is None
    else:
        assert number(text) == value


def test_numeric():
    assert numeric("2125", gold("2,125"))
    assert numeric("$2,125.", gold("2125"))
    assert not numeric("2,126", gold("2,125"))
    assert not numeric("1/2", gold("1"))
    assert not numeric("2", gold("2,125"))
    assert not numeric("", gold("0"))
    with pytest.raises(ValueError, match="holds no number"):
        numeric("1", gold("one"))


def test_real_comma_golds():
    path = DATA / "gsm8k" / "test.jsonl"
    if not path.exists():
        pytest.skip(f"needs {path}")
    golds = [json.loads(line)["answer"].split("####")[1].strip() for line in path.open()]
    assert sum("," in text for text in golds) == 14
    for text in golds:
        plain = text.replace(",", "")
        example = gold(text)
        assert numeric(plain, example)
        assert numeric(f"${text}.", example)
        assert not numeric(str(int(plain) + 1), example)


CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(5) == 25\n"
PREFIX = 'from typing import List\n\ndef square(x):\n    """Square."""\n'


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("    return x * x", True),
        ("return x * x", True),
        ("y = x\n    return y * y", True),
        ("def square(x: List[int]):\n    return x ** 2", True),
        ("    return x + x", False),
        ("def square(x):\n    return x ** 2", True),
        ("```python\ndef square(x):\n    return x ** 2\n```\nDone.", True),
        ("    import sys; sys.exit(0)", False),
        ("    while True: pass", False),
        ("    return (", False),
        ("", False),
    ],
)
def test_code_with_check(text, right):
    example = gold("", code_prefix=PREFIX, tests=CHECK, entry_point="square")
    assert code(text, example, Limits(seconds=1.0)) is right


def test_code_with_asserts_and_cases():
    asserts = gold("", tests="assert add(1, 2) == 3")
    assert SCORERS["code"]("def add(a, b):\n    return a + b", asserts)
    assert not SCORERS["code"]("def add(a, b):\n    return a", asserts)
    cases = gold("", cases=(("1 2\n", "3\n"), ("4 5\n", "9")))
    assert code("print(sum(map(int, input().split())))", cases)
    assert not code("print(3)", cases)
    with pytest.raises(ValueError, match="nothing to run"):
        code("x", gold("x"))


def test_strip_fence():
    assert strip_fence("a\n```py\nb\n```\nc") == "b\n"
    assert strip_fence("```\nopen") == "open"
    assert strip_fence("    plain") == "    plain"


def test_real_humaneval_solutions_pass():
    path = DATA / "humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file][::32]
    for row in rows:
        meta = {"code_prefix": row["prompt"], "tests": row["test"], "entry_point": row["entry_point"]}
        assert code(row["canonical_solution"], gold("", **meta)), row["task_id"]
        assert code(row["prompt"] + row["canonical_solution"], gold("", **meta)), row["task_id"]
        assert not code("    return None", gold("", **meta)), row["task_id"]
