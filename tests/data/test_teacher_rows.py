"""A teacher's rows as examples: every form, whole conversations in one split, and nothing lost unsaid."""

import hashlib
import json
from functools import cache

import pytest

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import Format, SpanFormat
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.spans.span import Kind
from quietreasoning.data.tasks import TASKS
from quietreasoning.data.tokenizers import save_tokenizer, train_bpe
from quietreasoning.evaluate.scorers import SCORERS

CALL = '{"name": "search", "arguments": {"q": "Zoe", "n": 3}}'
SEARCH = {"name": "search", "arguments": {"q": "Zoe", "n": 3}}
PARAMETERS = {"type": "object", "properties": {"q": {"type": "string"}, "n": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": PARAMETERS}}]
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "how many?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": SEARCH}]},
    {"role": "tool", "content": '{"people": 1234}'},
    {"role": "assistant", "content": "It has 1234 people."},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    "{% if tools %}({{ tools | length }} tools)\n{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@cache
def tokenizer():
    return train_bpe(["search name arguments people The town has"] * 3, vocab=320)


def ids(text):
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def write(path, *records):
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def load(path, **options):
    task = TASKS["teacher-rows"]
    return task(task.Config.model_validate(options), path=str(path))


@pytest.fixture
def read(tmp_path):
    """Records to (examples, faults), from a file that is the training split alone."""

    def of(*records, **options):
        write(tmp_path / "valid.jsonl", {"prompt": "p", "teacher_text": "t"})
        write(tmp_path / "test.jsonl", {"prompt": "p", "teacher_text": "t"})
        write(tmp_path / "train.jsonl", *records)
        task = load(tmp_path, **options)
        return list(task.split("train")), task.faults

    return of


def kinds(example, kind):
    return [span.of(example.answer) for span in example.meta["spans"] if span.kind is kind]


def test_a_conversation_gives_an_example_for_each_turn(read):
    (call, answer), faults = read({"messages": TALK, "tools": TOOLS, "meta": {"judge_score": 1}})
    opening = f"tools : {json.dumps(TOOLS)}\nsystem : be brief\nuser : how many?"
    assert (call.prompt, call.answer) == (opening, CALL) and faults == []
    assert answer.prompt == f'{opening}\nassistant : {CALL}\ntool : {{"people": 1234}}'
    assert answer.answer == "It has 1234 people." and {call.id, answer.id} == {
        "teacher-rows-1-2",
        "teacher-rows-1-4",
    }
    assert (call.meta["kind"], call.meta["needs_tool"], call.meta["calls"]) == ("call", True, (SEARCH,))
    assert call.meta["tools"] == ({"name": "search", "parameters": PARAMETERS},)
    assert (answer.meta["kind"], answer.meta["calls"]) == ("answer", ())
    assert (call.meta["result"], answer.meta["result"]) == ((), ({"people": 1234},))
    assert call.meta["metadata"] == {"judge_score": 1}
    assert kinds(call, Kind.TOOL_NAME) == ["search"] and kinds(call, Kind.ARG_VALUE) == ['"Zoe"', "3"]
    assert "".join(span.of(CALL) for span in call.meta["spans"]) == CALL


def test_an_answer_row_learns_its_target_alone(read):
    given = {"system": "s", "tools": TOOLS, "history": TALK[1:3], "tool_result": {"people": 99}}
    (example,), _ = read({"input": given, "target": {"text": "99 people"}})
    assert example.answer == "99 people" and example.prompt.endswith('\ntool : {"people": 99}')
    assert example.meta["result"] == ({"people": 99},) and example.meta["kind"] == "answer"


def test_a_chain_becomes_steps_and_old_fields_find_their_place_after_it(read, tmp_path):
    text = f"<think>\nlook it up\nread it\n</think>\nI look: {CALL}\nThe town has 1,200 people."
    old = {"tool_name_ids": ids("town"), "integration_token_ids": ids("1,200"), "teacher_quality_score": 0.9}
    save_tokenizer(tokenizer(), tmp_path / "tokenizer")
    options = {"tokenizer": {"path": str(tmp_path / "tokenizer")}}
    row = {"prompt": "How many?", "teacher_text": text, "answer": "1200", **old}
    (example,), faults = read(row, **options)
    assert (example.prompt, example.steps, faults) == ("How many?", ("look it up", "read it"), [])
    assert example.answer.startswith("I look: {") and example.results == ("", "")
    assert kinds(example, Kind.TOOL_NAME) == ["search", "town"]
    assert kinds(example, Kind.INTEGRATION) == ["1,200"]
    assert example.meta["quality"] == 0.9 and example.meta["answers"] == ("1200",)


