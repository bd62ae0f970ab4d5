"""Each rule has a text that passes, one that fails and a mark at the fault; any text scores within [0, 1]."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.config import UserError
from quietreasoning.evaluate.claims.judge import Source
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.legacy import penalty
from quietreasoning.evaluate.rules.load import KINDS, parse_rules
from quietreasoning.evaluate.rules.safety import luhn

WIKI = (Source("wiki", "Paris is the capital of France. Paris has 2.1 million people."),)
DIFF = "```diff\n--- a/{0}\n+++ b/{0}\n@@ -1,2 +1,2 @@\n-old\n+new\n same\n```\n"
CALL = 'I look. {{"name": "{0}", "arguments": {{"path": "{1}"}}}}'
FAKE = {"key": "AKIA" + "Q" * 16, "card": "4111 1111 1111 1111", "wrong card": "4111 1111 1111 1112"}


def rule(kind, **given):
    return KINDS[kind](id="r", **given)


def check(kind, given, text, context):
    scorer = parse_rules("rules: [{id: r, kind: safety}]")
    scorer = type(scorer)((rule(kind, **given),))
    (outcome,) = scorer.score(text, context).outcomes
    return outcome


CASES = {  # kind, settings, passing text, failing text, what the first mark holds (None: the end), context
    "words": ("budget", {"max_words": 3}, "one two three", "one two three four five", "four five", {}),
    "tokens": ("budget", {"max_tokens": 3}, "a, b", "a, b!", "!", {}),
    "characters": ("budget", {"max_characters": 3}, "abc", "abcdef", "def", {}),
    "steps": ("budget", {"max_steps": 1}, "Step 1: go", "Step 1: go\nStep 2: stop", "Step 2", {}),
    "calls": (
        "budget",
        {"max_tool_calls": 0},
        '{"a": 1} and no call',
        CALL.format("read", "a.py"),
        '{"name": "read", "arguments": {"path": "a.py"}}',
        {},
    ),
    "files": (
        "budget",
        {"max_files": 1},
        DIFF.format("a.py"),
        DIFF.format("a.py") + DIFF.format("b.py"),
        "b.py",
        {},
    ),
    "diff": ("budget", {"max_diff_lines": 1}, "- a list\n+ no diff", DIFF.format("a.py"), "+new", {}),
    "latent": ("budget", {"tier": 1}, "no spans", "<bot><eot> a", "<bot>", {}),
    "loops": ("budget", {"tier": 2}, "fine", "fine", "fine", {"facts": {"loops": 3}}),
    "tools": ("scope", {"allow_tools": ["read"]}, CALL.format("read", "a"), CALL.format("rm", "a"), "rm", {}),
    "paths": (
        "scope",
        {"allow_paths": ["src/"], "deny_paths": ["src/secret"]},
        CALL.format("read", "src/a/b.py"),
        CALL.format("read", "src/a/../secret/b.py"),
        "src/a/../secret/b.py",
        {},
    ),
    "arguments as text": (
        "scope",
        {"deny_paths": ["etc"]},
        '{"function": {"name": "r", "arguments": "{\\"path\\": \\"a\\"}"}}',
        '{"function": {"name": "r", "arguments": "{\\"path\\": \\"etc/x\\"}"}}',
        '{\\"path\\": \\"etc/x\\"}',
        {},
    ),
    "a call in what never ends": (
        "scope",
        {"allow_tools": []},
        '{"a": [',
        '{"a": [{"name": "rm", "arguments": {}}, ',
        "rm",
        {},
    ),
    "climbing": (
        "scope",
        {"allow_paths": ["**"]},
        CALL.format("r", "a"),
        CALL.format("r", "../a"),
        "../a",
        {},
    ),
    "globs": ("scope", {"allow_paths": ["*.py"]}, DIFF.format("a.py"), DIFF.format("x/a.py"), "x/a.py", {}),
    "domains": (
        "scope",
        {"allow_domains": ["good.org"]},
        "see https://api.good.org/x",
        "see https://good.org@evil.org/x",
        "https://good.org@evil.org/x",
        {},
    ),
    "json": ("format", {"is_json": True}, '```json\n{"a": [1]}\n```', '{"a": [1,]}', "]", {}),
    "twice": ("format", {"is_json": True}, '{"a": 1}', '{"a": 1, "a": 2}', '"', {}),
    "schema": (
        "format",
        {
            "json_schema": {
                "type": "object",
                "required": ["n"],
                "properties": {"n": {"type": "integer", "maximum": 9}},
            }
        },
        '{"n": 3}',
        '{"n": 30}',
        "30",
        {},
    ),
    "sections": ("format", {"sections": ["Plan"]}, "# Plan\nDo it.", "# Plan\n\n# Rest\nx", "# Plan", {}),
    "no section": ("format", {"sections": ["Plan"]}, "Plan: do it", "do it", None, {}),
    "pattern": ("format", {"pattern": r"\d{4}"}, "in 1999", "in 199", None, {}),
    "forbidden": ("format", {"forbid_pattern": "TODO"}, "done", "a TODO b", "TODO", {}),
    "balanced": ("format", {"balanced": [["<bot>", "<eot>"]]}, "<bot><eot>", "<eot> a <bot>", "<eot>", {}),
    "cites": (
        "evidence",
        {"categories": ["quantity"]},
        "It has 3 doors [wiki]. It is red.",
        "It has 3 doors [7]. It is red.",
        "It has 3 doors [7].",
        {"sources": WIKI},
    ),
    "claims": (
        "claims",
        {},
        "The capital of France is Paris, and Paris has 2,100,000 people.",
        "Paris has 12 million people.",
        "Paris has 12 million people.",
        {"sources": WIKI},
    ),
    "email": ("safety", {}, "write to me at noon", "write to bob@example.com!", "bob@example.com", {}),
    "hidden email": (
        "safety",
        {},
        "look at home",
        "bob (at) example (dot) com",
        "bob (at) example (dot) com",
        {},
    ),
    "phone": ("safety", {}, "in 2024, 555 of 1234", "call (415) 555-2671 now", "(415) 555-2671", {}),
    "ssn": ("safety", {}, "000-12-3456", "it is 123-45-6789.", "123-45-6789", {}),
    "card": ("safety", {}, FAKE["wrong card"], f"pay {FAKE['card']}", FAKE["card"], {}),
    "secret": ("safety", {}, "the key of C", f"key {FAKE['key']}", FAKE["key"], {}),
    "password": (
        "safety",
        {},
        "password: see the vault",
        'password = "hunter42x"',
        'password = "hunter42x',
        {},
    ),
    "expect": ("acceptance", {"expect": ["42"]}, "The answer is 42.", "The answer is 142 or 4.2.", None, {}),
    "forbid": ("acceptance", {"forbid": ["cheap"]}, "fine", "It is cheap.", "cheap", {}),
    "results": (
        "acceptance",
        {"results": {"coverage": 0.9}},
        "done",
        "done",
        None,
        {"results": {"coverage": 0.8}},
    ),
    "regex": ("acceptance", {"expect": ["4+2"], "match": "regex"}, "x=442", "x=24", None, {}),
    "python": (
        "acceptance",
        {"python": "assert f(2) == 4"},
        "```python\ndef f(x):\n    return x * x\n```",
        "```python\ndef f(x):\n    return x + 1\n```",
        "def f(x):\n    return x + 1\n",
        {},
    ),
    "legacy": ("legacy", {}, "Therefore " + "it is all fine and well and done " * 3, "Paris.", "Paris.", {}),
}
BETTER = {"loops": {"facts": {"loops": 2}}, "results": {"results": {"coverage": 0.95}}}


@pytest.mark.parametrize("name", CASES)
def test_a_pass_a_fail_and_the_place_of_the_fault(name):
    kind, given, good, bad, place, context = CASES[name]
    passed = check(kind, given, good, Context(**(context | BETTER.get(name, {}))))
    assert (passed.score, passed.verdict, passed.marks) == (1.0, "pass", ()), passed
    failed = check(kind, given, bad, Context(**context))
    assert failed.verdict == "fail" and failed.score < 1 and failed.marks, failed
    first = failed.marks[0]
    assert first.message and "\n" not in first.message
    if place is None:
        assert first.start == first.end == len(bad)
    else:
        assert bad[first.start : first.end] == place


def test_every_kind_has_a_case():
    assert {kind for kind, *_ in CASES.values()} == set(KINDS)


def test_a_finding_never_repeats_what_must_not_be_said():
    text = f"bob@example.com, 123-45-6789, {FAKE['card']}, {FAKE['key']}"
    marks = check("safety", {}, text, Context()).marks
    assert len(marks) == 4 and not any(part in mark.message for mark in marks for part in text.split(", "))
    assert check("safety", {"allow": ["bob@example.com"]}, "bob@example.com", Context()).score == 1


@pytest.mark.parametrize(
    ("number", "right"), [("4111111111111111", True), ("79927398713", True), ("79927398710", False)]
)
def test_luhn(number, right):
    assert luhn(number) is right


def test_budgets_are_graded_and_tiers_bound():
    scores = [check("budget", {"max_words": 2}, " ".join("w" * n), Context()).score for n in (1, 2, 4, 8)]
    assert scores == [1, 1, 0.5, 0.25]
    loops = {1: 1, 2: 2, 3: 3}
    for tier, most in loops.items():
        for n in range(5):
            score = check("budget", {"tier": tier}, "x", Context(facts={"loops": n})).score
            assert (score == 1) is (n <= most)


def test_facts_and_text_cannot_hide_behind_each_other():
    context = Context(facts={"files": ["etc/x"], "diff": DIFF.format("etc/y"), "tool_calls": ["rm"]})
    bad = check("scope", {"allow_paths": ["src"], "allow_tools": []}, "nothing to see", context)
    assert bad.score == 0 and len(bad.marks) == 3
    assert check("budget", {"max_files": 1, "max_diff_lines": 2}, "x", context).score == 0.5
    assert check("budget", {"max_tool_calls": 0}, "x", context).score == 0


@pytest.mark.parametrize("facts", [{"loop": 1}, {"loops": -1}, {"loops": True}, {"files": [1]}, {"diff": 3}])
def test_facts_are_checked(facts):
    with pytest.raises(UserError, match=r"facts\."):
        Context(facts=facts)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("42", True),
        ("42.", True),
        ("The answer is 42.", True),
        ("It is not 7: the answer is 42.", False),  # one statement, so its denial counts
        ("The answer is not 42.", False),
        ("The answer may be 42.", False),
        ("The answer is 42. The answer is 43.", False),
        ("The answer is 42. The answer is not 43.", True),
        ("7 12 42 99 answer", False),
        ("The answer is 42 and 43.", False),
        ("The answers are 41, 42.", False),
        ("The answer is 41/42.", False),
        ("In 2024, 42 people came.", True),
        ("The answer is 42, as Ann said.", True),
        ("The answer is 42.5.", False),
    ],
)
def test_an_expected_answer_must_be_stated(text, met):
    outcome = check("acceptance", {"expect": ["42"]}, text, Context())
    assert (outcome.verdict == "pass") is met, outcome


def test_the_formula_of_the_first_plan_punishes_brevity():
    assert penalty("Paris.") == pytest.approx(1.8)
    assert penalty("However, nobody can be sure about any of these matters at all.") == pytest.approx(0.45)
    assert parse_rules("rules: [{id: a, kind: legacy}]").notes()


pieces = [
    "{",
    '"a": ',
    "[1,",
    "<bot>",
    "Step 1. ",
    "https://x@",
    "bob@",
    "12 %",
    "+++ b/",
    "--- ",
    "# H\n",
    "1" * 400,
]
texts = st.text(max_size=200) | st.lists(
    st.sampled_from([*pieces, "Paris is big. ", "\\", "not "]), max_size=30
).map("".join)
EVERY = parse_rules(
    """
