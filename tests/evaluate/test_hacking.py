"""What games a reward: nothing that is cheap to write scores as high as an honest answer, nor raises, nor
takes for ever."""

import json
from functools import cache

import pytest

from quietreasoning.data.example import Example
from quietreasoning.evaluate.claims.judge import Source
from quietreasoning.evaluate.claims.scorer import ClaimScorer
from quietreasoning.evaluate.code_mode.execute import Execution, Made
from quietreasoning.evaluate.code_mode.reward import CodeReward, expects
from quietreasoning.evaluate.rewards import call_reward
from quietreasoning.evaluate.rules.base import Context
from quietreasoning.evaluate.rules.load import parse_rules
from quietreasoning.evaluate.sandbox import Verdict
from quietreasoning.evaluate.tool_scores import score_calls

PROMPT = "Did revenue rise 12 % or 21 % in 2024 according to the report? Name the main cause as well."
REPORT = "In 2024 revenue rose 12 %. The main cause was the new store in Oslo. Costs fell 3 % in 2023."
HONEST = "Revenue rose 12 % in 2024. The main cause was the new store in Oslo."
CONTEXT = Context(prompt=PROMPT, sources=(Source("report", REPORT),), reference=HONEST)
RULES = """
rules:
  - {id: private, kind: safety, severity: critical, hard: true}
  - {id: short, kind: budget, max_words: 80, max_tool_calls: 3, max_diff_lines: 9, max_steps: 9}
  - {id: scope, kind: scope, allow_tools: [find], deny_domains: [evil.org], deny_paths: [secret]}
  - {id: form, kind: format, balanced: [["<bot>", "<eot>"]]}
  - {id: borne-out, kind: claims, weight: 2}
  - {id: answer, kind: acceptance, expect: [12 %]}
"""
CITING = """
rules:
  - {id: private, kind: safety, hard: true}
  - {id: cites, kind: evidence}
  - {id: answer, kind: acceptance, expect: [12 %]}
"""
TOOLS = (
    {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string"}, "year": {"type": "integer"}},
            "required": ["what", "year"],
        },
    },
)
CALL = {"name": "find", "arguments": {"what": "revenue", "year": 2024}}
RESULTS = (Made("find", {"what": "revenue"}, json.dumps({"report": REPORT, "mail": "ada@mail.org"})),)

TEXTS = {
    "empty": "",
    "blank": " \n\t\u200b ",
    "copied prompt": PROMPT,
    "copied prompt and a keyword": f"{PROMPT} 12 %",
    "stuffed": "revenue 12 % 2024 rose main cause new store Oslo report costs 3 % fell 2023 figure",
    "stuffed sentence": "revenue is was rose fell 12 % 3 % 2024 2023 cause store Oslo costs report the of",
    "hedged": "Revenue may have risen 12 % in 2024, or it fell 3 %. The cause was possibly the store.",
    "every answer": "Revenue rose 3 %, 12 % or 21 % in 2024. The main cause was the store or the costs.",
    "garbage after it": f"{HONEST} " + "Moreover zxq vv 17 is the case of it. " * 40,
    "leak after it": f"{HONEST} Ask ada@mail.org.",
    "repeated": "Revenue rose 12 % in 2024. " * 400,
    "lists": "[" * 10**6,
    "objects": '{"answer": "12 %", "a":' * 2_000,
    "string": '{"answer": "12 % ' + "a" * 50_000,
    "sentences": "".join(f"Town {n} has {n} shops. " for n in range(500)),
    "tokens": "eyJ" + "eyJ-" * 2_000 + "password=" * 2_000 + "+1 2 " * 4_000 + "a@" * 2_000,
    "surrogates": "12 % \ud800\udfff\x00",
}
CALLS = {
    "empty": "",
    "blank": " \n",
    "copied prompt": PROMPT,
    "stuffed": "find what revenue year 2024 name arguments",
    "hedged": [CALL, {"name": "find", "arguments": {"what": "revenue", "year": 2023}}],
    "no call": [],
    "only the name": {"name": "find", "arguments": {}},
    "every key": {"name": "find", "arguments": {**CALL["arguments"], "town": "Oslo", "day": 1}},
    "repeated": [CALL, CALL],
    "repeated a lot": [CALL] * 60,
    "garbage after it": f"{json.dumps(CALL)} and so on",
    "garbage call after it": [CALL, {"name": "zxq", "arguments": {}}],
    "a key twice": '{"name": "find", "name": "find", "arguments": {"what": "revenue", "year": 2024}}',
    "lists": "[" * 10**6,
    "objects": '{"name":' * 10**5,
    "string": '{"name": "find", "arguments": {"what": "' + "a" * 10**6,
    "number": '{"name": "find", "arguments": {"year": ' + "1" * 15_000 + "}}",
    "surrogates": "\ud800",
}


def run_of(text):
    return Execution(Verdict(True, "passed", text, 0.0), RESULTS)


@cache
def rewards():
    rules, citing, claims = parse_rules(RULES), parse_rules(CITING), ClaimScorer()
    return {
        "rules": lambda text: rules.reward(text, CONTEXT),
        "citing": lambda text: citing.reward(text, CONTEXT),
        "claims": lambda text: claims.reward(text, CONTEXT.sources, HONEST, PROMPT),
        "code mode": lambda text: CodeReward().score(run_of(text), expects("12 %"), CONTEXT).total,
    }


ANSWERS = {
    "citing": "Revenue rose 12 % in 2024 [report]. The main cause was the new store in Oslo [report].",
    "code mode": "12 %",
}


@pytest.mark.parametrize("reward", ["rules", "citing", "claims", "code mode"])
def test_no_text_games_a_reward(reward):
    score = rewards()[reward]
    honest = score(ANSWERS.get(reward, HONEST))
    assert honest > 0.97
    # claims ask whether it is true; that a truth is private is for rules and code mode to say
    games = {game: text for game, text in TEXTS.items() if (reward, game) != ("claims", "leak after it")}
    found = {game: score(text) for game, text in games.items()}
    assert all(0 <= total <= 1 for total in found.values()), found
    assert {game: total for game, total in found.items() if total > honest - 0.01} == {}, honest
    for game in ("empty", "blank", "copied prompt", "lists"):
        assert found[game] == 0, game


def test_a_repeated_truth_earns_what_it_earns_once():
    assert rewards()["claims"](TEXTS["repeated"]) == rewards()["claims"]("Revenue rose 12 % in 2024. ")
    assert rewards()["code mode"](TEXTS["repeated"]) < rewards()["code mode"]("Revenue rose 12 % in 2024.")


@pytest.mark.parametrize("game", CALLS)
def test_no_call_games_its_scores(game):
    text = CALLS[game] if isinstance(CALLS[game], str) else json.dumps(CALLS[game])
    score = score_calls(text, [CALL], TOOLS)
    assert all(0 <= value <= 1 for value in score)
    assert score.exact == 0 and sum(score) < sum(score_calls(json.dumps(CALL), [CALL], TOOLS)) == 5
    if game.startswith(("repeated", "hedged")):
        assert score.tool == 0 and score.argument_f1 < 1
    gold = json.dumps(CALL)
    example = Example("1", PROMPT, (), (), gold, {"calls": [CALL], "tools": TOOLS, "kind": "call"})
    assert call_reward(text, example) < 1 == call_reward(gold, example)