@pytest.mark.parametrize(
    ("text", "steps", "answer"),
    [
        ("add 1 then 2\nso 3", ["add 1", "then 2"], "so 3"),  # the text begins with its steps
        ("so 3", ["add 1", "then 2"], "so 3"),
        ("<think>other</think> so 3", ["add 1", "then 2"], "so 3"),
        ("add 12", ["add 1"], "add 12"),  # a longer word is no step
        ("add 1", ["add 1"], "three"),  # nothing but steps: the row's own answer
    ],
)
def test_cot_steps_stand_before_the_answer(read, text, steps, answer):
    (example,), faults = read({"prompt": "p", "teacher_text": text, "cot_steps": steps, "answer": "three"})
    assert (example.steps, example.answer) == (tuple(steps), answer)
    assert [f.partition("field ")[2][:14] for f in faults] == ["'teacher_text'"] * ("other" in text)


def test_examples_encode_with_their_classes_and_steps(read):
    examples, _ = read(
        {"messages": TALK, "tools": TOOLS},
        {"prompt": "p", "teacher_text": f"<think>a\nb</think>{CALL}"},
    )
    encoder = Encoder(tokenizer(), Format(prompt_suffix="\n", spans=SpanFormat()))
    batch = encoder.batch(examples)
    assert (batch.steps_BKS[2, :, 0] != IGNORE).tolist() == [True, True] and batch.answer_BA.shape[0] == 3
    for row, example in enumerate(examples):
        named = batch.answer_BA[row][batch.classes_BA[row] == Kind.TOOL_NAME]
        assert tokenizer().decode(named) == "".join(kinds(example, Kind.TOOL_NAME))
        integrated = batch.answer_BA[row][batch.classes_BA[row] == Kind.INTEGRATION]
        assert tokenizer().decode(integrated).strip() == ("1234" if row == 1 else "")


def test_all_turns_of_a_conversation_stay_in_one_split(tmp_path):
    talks = [
        {"messages": [{"role": "user", "content": f"how many {i}?"}, *TALK[2:]], "tools": TOOLS}
        for i in range(60)
    ]
    again = [{"messages": talk["messages"][:2], "tools": TOOLS} for talk in talks]  # the first turn alone
    task = load(write(tmp_path / "all.jsonl", *talks, *again))
    splits = [task.split(name) for name in ("train", "valid", "test")]
    assert sum(map(len, splits)) == 180 and min(map(len, splits)) > 0
    owners = [{example.meta["conversation"] for example in split} for split in splits]
    assert len(set.union(*owners)) == sum(map(len, owners)) == 60
    assert all(len(split) == 3 * len(owner) for split, owner in zip(splits, owners, strict=True))


def test_broken_rows_are_named_counted_and_refused_beyond_the_budget(read):
    good = {"prompt": "p", "teacher_text": "t"}
    bad = [
        "{",
        {"messages": [TALK[2]], "tools": TOOLS},
        {"prompt": "p", "teacher_text": "<think>a</think>"},
        {"prompt": "p", "teacher_text": "<think>a"},
        {"messages": TALK, "tools": [{"name": "other"}]},
    ]
    with pytest.raises(UserError, match=r"train\.jsonl:2: not JSON .*2 of 11 rows are broken"):
        read(good, *bad, *[good] * 5)
    with pytest.raises(UserError, match=r"5 of 11 rows are broken.*max_bad_fraction, now 0\.2"):
        read(good, *bad, *[good] * 5, max_bad_fraction=0.2)
    examples, faults = read(good, *bad, *[good] * 5, max_bad_fraction=0.5)
    assert len(examples) == 6 and sorted(f.partition("train.jsonl:")[2][0] for f in faults) == list("23456")
    said = " ".join(faults)
    assert "nothing stands before turn 0" in said and "give 'answer'" in said and "add </think>" in said


