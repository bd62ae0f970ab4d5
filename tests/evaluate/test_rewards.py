"""What an answer earns: better answers earn more, the gold one alone earns all, no text raises."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietreasoning.data.example import Example
from quietreasoning.data.spans.calls import Call
from quietreasoning.data.spans.dialects import DIALECTS
from quietreasoning.evaluate.rewards import call_reward, reward_of, turn_reward
from quietreasoning.evaluate.scorers import SCORERS

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "day": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = tuple({"name": name, "parameters": SCHEMA} for name in ("weather", "traffic"))
GOLD = {"name": "weather", "arguments": {"city": "sofia", "day": 25}}


def row(answer, *calls, tools=TOOLS):
    meta = {"kind": "call" if calls else "told", "calls": calls, "tools": tools}
    return Example("1", "?", (), (), answer, meta)


CALL, WORDS = row(json.dumps(GOLD), GOLD), row("no tool fits")


def said(name="weather", **arguments):
    return json.dumps({"name": name, "arguments": arguments})


LADDER = {  # from worst to best
    "no call": "weather in sofia",
    "parses": said("weather", town="rome"),
    "keeps a schema": said("traffic", city="rome"),
    "right tool": said(city="rome"),
    "one argument": said(city="sofia", day=3),
    "most of them": said(city="sofia"),
    "right": json.dumps(GOLD),
}


@pytest.mark.parametrize("reward", [call_reward, turn_reward])
def test_each_rung_earns_more_than_the_one_below(reward):
    worth = [reward(text, CALL) for text in LADDER.values()]
    assert worth == sorted(set(worth)) and worth[0] == 0 and worth[-1] == 1 and worth[-2] < 0.95
    assert reward(json.dumps(GOLD, indent=1), CALL) == 1


GAMES = {
    "empty": "",
    "no object": "[]",
    "an object without a name": "{}",
    "every tool at once": json.dumps([{"name": t["name"], "arguments": GOLD["arguments"]} for t in TOOLS]),
    "the right call, twice": json.dumps([GOLD, GOLD]),
    "values of every kind": said(city="sofia", day="25"),
    "more keys": said(city="sofia", day=25, town="sofia"),
    "words around it": "i call " + json.dumps(GOLD)[:-1],
}


@pytest.mark.parametrize("game", GAMES)
def test_games_stay_below_an_honest_answer(game):
    """Half a point and more is left between the gold call and the nearest trick that calls too much."""
    for reward in (call_reward, turn_reward):
        assert reward(GAMES[game], CALL) <= 0.75, reward
    assert call_reward(json.dumps(GOLD), WORDS) == turn_reward(json.dumps(GOLD), WORDS) == 0
    called = row(json.dumps(GOLD), GOLD)
    assert call_reward("no tool fits", called) == turn_reward("no tool fits", called) == 0
    assert call_reward("no tool fits", WORDS) == turn_reward("no tool fits.", WORDS) == 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_turn_is_graded_in_any_dialect(dialect):
    def wrote(name, **arguments):
        return "I look.\n" + DIALECTS[dialect]().write([Call(name, arguments)])

    worth = [
        turn_reward(text, CALL)
        for text in (
            "I look.",
            wrote("traffic", city="rome"),
            wrote("weather", city="rome"),
            wrote("weather", city="sofia"),
            wrote("weather", city="sofia", day=25),
        )
    ]
    assert worth == sorted(set(worth)) and worth[0] == 0 and worth[-1] == 1
    free = row(wrote("weather", city="sofia"), {"name": "weather", "arguments": {"city": "sofia"}}, tools=())
    assert turn_reward(wrote("weather", city="sofia"), free) == 1
    assert 0.5 == turn_reward(wrote("weather", city="rome"), free) > turn_reward(wrote("walk"), free) > 0


def test_a_broken_call_beside_the_right_one_earns_less():
    broken = json.dumps(GOLD) + ' {"name": "weather", "arguments": {"city"'
    assert turn_reward(LADDER["keeps a schema"], CALL) < turn_reward(broken, CALL) < 0.75


def test_other_tasks_earn_what_is_right():
    numbers = Example("1", "?", (), (), "12", {})
    assert [reward_of("numeric")(text, numbers) for text in ("12.0", "13", "")] == [1.0, 0.0, 0.0]
    assert reward_of("call") is call_reward and reward_of("turn") is turn_reward


PIECES = ['{"name": "weather", "arguments": {', "}", "]", "[", '"city": "sofia"', ",", "<tool_call>"]
PIECES += ["</tool_call>", "[weather(city=", "✿FUNCTION✿: f\n✿ARGS✿: ", "\\ud800", "1e999", "NaN", "{" * 200]


@settings(deadline=None, max_examples=25)
@given(st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=8).map("".join)))
def test_no_text_raises_and_only_what_is_right_earns_all(text):
    for reward, scorer in ((call_reward, "call"), (turn_reward, "turn")):
        for example in (CALL, WORDS):
            worth = reward(text, example)
            assert 0 <= worth <= 1 and (worth == 1) == bool(SCORERS[scorer](text, example))


def test_numbers_and_lengths_beyond_reading_are_worth_nothing():
    for text in (f"[weather(city=0x{'f' * 5000})]", "{" * 30_000, said(city="a" * 30_000)):
        assert turn_reward(text, CALL) == 0
