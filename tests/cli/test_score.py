"""`quiet score`: exit codes, a table with evidence, JSON that parses; the page's example runs as written."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quietreasoning.cli.main import app

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")


def quiet(*arguments):
    done = CliRunner().invoke(app, ["score", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The files of the page, and what it says is printed."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^(?:`(\S+)`|What `.*`.*):\n\n```\w+\n(.*?)^```", PAGE, re.S | re.M)
    files = dict(blocks)
    for name in ("rules.yaml", "report.txt", "answer.txt"):
        Path(name).write_text(files[name], encoding="utf-8")
    return files[""]


COMMAND = ("answer.txt", "--rules", "rules.yaml", "--evidence", "report.txt")


def test_the_page_prints_what_it_says(example):
    code, out, err = quiet(*COMMAND)
    assert (code, err) == (1, "") and out == example
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], names := {})
    assert names["reward"] > 0.5 and names["better"].chosen == "a"


def test_a_right_answer_is_kept_and_json_tells_all(example):
    Path("answer.txt").write_text("Revenue rose 12 % in 2024. The main cause was the new store in Oslo.")
    code, out, err = quiet(*COMMAND, "--json", "-")
    record = json.loads(out)
    assert code == 0 and (record["n"], record["kept"], record["threshold"]) == (1, 1, 0.6)
    (row,) = record["rows"]
    assert (
        row["total"] == 1.0
        and row["holds"]
        and [one["rule"] for one in row["results"]]
        == [
            "private",
            "short",
            "borne-out",
            "answer",
        ]
    )
    assert "total 1.00" in err


def test_rows_are_scored_one_by_one(example):
    evidence = "In 2024 revenue rose 12 %. The main cause was the new store in Oslo."
    rows = [
        {
            "answer": "Revenue rose 12 % in 2024. The main cause was the new store in Oslo.",
            "evidence": evidence,
        },
        {"answer": "Ask bob@example.com.", "evidence": evidence},
        {"answer": "", "evidence": evidence},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = quiet("rows.jsonl", "--rules", "rules.yaml", "--field", "answer", "--json", "scores.json")
    assert code == 1 and "1 of 3 rows kept" in out
    assert "4-19: personal data: email" in out and "the text is empty" in out
    record = json.loads(Path("scores.json").read_text())
    assert [row["kept"] for row in record["rows"]] == [True, False, False]
    spans = [
        e["span"] for one in record["rows"][1]["results"] for e in one["evidence"] if one["rule"] == "private"
    ]
    assert spans == [[4, 19]]
    Path("rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert quiet("rows.jsonl", "--rules", "rules.yaml", "--field", "answer")[0] == 0


def test_a_file_that_only_forbids_is_noted(example):
    Path("rules.yaml").write_text("rules: [{id: a, kind: safety}]")
    code, _, err = quiet(*COMMAND)
    assert code == 0 and "no rule asks a text to say anything" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere.txt", "--rules", "rules.yaml"), "nowhere.txt: cannot be read"),
        (("answer.txt", "--rules", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (("answer.txt", "--rules", "rules.yaml", "--evidence", "nowhere"), "nowhere: cannot be read"),
        (("bad.jsonl", "--rules", "rules.yaml"), "bad.jsonl:1: no field 'text'. Did you mean 'txt'?"),
        (("answer.txt", "--rules", "bad.yaml"), "Did you mean 'budget'?"),
        (("answer.txt", "--rules", "rules.yaml", "--field", "text"), "--field text: answer.txt is one text"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(example, arguments, says):
    Path("bad.jsonl").write_text('{"txt": "a"}\n')
    Path("bad.yaml").write_text("rules: [{id: a, kind: budgets}]")
    code, out, err = quiet(*arguments)
    assert code == 2 and says in err and err.count("\n") == 1 and not out
