"""The task `tools`: schemas, calls and results belong together, and a schema must be read to call."""

import json
from collections import Counter
from functools import cache
from random import Random

import pytest

from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tasks.tool_forms import Wish, tool_counts, written
from quietreasoning.data.tasks.tool_pool import BY_NAME, POOL, execute
from quietreasoning.data.tasks.tools import DECLINE, Problem, Tools, ToolsConfig
from quietreasoning.data.tokenizers import train_words
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.evaluate.tool_scores import tool_rates, valid_call

OPTIONS = [
    "{}",
    '{"depth": 3, "rows": "call", "parallel": 1.0}',
    '{"depth": 2, "rows": "answer", "tools": 2, "distractors": "random"}',
    '{"no_tool": 1.0, "tools": [4, 8]}',
]


@cache
def drawn(options: str, n: int = 150):
    task = Tools(ToolsConfig.model_validate(json.loads(options)))
    return task, task.split("train", n)[:]


@pytest.mark.parametrize("options", OPTIONS)
def test_gold_calls_are_valid_and_give_the_result_that_the_answer_tells(options):
    task, examples = drawn(options)
    for e in examples:
        kind, calls, tools = e.meta["kind"], e.meta["calls"], e.meta["tools"]
        names = [tool["name"] for tool in tools]
        assert len(set(names)) == len(names) and len(names) in tool_counts(task.config.tools, 2, 8)
        assert e.meta["needs_tool"] == bool(calls) == (kind in ("call", "answer"))
        assert all(valid_call(call, tools) for call in calls)
        assert tuple(execute(call["name"], call["arguments"]) for call in calls) == e.meta["result"]
        assert SCORERS["call"](e.answer, e) and not SCORERS["call"](e.answer + " 1", e)
        if kind == "call":
            asked = json.loads(e.answer)
            assert (asked if isinstance(asked, list) else [asked]) == list(calls)
        if kind == "answer":
            assert f"call : {written(calls if len(calls) > 1 else calls[0])}" in e.prompt
            for result in e.meta["result"]:
                assert {str(value) for value in result.values()} & set(e.answer.split())
        if kind == "decline":
            (wanted,) = (BY_NAME[name] for name, _ in e.meta["wishes"])
            assert e.answer == DECLINE and not set(wanted.names) & set(names)
        if kind == "told":
            assert e.answer in e.prompt.split("user : ")[1].split()


def test_shares_groups_and_nesting_are_as_told():
    task, examples = drawn("{}", 500)
    kinds = Counter(e.meta["kind"] for e in examples)
    assert 0.4 < kinds["answer"] / 500 < 0.6 and 0.12 < (kinds["decline"] + kinds["told"]) / 250 < 0.28
    groups = {"call", "call of 2", "answer", "answer of 2", "decline", "told"}
    assert {task.group(e) for e in examples} == groups
    assert 0.12 < sum(len(e.meta["calls"]) == 2 for e in examples) / 450 < 0.28

    def depth(value):
        return 1 + max(map(depth, value.values()), default=0) if isinstance(value, dict) else 0

    for options, most in ((OPTIONS[0], 1), (OPTIONS[2], 2), (OPTIONS[1], 3)):
        assert {depth(c["arguments"]) for e in drawn(options)[1] for c in e.meta["calls"]} == {most}


def test_the_vocabulary_is_closed_small_and_keeps_json_whole():
    task, examples = drawn("{}", 500)
    written = [(e, text) for e in examples for text in (e.prompt, e.answer, *e.steps)]
    words = set(task.vocabulary())
    assert {word for _, text in written for word in text.split()} <= words and len(words) < 520
    nested = [e for options in OPTIONS for e in drawn(options)[1]]
    assert {word for e in nested for word in f"{e.prompt} {e.answer}".split()} <= words
    encoder = Encoder(train_words([*words, "####"]))
    for e in nested[:200]:
        assert encoder.text(encoder.encode(e).answer) == e.answer
        assert not encoder.unknown_words(e.prompt)


def words_of(tool):
    return {word for name in tool.names for word in name.split("_")}


def test_names_and_keys_vary_so_that_a_schema_must_be_read():
    task, examples = drawn("{}", 500)
    names = [name for tool in POOL for name in tool.names]
    assert len(POOL) >= 12 and len(set(names)) == len(names) == 2 * len(POOL)
    shared = Counter(word for tool in POOL for word in words_of(tool))
    assert all(max(shared[word] for word in words_of(tool)) > 1 for tool in POOL)
    for tool in POOL:
        keys = {key for param in tool.params for key in param.keys}
        assert len(keys) == 2 * len(tool.params)
        assert keys.isdisjoint(key for param in tool.params for key in param.around)
    shortcuts = [task.shortcuts(e) for e in examples]
    assert len({tuple(each) for each in shortcuts}) == 1
    for rule, most in (("usual-names", 0.15), ("first-tool", 0.0), ("decline", 0.1)):
        right = sum(SCORERS["call"](said[rule], e) for said, e in zip(shortcuts, examples, strict=True))
        assert right / len(examples) <= most, rule
    said = tool_rates([each["usual-names"] for each in shortcuts], examples)
    assert said["parses"][0] == said["parses"][1] and said["declined"][0] == 0 < said["over_calling"][0]


def test_another_call_gives_another_result():
    changed = []
    for name, values in (wish for e in drawn("{}", 500)[1] for wish in e.meta["wishes"]):
        tool = BY_NAME[name]
        for param in tool.params:
            key = param.keys[0]
            if key in values and not param.many:
                other = param.values[(list(param.values).index(values[key]) + 1) % len(param.values)]
                changed.append(execute(name, {**values, key: other}) != execute(name, values))
    assert sum(changed) / len(changed) > 0.9
    for name, arguments in (("no_tool", {}), ("get_price", {"city": "rome"}), ("get_price", {"item": "tea"})):
        with pytest.raises(ValueError, match=name):
            execute(name, arguments)


def test_the_row_after_a_call_is_the_row_that_holds_it():
    """The gold call gives the row that the task draws itself; a wrong one gives its own result and the same
    answer to be found."""
    task = Tools(ToolsConfig(no_tool=0, parallel=0.5))
    for seed in range(60):
        asked = task.draw(Random(seed))
        call, answer = (task.render(asked._replace(kind=k), "a", Random(seed)) for k in ("call", "answer"))
        after = task.after(call, list(call.meta["calls"]))
        assert (after.prompt, after.answer, after.steps, after.results) == (
            *(answer.prompt, answer.answer),
            *(answer.steps, answer.results),
        )
        assert after.meta == answer.meta
    wrong = {"name": "get_price", "arguments": {"item": "tea", "count": 3}}
    after = task.after(call, [wrong])
    assert (
        after.prompt.endswith(f"result : {written(execute(*wrong.values()))}")
        and after.answer == answer.answer
    )


def test_a_problem_is_what_is_wanted_whoever_asks_and_in_which_row():
    task, _ = drawn("{}")
    tea = Wish(BY_NAME["get_price"], {"item": "tea", "count": 3})
    rome = Wish(BY_NAME["read_traffic"], {"city": "rome", "hour": 9})
    forms = [Problem("call", (tea, rome)), Problem("answer", (rome, tea))]
    assert len({task.canonical(problem) for problem in forms}) == 1
    assert task.canonical(Problem("decline", (tea,))) == task.canonical(Problem("call", (tea,)))


@pytest.mark.parametrize("options", [{"tools": 1}, {"tools": []}, {"tools": [2, 9]}, {"depth": 4}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError):
        ToolsConfig.model_validate(options)
