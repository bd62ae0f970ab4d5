"""Pairs of answers: read from files, encoded beside each other, and made by the task `programs`."""

import json

import pytest

from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE
from quietreasoning.data.config import Format, SpanFormat
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tasks import TASKS
from quietreasoning.data.tasks.programs import LONG
from quietreasoning.data.tokenizers import train_bpe
from quietreasoning.kinds import Kind

SALES = {"type": "function", "function": {"name": "sales", "parameters": {"properties": {"shop": {}}}}}
CALLS = '<tool_call>\n{"name": "sales", "arguments": {"shop": "a"}}\n</tool_call>\n' * 2
PROGRAM = "```python\nprint(sales(shop='a'))\n```"
CODE = {"prompt": "sum ?", "chosen": PROGRAM, "rejected": CALLS, "tools": [SALES], "reasons": ["2 calls"]}
TALK = {"prompt": "hello", "chosen": "hello !", "rejected": "go away"}


def load(tmp_path, *records, **options):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    task = TASKS["preferences"](TASKS["preferences"].Config(**options), path=str(tmp_path))
    (tmp_path / "valid.jsonl").write_text(json.dumps(TALK), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(json.dumps(TALK), encoding="utf-8")
    return task, task.split("train")


def test_rows_are_pairs_and_tools_stand_before_the_prompt_as_in_rows_of_a_teacher(tmp_path):
    _, (code, talk) = load(tmp_path, CODE, TALK)
    assert (code.answer, code.rejected) == (PROGRAM, CALLS.strip())
    assert (talk.prompt, *talk.answers) == ("hello", "hello !", "go away")
    taught = tmp_path / "taught"
    taught.mkdir()
    said = [{"role": "user", "content": "sum ?"}, {"role": "assistant", "content": PROGRAM}]
    (taught / "train.jsonl").write_text(json.dumps({"messages": said, "tools": [SALES]}), encoding="utf-8")
    rows = TASKS["teacher-rows"](path=str(taught / "train.jsonl"))
    assert code.prompt == rows.split("train")[0].prompt
    assert code.meta["metadata"] == {"code_mode": True} and talk.meta["metadata"] == {}
    shown = {name: value for name, value in CODE.items() if name != "tools"} | {"prompt_tools": [SALES]}
    _, (told,) = load(tmp_path, shown)  # the prompt declares them in its own words
    assert told.prompt == "sum ?" and told.meta["tools"] == code.meta["tools"]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (TALK | {"rejected": " hello !\n"}, "chosen and rejected are the same"),
        (TALK | {"rejected": ""}, "field 'rejected' is empty"),
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'"),
        (TALK | {"chosen": [{"role": "assistant"}]}, "field 'chosen' is list, not text"),
        (TALK | {"tools": [{"name": ""}]}, "a tool without a name"),
        (TALK | {"tools": "sales"}, "field 'tools' is no list of objects"),
        (CODE | {"prompt_tools": [SALES]}, "give one of them"),
    ],
)
def test_broken_pairs_are_named_counted_and_refused_beyond_a_share(tmp_path, broken, says):
    with pytest.raises(UserError, match=rf"train\.jsonl:2: .*{says}.*1 of 2 records are broken"):
        load(tmp_path, TALK, broken)
    task, rows = load(tmp_path, TALK, broken, max_bad_fraction=0.5)
    assert len(rows) == 1 and len(task.faults) == 1 and says in task.faults[0]


def test_both_answers_are_encoded_alike_and_openers_are_told_where_a_program_was_due(tmp_path):
    _, rows = load(tmp_path, CODE, CODE | {"reasons": []}, TALK)
    tokenizer = train_bpe([PROGRAM, CALLS, *TALK.values()], vocab=320)
    spans = SpanFormat(dialect="hermes", direct_calls=3)
    encoder = Encoder(tokenizer, Format(spans=spans))
    batch = encoder.batch(rows)
    for row, example in enumerate(rows):
        for ids_BA, text in ((batch.answer_BA, example.answer), (batch.rejected_BA, example.rejected)):
            ids = ids_BA[row][ids_BA[row] != IGNORE].tolist()
            assert ids == [*tokenizer(f" {text}").input_ids, tokenizer.eos_token_id]
    assert batch.rejected_classes_BA.shape == batch.rejected_BA.shape
    opened = (batch.rejected_classes_BA == Kind.DIRECT_CALL).any(1)
    assert opened.tolist() == [True, False, False]  # two calls are fewer than three, unless the row says it
    assert (batch.classes_BA == Kind.CODE).any(1).tolist() == [True, True, False]
    longest = int((batch.prompt_BP[0] != IGNORE).sum() + (batch.rejected_BA[0] != IGNORE).sum()) + 3
    assert encoder.fit(rows) == [True] * 3
    assert not Encoder(tokenizer, Format(spans=spans), context=longest - 1).fit(rows[:1])[0]


def test_a_task_without_pairs_gives_none():
    task = TASKS["pointer"]()
    rows = task.split("train", 2)
    encoder = Encoder(train_bpe([row.prompt + row.answer for row in rows], vocab=320))
    assert encoder.batch(rows).rejected_BA.shape == (2, 0)


def test_programs_are_due_where_more_than_one_value_or_much_text_is_read():
    due = [TASKS["programs"]().example("train", i) for i in range(60)]
    for row in due:
        kind, rows = row.meta["kind"], next(iter(row.meta["tables"].values()))
        program, plain = row.answers if kind != "one" else row.answers[::-1]
        assert row.meta["metadata"]["code_mode"] == (kind != "one") and program.startswith("```python\nprint")
        named = json.loads(plain)
        assert tuple(named if isinstance(named, list) else [named]) == row.meta["plain"]
        assert len(rows) == (LONG if kind == "long" else len(row.meta["plain"]))
    assert {row.meta["kind"] for row in due} == {"one", "several", "long"}
    config = TASKS["programs"].Config(answers="either")
    either = [TASKS["programs"](config).example("train", i) for i in range(60)]
    assert all(row.rejected is None for row in either)
    codes = [row.answer.startswith("```") for row in either]
    due_B = [row.meta["metadata"]["code_mode"] for row in either]
    assert {(True, True), (True, False), (False, True), (False, False)} == set(zip(codes, due_B, strict=True))
