"""A rules file that is wrong says where and what to write; a working spec becomes rules."""

import pytest

from quietreasoning.config import UserError
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.load import load_rules, parse_rules
from quietreasoning.evaluate.rules.rows import read_evidence, read_rows

WRONG = {
    "rules:\n  - id: a\n    kind: budgte": (
        "rule 'a' (line 2)",
        "kind=budgte",
        "Did you mean 'budget'?",
        "safety",
    ),
    "rules:\n  - id: a\n    kind: budget\n    max_wrods: 3": (
        "max_wrods=3",
        "Did you mean 'max_words'?",
        "line 4",
    ),
    "rules:\n  - id: a\n    kind: budget\n    max_words: lots": ("max_words=lots", "whole number", "line 4"),
    "rules:\n  - id: a\n    kind: budget\n    max_words: true": (
        "max_words=true",
        "must be a number",
        "line 4",
    ),
    "rules:\n  - {id: a, kind: safety, hard: 3}": ("hard=3", "true or false"),
    "rules:\n  - {id: a, kind: safety, severity: grave}": (
        "severity=grave",
        "Choices: critical, major, minor",
    ),
    "rules:\n  - {id: a, kind: safety, pii: [mail]}": ("mail", "Did you mean 'email'?"),
    "rules:\n  - {id: a, kind: evidence, categories: [quantty]}": ("Did you mean 'quantity'?",),
    "rules:\n  - {id: a, kind: format, json_schema: {typ: object}}": (
        "json_schema.typ",
        "Did you mean 'type'?",
    ),
    "rules:\n  - {id: a, kind: format, json_schema: {type: objct}}": ("Did you mean 'object'?",),
    "rules:\n  - {id: a, kind: format, json_schema: 3}": ("json_schema=3", "must be a mapping"),
    "rules:\n  - {id: a, kind: format, pattern: '('}": ("pattern='('", "no regular expression"),
    "rules:\n  - {id: a, kind: budget}": ("nothing is limited", "max_words"),
    "rules:\n  - {id: a}": ("kind must be given", "acceptance, budget"),
    "rules:\n  - {kind: safety}": ("id", "must be given"),
    "rules:\n  - {id: a, kind: safety}\n  - {id: a, kind: safety}": ("'a' stands twice",),
    "rules: 3": ("rules=3", "must be a list", "line 1"),
    "rules: [3]": ("must be a mapping",),
    "threshhold: 3": ("Did you mean 'threshold'?", "line 1"),
    "threshold: 3": ("threshold=3", "at most 1"),
    "title: x": ("holds no rule", "safety"),
    "- a": ("must be a mapping",),
    "a: [": ("not valid YAML", ":1"),
    "risk_tier: 4": ("risk_tier=4", "Choices: 1, 2, 3"),
    "change_budget: {max_fils: 3}": ("Did you mean 'change_budget.max_files'?",),
    "scope: {inn: [a]}": ("scope.inn", "Did you mean 'in'?"),
    "acceptance: [{id: A1}]": ("then", "must be given"),
    "risk_tier: 1\nwaivers: [{rule: risktier, reason: x}]": ("Did you mean 'risk_tier'?",),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_with_its_place_and_cure(text):
    with pytest.raises(UserError) as error:
        parse_rules(text, "team.yaml")
    said = str(error.value)
    assert said.startswith("team.yaml") and "\n" not in said
    assert all(part in said for part in WRONG[text]), said


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_rules(tmp_path / "nowhere.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_rules(tmp_path / "r.yaml")


SPEC = """
id: FEAT-7
title: Faster look-up
mode: feature
risk_tier: 2
change_budget: {max_files: 2, max_loc: 3}
scope: {in: [src/lookup], out: [src/lookup/keys]}
invariants: [the public interface stays]
acceptance:
  - {id: A1, given: a warm cache, when: a key is asked for, then: no disk is read}
non_functional: {perf: [p95 below 250 ms]}
contracts: [{type: openapi, path: api/lookup.yaml}]
provenance: {author: team}
"""
DIFF = "diff --git a/{0} b/{0}\n--- a/{0}\n+++ b/{0}\n@@ -1 +1 @@\n-a\n+b\n"
GOOD = {
    "the public interface stays": True,
    "A1": True,
    "perf: p95 below 250 ms": True,
    "api/lookup.yaml": True,
    "coverage": 0.85,
    "mutation": 0.6,
}


def test_a_working_spec_becomes_rules():
    scorer = parse_rules(SPEC)
    text = f"Done.\n\n{DIFF.format('src/lookup/cache.py')}"
    assert scorer.about == {
        "id": "FEAT-7",
        "title": "Faster look-up",
        "mode": "feature",
        "provenance": {"author": "team"},
    }
    assert scorer.score(text, Context(results=GOOD)).total == 1.0
    breaches = {
        "change_budget": (text + DIFF.format("src/lookup/b.py"), {}, {}),  # four changed lines
        "scope": (DIFF.format("src/lookup/keys/a.py"), {}, {}),
        "risk_tier": (text, {}, {"loops": 3}),
        "invariant-1": (text, {"the public interface stays": False}, {}),
        "A1": (text, {"A1": False}, {}),
    }
    for rule, (said, results, facts) in breaches.items():
        score = scorer.score(said, Context(results=GOOD | results, facts=facts))
        assert [one.rule for one in score.failed()] == [rule] and score.total == 0
    # nobody looked: a hard promise has failed, a figure of policy is passed over
    score = scorer.score(text, Context(results={"the public interface stays": True}))
    assert not score.holds and {one.rule for one in score.outcomes if one.score is None} == {"policy"}
    assert scorer.score(text, Context(results=GOOD | {"coverage": 0.7})).total < 1


def test_tiers_bound_latent_spans():
    for tier, most in ((1, 0), (2, 1), (3, 3)):
        scorer = parse_rules(f"risk_tier: {tier}")
        kept = [scorer.keep("So. " + "<bot><eot>" * n) for n in range(5)]
        assert kept == [n <= most for n in range(5)]


def test_rows_bring_their_context(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"said": "a", "prompt": "q", "evidence": {"x": "E"}, "results": {"A1": true}, "loops": 2}\n\n'
        '{"said": "b", "evidence": ["E", {"id": "z", "text": "F"}], "reference": "R"}\n',
        encoding="utf-8",
    )
    first, second = read_rows(str(file), "said")
    assert (first.line, first.text, first.context.prompt) == (1, "a", "q") and second.line == 3
    assert [(s.id, s.text) for s in (*first.context.sources, *second.context.sources)] == [
        ("x", "E"),
        ("1", "E"),
        ("z", "F"),
    ]
    assert first.context.facts == {"loops": 2} and second.context.reference == "R"
    evidence = tmp_path / "evidence.jsonl"
    evidence.write_text('{"id": 7, "text": "E"}\n')
    assert [s.id for s in read_evidence(str(evidence))] == ["7"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"txt": "a"}', "Did you mean 'txt'?"),
        ('{"text": 3}', "text=3: must be text"),
        ("[1]", "must be an object"),
        ("{", "not JSON"),
        ('{"text": "a", "loops": "many"}', "facts.loops"),
        ('{"text": "a", "results": 3}', "results=3"),
        ('{"text": "a", "results": {"x": "yes"}}', "results.x"),
        ('{"text": "a", "evidence": 3}', "evidence=3"),
        ("", "holds no rows"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, says):
    file = tmp_path / "rows.jsonl"
    file.write_text(row, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_rows(str(file))
    assert says in str(error.value) and "rows.jsonl" in str(error.value)
