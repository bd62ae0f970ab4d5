"""Rows of a distillation file: old ids placed by text or counted, broken rows named."""

import json
from functools import cache

import pytest

from quietreasoning.config import UserError
from quietreasoning.data.spans.calls import Call
from quietreasoning.data.spans.encode import SpanEncoder
from quietreasoning.data.spans.render import Plain
from quietreasoning.data.spans.rows import RowsConfig, read_rows
from quietreasoning.data.spans.span import Kind
from quietreasoning.data.tokenizers import train_bpe

CALL = '{"name": "search", "arguments": {"q": "Zoë", "n": 3}}'
TWICE = f"[{CALL}, {CALL}]"
TEXT = f"I look: {CALL}\nThe town has 1,200 people."


@cache
def tokenizer():
    return train_bpe(["search name arguments people The town has"] * 3, vocab=320)


def ids(text):
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def write(tmp_path, *records):
    path = tmp_path / "rows.jsonl"
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def kd(**fields):
    return {"prompt": "How many?", "teacher_text": TEXT, **fields}


def read_one(tmp_path, record, **settings):
    rows, report = read_rows(write(tmp_path, record), RowsConfig(**settings), tokenizer=tokenizer())
    return rows[0], report


def spans_of(row, kind):
    text = row.conversation.turns[-1].content
    return [span.of(text) for span in row.spans if span.kind is kind]


def test_a_whole_row_is_read_and_encodes(tmp_path):
    pad = tokenizer().pad_token_id
    name = ids("search")
    row, report = read_one(
        tmp_path,
        kd(
            tool_name_ids=[*name, pad, pad],
            tool_name_mask=[1] * len(name) + [0, 0],
            gold_json_text_ids=ids('{"q":"Zo\\u00eb","n":3}'),
            integration_token_ids=ids(" 1,200"),
            teacher_prefix_ids=ids("I look"),
            teacher_quality_score=0.9,
            cot_steps=["search", "read"],
            answer="1200",
            meta={"judge_score": 1},
            id="a-1",
        ),
    )
    assert report.dropped == [] and report.rows == 1 and str(report).endswith("rows.jsonl: 1 rows")
    assert (row.steps, row.answer, row.quality, row.prefix) == (("search", "read"), "1200", 0.9, "I look")
    assert row.metadata == {"judge_score": 1} and row.line == 1
    assert spans_of(row, Kind.TOOL_NAME) == ["search"] and spans_of(row, Kind.ARG_VALUE) == ['"Zoë"', "3"]
    assert spans_of(row, Kind.INTEGRATION) == ["1,200"]
    encoder = SpanEncoder(tokenizer(), Plain(tokenizer(), spaced=False))
    encoded = encoder.encode(row.conversation, row.spans)
    placed = [(span.kind, span.of(encoded.text)) for span in encoded.spans]
    assert placed == [(span.kind, span.of(TEXT)) for span in row.spans]
    assert tokenizer().decode(encoded.ids_T[encoded.learned_T]) == f" {TEXT}<eos>"


def test_ids_are_placed_by_text_where_no_call_was_parsed(tmp_path):
    text = "Use search here , with { 'q' : 1 } or {\n \"q\": [1]} ."
    row, report = read_one(
        tmp_path, kd(teacher_text=text, tool_name_ids=ids("search"), gold_json_text_ids=ids('{"q":[1]}'))
    )
    assert report.dropped == []
    assert spans_of(row, Kind.TOOL_NAME) == ["search"]
    assert spans_of(row, Kind.ARG_KEY) == ['"q"'] and spans_of(row, Kind.ARG_VALUE) == ["1"]


