"""Tables that survive a pipe, JSON that programs read."""

import json

import pytest

from quietreasoning.cli.look import brief, setting_rows
from quietreasoning.cli.output import human_bytes, print_table, write_json


def test_a_table_in_a_pipe_is_neither_cut_nor_wrapped(capsys):
    long = "x" * 300
    print_table(("key", "value"), [("a", 1), ("longer", long)])
    assert capsys.readouterr().out.splitlines() == ["key     value", "a       1", f"longer  {long}"]


def test_an_empty_table_is_its_headings(capsys):
    print_table(("key", "value"), [])
    assert capsys.readouterr().out == "key  value\n"


def test_json_goes_to_a_file_to_stdout_or_nowhere(tmp_path, capsys):
    write_json(None, {"a": 1})
    write_json("-", {"a": "ä"})
    assert json.loads(capsys.readouterr().out) == {"a": "ä"}
    write_json(str(tmp_path / "new" / "x.json"), [1])
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == [1]


def test_json_refuses_what_is_no_json():
    with pytest.raises(ValueError):
        write_json("-", float("nan"))


def test_sizes_for_people():
    assert [human_bytes(n) for n in (0, 1023, 1536, 3 * 2**30, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 GiB",
        "5.0 TiB",
    ]


def test_settings_are_shown_with_their_sources():
    values = {"seed": 0, "stages": [{"name": "main", "train": {"steps": 5, "clip": 1.0}}]}
    rows = setting_rows(values, {"stages.main.train.steps": "command line"})
    assert rows == [
        ("seed", 0, "default"),
        ("train.steps", 5, "command line"),
        ("train.clip", 1.0, "default"),
    ]
    values["stages"].append({"name": "more", "train": {"steps": 6}})
    assert ("stages.more.train.steps", 6, "recipe r") in setting_rows(values, {"stages.more": "recipe r"})


def test_a_stage_is_shown_by_what_it_changes():
    rows = [
        ("seed", 0, "default"),
        ("stages.a.train.steps", 5, "recipe"),
        ("stages.a.optim.lr", 1, "recipe"),
        ("stages.b.train.steps", 6, "recipe, stage b"),
        ("stages.b.optim.lr", 1, "recipe"),
        ("stages.c.train.steps", 5, "recipe, stage c"),
        ("stages.c.optim.lr", 1, "recipe"),
    ]
    assert [key for key, _, _ in brief(rows)] == [
        "seed",
        "stages.a.train.steps",
        "stages.a.optim.lr",
        "stages.b.train.steps",
        "stages.c.train.steps",
    ]
