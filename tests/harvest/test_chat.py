"""Rollouts of a chat model: markers by token id, a pinned template, answers judged as the evaluation does."""

import json

import pytest
import torch

from quietreasoning.backbone.states import read_states
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.data.pairs.folder import PAIRS, read_rows
from quietreasoning.data.pairs.shards import PairStates
from quietreasoning.data.pairs.sources import Markers, find_all
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.harvest import Request, harvest, open_source

MIX = {"dataset": "gsm8k,plain.json", "settings": (), "dtype": "float32"}


@pytest.fixture(scope="module")
def ask(chat, sums, tmp_path_factory):
    def make(**wishes):
        options = {"model": str(chat), "out": tmp_path_factory.mktemp("chat") / "p", "keep": "all"}
        options |= {"dataset": "gsm8k", "paths": (f"gsm8k={sums}",), "dtype": "float32"}
        options |= {"max_new_tokens": 24, "num_samples": 24, "instruction": "", "temperature": 1.0} | wishes
        return options["out"], harvest(Request(**options))

    return make


@pytest.fixture(scope="module")
def made(ask):
    return ask(layers="1,last", samples_per_problem=2)


def open_chat(folder, **wishes):
    return open_source(Request(**{"model": str(folder), "out": None, "dtype": "float32"} | wishes)).source


def test_chains_lie_between_the_markers_and_states_before_and_at_them(made, chat):
    folder, summary = made
    source, states = open_chat(chat), PairStates(folder)
    names = source.tokenizer.convert_tokens_to_ids
    assert summary["correct"] and summary["wrong"] and summary["malformed"] and summary["truncated"]
    for row in states.rows:
        start, opened, chain, end, after, answer = row["places"]
        ids = row["ids"]
        assert ids[opened:chain] == [names("<think>")] and ids[end:after] == [names("</think>")]
        assert opened >= row["prompt_length"] > start > 0 and row["seq_length"] == opened - start
        assert row["num_thinking_tokens"] == end - chain
        assert set(" ".join(row["steps"]).split()) <= {"well", "so", "then"}
        assert ids[answer - 1] == names("####") or "####" not in source.tokenizer.decode(ids[after:])
        whole = torch.tensor([ids])
        found = read_states(source.backbone, whole, torch.full_like(whole, int(Role.PROMPT)), ("last", 1))
        for layer, state_1TD in found.items():
            torch.testing.assert_close(states.pre(row["key"], layer), state_1TD[0, start:opened])
            torch.testing.assert_close(states.post(row["key"], layer), state_1TD[0, end])


def test_outcomes_are_those_of_the_evaluations_scorer(made):
    for row in read_rows(made[0]):
        if row["outcome"] in ("correct", "wrong"):
            gold = type("Gold", (), {"answer": row["gold"], "meta": {}, "id": "x"})
            assert SCORERS["numeric"](row["answer"], gold) == (row["outcome"] == "correct")


def test_only_right_chains_are_kept_unless_all_are_asked_for(ask):
    folder, summary = ask(keep="correct", samples_per_problem=3)
    rows = read_rows(folder)
    assert 0 < summary["kept"] == summary["correct"] < summary["finished"] < summary["asked"] == 72
    assert all(row["kept"] == (row["outcome"] == "correct") for row in rows)
    assert {row["key"] for row in PairStates(folder).rows} == {row["key"] for row in rows if row["kept"]}


def test_the_prefix_that_all_prompts_share_is_dropped_or_kept(made, ask, chat):
    source = open_chat(chat)
    rows = PairStates(made[0]).rows
    for row in rows:
        before = source.tokenizer.decode(row["ids"][: row["places"][0]])
        assert before.split()[-1] == "user" and "what" not in before
    kept = PairStates(ask(keep_system_prefix=True, num_samples=4)[0]).rows
    assert kept and all(row["places"][0] == 0 and row["seq_length"] == row["places"][1] for row in kept)


def test_the_state_before_the_answer_is_another_target(ask, made):
    folder, _ = ask(target="pre_answer")
    close = {row["key"]: row for row in PairStates(made[0]).rows}
    states, other = PairStates(folder), PairStates(made[0])
    for row in states.rows:
        assert row["places"] == close[row["key"]]["places"]
        apart = (states.post(row["key"], "last") - other.post(row["key"], "last")).norm()
        assert (apart < 1e-4) == (row["places"][5] == row["places"][4])
        torch.testing.assert_close(states.pre(row["key"], "last"), other.pre(row["key"], "last"))


def test_the_chain_alone_ends_at_its_marker(ask, made):
    folder, summary = ask(stop_at_close=True)
    whole = {row["key"]: row for row in PairStates(made[0]).rows}
    states, other = PairStates(folder), PairStates(made[0])
    assert summary["unscored"] == summary["kept"] > 0 and summary["correct"] == summary["wrong"] == 0
    both = [row for row in states.rows if row["key"] in whole]
    assert both
    for row in both:
        assert row["ids"] == whole[row["key"]]["ids"][: row["places"][4]]
        assert torch.equal(states.post(row["key"], "last"), other.post(row["key"], "last"))