def test_tools_that_stand_in_the_prompt_are_declared_and_not_written(read):
    row = {"prompt": "tools : search ; how many ?", "teacher_text": CALL, "prompt_tools": TOOLS}
    ((example,), faults) = read(row)
    assert example.prompt == row["prompt"] and not faults
    assert example.meta["tools"] == ({"name": "search", "parameters": PARAMETERS},)
    for broken, says in (({"tools": TOOLS}, "give one of them"), ({"prompt_tools": ["a"]}, "without a name")):
        with pytest.raises(UserError, match=says):
            read(row | broken)


def test_private_reasoning_and_dropped_fields_are_told(read):
    row = {"prompt": "p", "teacher_text": "t", "teacher_reasoning_content": "because", "tool_name_ids": [1]}
    with pytest.raises(UserError, match=r"train\.jsonl:1: .*teacher_reasoning_content.*reasoning=strip"):
        read(row)
    examples, faults = read(row, row, {"prompt": "p", "teacher_text": "t"}, reasoning="strip")
    assert len(examples) == 3 and len(faults) == 2
    assert "train.jsonl:1 and 1 more rows: field 'teacher_reasoning_content'" in faults[0]
    assert "'tool_name_ids': no tokenizer was given" in faults[1]
    assert len(read(row, {"prompt": "p", "teacher_text": "t"}, reasoning="skip")[0]) == 1


def test_a_header_must_fit_the_rows_and_enters_the_fingerprint(tmp_path):
    rows = [{"prompt": f"p{i}", "teacher_text": "t"} for i in range(3)]
    body = write(tmp_path / "body.jsonl", *rows).read_text()
    sha = hashlib.sha256(body.encode()).hexdigest()
    path = write(tmp_path / "rows.jsonl", {"__header__": {"dataset_sha256": sha}}, *rows)
    (tmp_path / "body.jsonl").unlink()
    assert load(path).split("train") and load(path).fingerprint()["rows.jsonl dataset_sha256"] == sha
    write(path, {"__header__": 1, "dataset_sha256": sha}, *rows[:2])
    with pytest.raises(UserError, match=r"rows\.jsonl:1: dataset_sha256 is .*dataset_fingerprint"):
        load(path).split("train")
    write(path, {"__header__": 1, "dataset_fingerprint": "of mine"}, *rows[:2])
    assert load(path).split("train")
    before = load(path).fingerprint()
    write(path, {"__header__": 1, "dataset_fingerprint": "of yours"}, *rows[:2])
    assert {k for k, v in load(path).fingerprint().items() if before[k] != v} == {
        "rows.jsonl",
        "rows.jsonl dataset_fingerprint",
    }


def test_a_prompt_in_a_chat_template(read, tmp_path):
    model = train_bpe(["a"] * 3, vocab=300)
    model.chat_template = TEMPLATE
    save_tokenizer(model, tmp_path / "chat")
    options = {"chat": True, "tokenizer": {"path": str(tmp_path / "chat")}, "dialect": "hermes"}
    (call, answer), _ = read({"messages": TALK, "tools": TOOLS}, **options)
    assert call.prompt == "<system> be brief\n<user> how many?\n(1 tools)\n<assistant>"
    assert call.answer == f"<tool_call>\n{CALL}\n</tool_call>" and answer.prompt.startswith(call.prompt[:30])
    with pytest.raises(UserError, match=r"control token"):
        read({"prompt": "a <eos> b", "teacher_text": "t"}, **options)
    with pytest.raises(ValueError, match=r"set tokenizer\.path"):
        load(tmp_path, chat=True)


def test_turns_are_scored_by_their_calls_in_any_dialect_or_by_their_text(read):
    (call, answer), _ = read({"messages": TALK, "tools": TOOLS})
    turn = SCORERS[TASKS["teacher-rows"].scorer]
    assert turn(CALL, call) and turn(f"I look. <tool_call>{CALL}</tool_call>", call)
    assert turn('[search(n=3, q="Zoe")]', call)
    for wrong in ("", "It has 1234 people.", f"[{CALL}, {CALL}]", CALL.replace("3", "4"), CALL[:-1]):
        assert not turn(wrong, call)
    assert turn("It has  1234 people", answer) and not turn(CALL, answer)