@pytest.mark.parametrize(
    ("fields", "dropped", "reason"),
    [
        ({"tool_name_ids": "lookup"}, "tool_name_ids", "'lookup' stands no times"),
        ({"tool_name_ids": "search", "teacher_text": TWICE}, "tool_name_ids", "called 2 times"),
        ({"gold_json_text_ids": CALL, "teacher_text": TWICE}, "gold_json_text_ids", "2 calls"),
        ({"gold_json_text_ids": '{"q": "Zoë"}'}, "gold_json_text_ids", "stands no times"),
        ({"gold_json_text_ids": '{"q": '}, "gold_json_text_ids", "no JSON (the text ends too early at"),
        ({"tool_result_fields": "town", "teacher_text": "town to town"}, "tool_result_fields", "2 times"),
        ({"tool_result_fields": "own", "teacher_text": "town"}, "tool_result_fields", "stands no times"),
        ({"teacher_prefix_ids": "You"}, "teacher_prefix_ids", "does not begin with 'You'"),
        ({"tool_name_ids": [5], "tool_name_mask": [1, 1]}, "tool_name_ids", "mask has 2 entries for 1 ids"),
        ({"tool_name_ids": [99999]}, "tool_name_ids", "id 99999 is none of this tokenizer's"),
        ({"tool_name_ids": [-100]}, "tool_name_ids", "decode to nothing"),
        ({"integration_mask": [0, 1]}, "integration_mask", "a mask without tool_result_fields says no place"),
        ({"tool_result_fields": {"a": "absent"}}, "tool_result_fields", "repeats none of its values"),
        ({"teacher_logits": [[0.5]]}, "teacher_logits", "import them there"),
        ({"tool_name_id": [5]}, "tool_name_id", "Did you mean"),
        ({"teacher_text": CALL[:-1] + ",}"}, "teacher_text", "a broken tool call: a key in quotes expected"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_used_is_counted_with_its_reason(tmp_path, fields, dropped, reason):
    fields = {k: ids(v) if isinstance(v, str) and k != "teacher_text" else v for k, v in fields.items()}
    row, report = read_one(tmp_path, kd(**fields))
    assert report.counts() == {dropped: 1} and report.dropped[0].line == 1
    assert reason in report.dropped[0].reason and str(report.dropped[0]).startswith(
        f"{tmp_path}/rows.jsonl:1:"
    )
    assert f"1 x '{dropped}' dropped" in str(report) and row.conversation.turns[1].content


def test_values_of_results_are_found_as_values(tmp_path):
    row, report = read_one(tmp_path, kd(tool_result_fields={"people": 1200, "ok": True}))
    assert spans_of(row, Kind.INTEGRATION) == ["1,200"] and not report.dropped


def test_without_the_tokenizer_ids_are_counted_not_guessed(tmp_path):
    rows, report = read_rows(write(tmp_path, kd(tool_name_ids=[5]), kd(tool_name_ids=[])))
    assert (
        len(rows) == 2 and "no tokenizer was given" in report.dropped[0].reason and len(report.dropped) == 1
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"prompt": ', "not JSON"),
        ([1], "not an object but list"),
        ({"prompt": "a"}, "field 'teacher_text' is absent"),
        ({"prompt": 1, "teacher_text": "b"}, "field 'prompt' is int, not text"),
        (kd(tool_name_ids=[5], teacher_quality_score=True), "is bool, not a number"),
        (kd(teacher_quality_score="high"), "is str, not a number"),
        (kd(cot_steps="one"), "field 'cot_steps' is str, not a list"),
        (kd(tool_name_ids=["a"]), "field 'tool_name_ids' holds an item that is no id"),
        (kd(meta={"a": 1}, metadata={"a": 2}), "two names of one field and differ; keep one"),
        (kd(messages=[]), "this one has 'prompt' and 'messages'"),
        ({"answer": "b"}, "this one has none of them"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn to learn"),
        ({"input": {"sytem": "a"}, "target": {"text": "b"}}, "unknown field 'sytem'. Did you mean 'system'"),
        ({"input": {"history": "a"}, "target": {}}, "field 'text' is absent"),
        ({"__header__": {}}, "a header .* that is not the first line"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named_and_beyond_the_budget_the_file_is_refused(tmp_path, record, said):
    path = write(tmp_path, kd(), "", record, kd(tool_nam=1))
    with pytest.raises(UserError, match=rf"rows\.jsonl:3: .*{said}.*1 of 3 rows are broken; mend them"):
        read_rows(path)
    rows, report = read_rows(path, RowsConfig(max_bad_fraction=0.4))
    assert len(rows) == report.rows == 2 and len(report.faults) == 1 and "1 rows broken" in str(report)
    assert [(one.line, one.field) for one in report.dropped] == [(4, "tool_nam")]  # none of the broken row


def test_a_header_is_kept(tmp_path):
    header = {"__header__": {"version": 1}, "dataset_sha256": "ab"}
    rows, report = read_rows(write(tmp_path, header, kd()))
    assert report.header == header and [row.line for row in rows] == [2]
    with pytest.raises(UserError, match="holds no rows to learn from"):
        read_rows(write(tmp_path, header))


def test_private_reasoning_is_refused_unless_said_otherwise(tmp_path):
    path = write(tmp_path, kd(teacher_reasoning_content=" "), kd(teacher_reasoning_content="Hm"))
    with pytest.raises(UserError, match=r"rows\.jsonl:2: field 'teacher_reasoning_content'.*reasoning=skip"):
        read_rows(path, RowsConfig(max_bad_fraction=1))
    rows, report = read_rows(path, RowsConfig(reasoning="skip"))
    assert [row.line for row in rows] == [1] and [one.line for one in report.skipped] == [2]
    rows, report = read_rows(path, RowsConfig(reasoning="strip"))
    assert len(rows) == 2 and report.counts() == {"teacher_reasoning_content": 1}


def test_conversations_and_answers(tmp_path):
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"name": "f"}]}]
    given = {"system": "s", "tools": [{"name": "f"}], "history": asked, "tool_result": {"n": 1200}}
    talk = {"messages": [*asked, {"role": "tool", "content": "5"}, {"role": "assistant", "content": "b"}]}
    rows, report = read_rows(write(tmp_path, {"input": given, "target": {"text": "There are 1,200."}}, talk))
    turns = rows[0].conversation.turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert turns[2].calls == (Call("f"),) and turns[3].content == '{"n": 1200}' and not report.dropped
    assert [turn.learn for turn in turns if turn.role == "assistant"] == [False, True]
    row = SpanEncoder(tokenizer(), Plain(tokenizer())).encode(rows[0].conversation, rows[0].spans)
    assert [span.of(row.text) for span in row.spans] == ["1,200"]
    assert tokenizer().decode(row.ids_T[row.learned_T]) == " There are 1,200. <eos>"
    assert all(turn.learn for turn in rows[1].conversation.turns)