threshold: 0.5
rules:
  - {id: a, kind: budget, max_words: 9, max_tokens: 9, max_steps: 1, max_tool_calls: 0, max_files: 0, tier: 1}
  - {id: a2, kind: budget, max_diff_lines: 0}
  - {id: b, kind: scope, allow_tools: [], allow_paths: [src], deny_domains: [x.org]}
  - {id: c, kind: format, is_json: true, sections: [Plan], pattern: a, balanced: [[<bot>, <eot>]]}
  - {id: d, kind: evidence}
  - {id: e, kind: claims}
  - {id: f, kind: safety}
  - {id: g, kind: acceptance, expect: [Paris], forbid: [Rome], results: {t: true}}
  - {id: h, kind: legacy}
"""
)


@given(text=texts, prompt=texts, reference=st.none() | texts)
@settings(max_examples=30, deadline=None)
def test_any_text_scores_within_bounds_and_marks_lie_inside(text, prompt, reference):
    context = Context(prompt=prompt, sources=WIKI, reference=reference)
    score = EVERY.score(text, context)
    assert 0 <= score.total <= 1 and score == EVERY.score(text, context)
    for outcome in score.outcomes:
        assert outcome.score is None or 0 <= outcome.score <= 1
        assert all(0 <= mark.start <= mark.end <= len(text) for mark in outcome.marks)


@given(st.permutations(EVERY.rules))
@settings(max_examples=10, deadline=None)
def test_the_order_of_rules_changes_no_total(rules):
    text, context = "Paris is the capital of France [wiki].", Context(sources=WIKI)
    assert type(EVERY)(tuple(rules), EVERY.threshold).reward(text, context) == EVERY.reward(text, context) > 0


@pytest.mark.parametrize(
    "text", ["[" * 20_000, '{"a":' * 5_000, "!" * 20_000, "a@" * 10_000, "1" * 20_000, "and " * 5_000]
)
def test_endless_text_ends(text):
    context = Context(sources=WIKI)
    assert EVERY.reward(text, context) < EVERY.reward("Paris is the capital of France [wiki].", context)