@pytest.mark.parametrize(
    ("opened", "closed", "header"),
    [("< begin >", "( end )", ""), ("<think>", "</think>", "<think> \n "), ("< in >", "( out )", "< in >")],
)
def test_markers_of_several_tokens_and_templates_that_open_themselves(
    chat_folder, ask, opened, closed, header
):
    model = chat_folder(opened, closed, header)
    folder, summary = ask(model=str(model), opened=opened, closed=closed, keep="all")
    assert summary["kept"] > 3
    source, states = open_chat(model, opened=opened, closed=closed), PairStates(folder)
    for row in states.rows:
        _, first, chain, end, after, _ = row["places"]
        text = source.tokenizer.decode(row["ids"])
        assert source.tokenizer.decode(row["ids"][first:chain]) == opened
        assert source.tokenizer.decode(row["ids"][end:after]) == closed and text.count(closed) == 1
        assert (first < row["prompt_length"]) == bool(header)
        ids_1T = torch.tensor([row["ids"]])
        last = read_states(source.backbone, ids_1T, torch.full_like(ids_1T, int(Role.PROMPT)), ("last",))
        torch.testing.assert_close(states.post(row["key"], "last"), last["last"][0, after - 1])


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([1, 7, 8, 5, 9, 9, 2], (1, 3, 4, 6)),
        ([1, 7, 8, 9, 9], (1, 3, 3, 5)),
        ([7, 8, 5, 9, 9, 7, 8, 5, 9, 9], None),  # a second chain
        ([7, 8, 5, 7, 8, 9, 9], None),  # nested
        ([5, 9, 9, 2], None),  # never opened
        ([7, 8, 5, 2], None),  # never closed
        ([9, 9, 7, 8, 5], None),  # closed before
        ([7, 5, 8, 9, 9], None),  # half a marker
        ([7, 8, 5, 9, 5, 9], None),
    ],
)
def test_a_chain_is_found_once_whole_and_in_order(ids, found):
    places = Markers((7, 8), (9, 9), 2).locate(ids, 0)
    assert found == (places and (places.open, places.chain, places.close, places.after))


def test_markers_before_the_models_turn_do_not_count():
    ids = [7, 8, 5, 9, 9, 1, 7, 8, 5, 9, 9]
    assert Markers((7, 8), (9, 9), 2).locate(ids, 5).open == 6
    assert find_all([9, 9, 9, 9], (9, 9)) == [0, 2]


def test_the_day_that_the_template_prints_is_pinned_and_recorded(chat, ask):
    july, march = (open_chat(chat, date=day) for day in ("2025-07-03", "2024-03-01"))
    assert "today 03 July 2025" in july._render("x") and "today 01 March 2024" in march._render("x")
    folder, _ = ask(num_samples=2)
    settings = PAIRS.read(folder)["settings"]
    assert settings["date"] == "2025-07-01" and settings["thinking"] and settings["markers"][1] == "</think>"
    assert len(settings["model"]["sha256"]) == len(settings["template_sha256"]) == 64
    with pytest.raises(UserError, match="date: '2025-07-01' -> '2025-07-02'"):
        ask(out=folder, num_samples=2, date="2025-07-02")
    with pytest.raises(UserError, match="system: None -> 'what'"):
        ask(out=folder, num_samples=2, system="what")


def test_data_sets_are_mixed_in_equal_parts_and_counted_apart(ask, sums):
    folder, summary = ask(
        dataset="gsm8k,jsonl", paths=(f"gsm8k={sums}", f"jsonl={sums}/plain.json"), num_samples=21
    )
    assert {name: counts["asked"] for name, counts in summary["datasets"].items()} == {
        "gsm8k": 11,
        "jsonl": 10,
    }
    rows = read_rows(folder)
    assert {row["scorer"] for row in rows if row["dataset"] == "gsm8k"} == {"numeric"}
    assert {row["scorer"] for row in rows if row["dataset"] == "jsonl"} == {"exact"}
    assert summary["datasets"]["gsm8k"]["processed"] == 11
    direct, _ = ask(dataset=f"{sums}/plain.json", paths=(), num_samples=3)
    assert {row["dataset"] for row in read_rows(direct)} == {"plain.json"}


def test_a_prompt_without_room_is_truncated_and_all_of_them_are_refused(ask, sums, tmp_path):
    lines = [{"prompt": "what " * n, "answer": "1"} for n in (3, 90, 4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {
        "dataset": "jsonl",
        "paths": (f"jsonl={tmp_path}/rows.jsonl",),
        "num_samples": 9,
        "split": "train",
    }
    folder, _ = ask(**options)
    rows = {row["prompt_length"]: row for row in read_rows(folder)}
    if max(rows) > 90:
        assert rows[max(rows)]["outcome"] == "truncated" and rows[max(rows)]["written"] == 0
    with pytest.raises(UserError, match=r"--max-new-tokens 120: no problem leaves so much room .* 128"):
        ask(**options, max_new_tokens=120)
