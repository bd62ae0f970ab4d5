"""Loaders on small files in the public formats."""

import gzip
import json
from pathlib import Path

import pytest

from quietreasoning.config import UserError
from quietreasoning.data.tasks import TASKS

GSM = {
    "question": "Natalia sold clips to 48 friends, then half as many. How many?",
    "answer": "She sold 48/2 = <<48/2=24>>24 clips in May.\nNice.\n"
    "In all 48+24 = <<48+24=72>>72.\n#### 1,072",
}


def write(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def load(name: str, path: Path, **options):
    return TASKS[name](TASKS[name].Config.model_validate(options), path=str(path))


def qa(n: int) -> list[dict]:
    return [{"prompt": f"question {i}", "answer": str(i)} for i in range(n)]


# Splits


def test_one_file_is_divided_and_a_prompt_stays_in_one_split(tmp_path):
    path = write(tmp_path / "all.jsonl", qa(400) + qa(400))
    splits = {name: load("jsonl", path).split(name) for name in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 800
    assert len(splits["train"]) > 500 and min(map(len, splits.values())) > 30
    prompts = [{e.prompt for e in split} for split in splits.values()]
    assert len(set.union(*prompts)) == sum(map(len, prompts)) == 400
    assert len({e.id for split in splits.values() for e in split}) == 800
    assert load("jsonl", path).split("train", 7) == splits["train"][:7]


def test_a_folder_gives_its_files_and_valid_is_carved_from_train(tmp_path):
    write(tmp_path / "train.jsonl", qa(300))
    write(tmp_path / "x_test.jsonl", [{"prompt": "t", "answer": "1"}])
    task = load("jsonl", tmp_path)
    train, valid = ({e.prompt for e in task.split(name)} for name in ("train", "valid"))
    assert len(train) + len(valid) == 300 and not train & valid and 10 < len(valid) < 70
    assert [e.prompt for e in task.split("test")] == ["t"]
    assert set(task.fingerprint()) == {"task", "seed", "options", "train.jsonl", "x_test.jsonl"}


def test_named_files_win_and_leave_the_training_file_whole(tmp_path):
    path = write(tmp_path / "all.jsonl", qa(50))
    other = write(tmp_path / "other.jsonl", [{"prompt": "v", "answer": "1"}])
    task = load("jsonl", path, valid_path=str(other), test_path=str(other))
    assert len(task.split("train")) == 50 and len(task.split("valid")) == 1
    with pytest.raises(UserError, match=r"data.options.valid_path: .*absent.jsonl does not exist"):
        load("jsonl", path, valid_path=str(tmp_path / "absent.jsonl")).split("valid")


def test_a_test_file_is_never_trained_on(tmp_path):
    path = write(tmp_path / "gsm8k_test.jsonl", [GSM])
    assert len(load("gsm8k", path).split("test")) == 1
    with pytest.raises(UserError, match=r"holds no train split, only test \(gsm8k_test.jsonl\)"):
        load("gsm8k", path).split("train")


def test_missing_things_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"data.path: .*absent does not exist"):
        load("jsonl", tmp_path / "absent").split("train")
    with pytest.raises(UserError, match=r"holds no file for train, valid, test; name one train.jsonl"):
        load("jsonl", tmp_path).split("train")
    with pytest.raises(UserError, match=r"task gsm8k reads files; give data.path"):
        TASKS["gsm8k"]()
    with pytest.raises(UserError, match=r"the valid split of .* is empty"):
        load("jsonl", write(tmp_path / "one.jsonl", [{"prompt": "p", "answer": "1"}])).split("valid")


# Broken records


def broken(tmp_path: Path, n: int) -> Path:
    lines = [json.dumps(record) for record in qa(n)]
    lines[3] = '{"prompt": "cut off'
    lines[5] = '["no object"]'
    lines[7] = '{"prompt": "no answer here"}'
    lines[9] = '{"prompt": "p", "answer": null}'
    path = tmp_path / "train.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff", "answer": "1"}\n\n')
    return path


def test_broken_lines_are_counted_and_refused(tmp_path):
    path = broken(tmp_path, 20)
    with pytest.raises(UserError) as caught:
        load("jsonl", path).split("train")
    line = str(caught.value)
    assert line.startswith(f"{path}:4: not JSON") and "5 of 21 records are broken" in line
    assert "max_bad_fraction, now 0.001" in line and "\n" not in line


def test_broken_lines_within_the_budget_are_left_out_and_named(tmp_path):
    task = load("jsonl", broken(tmp_path, 60), max_bad_fraction=0.25)
    prompts = {e.prompt for name in ("train", "valid", "test") for e in task.split(name)}
    assert prompts == {f"question {i}" for i in range(60) if i not in (3, 5, 7, 9)}
    lines = [fault.partition("train.jsonl:")[2].partition(":")[0] for fault in task.faults]
    assert lines == ["4", "6", "8", "10", "61"]
    assert "no field 'answer' among prompt" in task.faults[2]
    assert "not UTF-8" in task.faults[4]


def test_one_bad_line_in_a_thousand_is_tolerated_by_default(tmp_path):
    path = write(tmp_path / "a.jsonl", [*qa(999), {"prompt": "no answer"}])
    task = load("jsonl", path)
    assert task.split("train") and len(task.faults) == 1
    with pytest.raises(UserError, match="2 of 1001 records are broken"):
        load("jsonl", write(tmp_path / "b.jsonl", [*qa(999), {}, {}])).split("train")


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", ""), ("a.json", "[]")]
)
def test_empty_data_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="holds no records"):
        load("jsonl", tmp_path / name, max_bad_fraction=1).split("train")


def test_all_broken_is_refused_whatever_the_budget(tmp_path):
    with pytest.raises(UserError, match=r"a.jsonl:1: .*1 of 1 records"):
        load("jsonl", write(tmp_path / "a.jsonl", [{}]), max_bad_fraction=1).split("train")


def test_a_damaged_gzip_is_named(tmp_path):
    whole = gzip.compress("".join(json.dumps(record) + "\n" for record in qa(500)).encode())
    for name, content in {
        "cut": whole[:-200],
        "flipped": whole[:300] + b"\0\0\0" + whole[303:],
        "no": b"plain",
    }.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.jsonl.gz:\d+: "):
            load("jsonl", path, max_bad_fraction=0.5).split("train")


def test_json_lists_gzip_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(qa(30), indent=1))
    (tmp_path / "b.json").write_text("".join(json.dumps(record) + "\n" for record in qa(30)))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.json").read_bytes()))
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "b.json").read_bytes())
    loaded = [[e.prompt for e in load("jsonl", path).split("train")] for path in sorted(tmp_path.iterdir())]
    assert len(loaded) == 4 and all(prompts == loaded[0] for prompts in loaded)


def test_fields_are_mapped(tmp_path):
    record = {"q": "How many?", "gold": 7, "why": ["3+4 = <<3+4=7>>7", "so 7"], "say": ["7", ""], "key": "k1"}
    path = write(tmp_path / "train.jsonl", [record])
    fields = {"prompt": "q", "answer": "gold", "steps": "why", "id": "key"}
    (example,) = load("jsonl", path, fields=fields, valid_path=str(path), test_path=str(path)).split("train")
    assert (example.prompt, example.answer, example.id) == ("How many?", "7", "jsonl-k1")
    assert example.steps == tuple(record["why"]) and example.results == ("7", "")
    with pytest.raises(UserError, match=r"train.jsonl:1: no field 'question' among gold, key, q, say, why"):
        load("jsonl", path, fields={"prompt": "question"}).split("train")
    assert load("jsonl", path, scoring="numeric").scorer == "numeric"


def test_popularity_says_what_is_rare(tmp_path):
    rows = [{"prompt": f"q{i}", "answer": "a", "s_pop": pop} for i, pop in enumerate((3, 999.5, 1000, "4e4"))]
    options = {"fields": {"popularity": "s_pop"}, "rare_below": 1000, "valid_path": str(tmp_path / "v")}
    write(tmp_path / "v", rows[:1])
    task = load("jsonl", write(tmp_path / "pop.jsonl", rows), **options, test_path=str(tmp_path / "v"))
    assert [e.meta["rare"] for e in task.split("train")] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="belong together"):
        load("jsonl", tmp_path / "pop.jsonl", rare_below=10)
    with pytest.raises(UserError, match="field 's_pop' is no number: 'many'"):
        load("jsonl", write(tmp_path / "x.jsonl", [rows[0] | {"s_pop": "many"}]), **options).split("train")


# Public formats


def test_gsm8k_steps_and_comma_gold(tmp_path):
    path = write(tmp_path / "test.jsonl", [GSM])
    (example,) = load("gsm8k", path).split("test")
    assert example.steps == ("48/2=24", "48+24=72") and example.results == ("24", "72")
    assert example.answer == "1072" and example.meta["gold"] == "1,072" and example.meta["num_steps"] == 2
    (written,) = load("gsm8k", path, style="sentences").split("test")
    assert written.steps == ("She sold 48/2 = 24 clips in May.", "Nice.", "In all 48+24 = 72.")
    assert written.results == ("24", "", "72")


def test_gsm8k_aug_in_both_forms(tmp_path):
    (tmp_path / "train.txt").write_text("Two and two?||<<2+2=4>> <<4*3=12>> #### 12\n" * 2)
    write(tmp_path / "test.jsonl", [{"question": "q", "steps": ["<<2+2=4>>", "<<4*3=12>>"], "answer": "12"}])
    task = load("gsm8k", tmp_path)
    for example in (task._load(tmp_path / "train.txt")[0], task.split("test")[0]):
        assert example.steps == ("2+2=4", "4*3=12") and example.answer == "12"


@pytest.mark.parametrize(
    "record",
    [{"question": "q", "answer": "72"}, {"question": "q", "answer": "so ####"}, {"answer": "#### 1"}],
)
def test_gsm8k_faults(tmp_path, record):
    with pytest.raises(UserError, match=r"train.jsonl:1: "):
        load("gsm8k", write(tmp_path / "train.jsonl", [record])).split("train")


def test_prosqa_graph_faults(tmp_path):
    record = {
        "question": "Tom is a wumpus. Every wumpus is a bompus. Is Tom a bompus or lempus?",
        "answer": "Tom is a bompus.", "steps": ["Tom is a wumpus.", "Every wumpus is a bompus."],
        "idx_to_symbol": ["Tom", "wumpus", "bompus", "lempus"], "edges": [[0, 1], [1, 2]],
        "root": 0, "target": 2, "neg_target": 3,
    }  # fmt: skip
    (example,) = load("prosqa", write(tmp_path / "prosqa_test.jsonl", [record])).split("test")
    assert example.results == ("wumpus", "bompus") and example.meta["other"] == 3
    assert load("prosqa", tmp_path).shortcuts(example)["root-2"] == "Tom is a bompus."
    for key, value in {"edges": [[0, 9]], "root": "x", "idx_to_symbol": None}.items():
        with pytest.raises(UserError, match=r"test.jsonl:1: "):
            load("prosqa", write(tmp_path / "bad_test.jsonl", [record | {key: value}])).split("test")
        (tmp_path / "bad_test.jsonl").unlink()


def run(source: str, **scope) -> dict:
    exec(source, scope)
    return scope


def test_mbpp_splits_by_task_id(tmp_path):
    base = {
        "text": "Add two numbers.", "code": "def add(a, b):\r\n    return a + b",
        "test_setup_code": "import math", "test_list": ["assert add(1, 2) == 3"], "challenge_test_list": [],
    }  # fmt: skip
    path = write(
        tmp_path / "mbpp.jsonl", [base | {"task_id": i} for i in (1, 10, 11, 510, 511, 600, 601, 974)]
    )
    ids = {
        name: [e.meta["task_id"] for e in load("mbpp", path).split(name)]
        for name in ("train", "valid", "test")
    }
    assert ids == {"train": [601, 974], "valid": [511, 600], "test": [11, 510]}
    example = load("mbpp", path).split("test")[0]
    run(example.answer + "\n" + example.meta["tests"])
    assert example.prompt == "Add two numbers.\nassert add(1, 2) == 3"
    sanitized = {"task_id": 11, "prompt": "Add.", "code": base["code"], "test_imports": ["import re"],
                 "test_list": base["test_list"], "source_file": "x"}  # fmt: skip
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps([sanitized]))
    (clean,) = load("mbpp", tmp_path / "sanitized-mbpp.json").split("test")
    assert clean.meta["tests"].startswith("import re\nassert")


def test_aime_forms(tmp_path):
    records = [
        {"ID": "2024-I-1", "Problem": "p1", "Solution": "s", "Answer": 25},
        {"id": 61, "problem": "p2", "solution": "s", "answer": "025", "url": "u"},
        {"question": "p3", "answer": "73.0"},
    ]
    examples = load("aime", write(tmp_path / "aime.jsonl", records)).split("test")
    assert [e.answer for e in examples] == ["25", "25", "73"]
    assert [e.id for e in examples] == ["aime-2024-I-1", "aime-61", "aime-3"]
    with pytest.raises(UserError, match=r"answer '1000' is no integer from 0 to 999"):
        load("aime", write(tmp_path / "b.jsonl", [{"problem": "p", "answer": "1000"}])).split("test")


def test_apps_calls_and_programs(tmp_path):
    program = {"problem_id": 1, "question": "Double it.", "difficulty": "interview", "starter_code": "",
               "solutions": json.dumps(["print(int(input()) * 2)"]),
               "input_output": json.dumps({"inputs": ["2\n", ["3"]], "outputs": ["4\n", ["6"]]})}  # fmt: skip
    call = {"problem_id": 2, "question": "Double it.", "difficulty": "introductory",
            "starter_code": "class Solution:\n    def twice(self, n):",
            "solutions": "",
            "input_output": json.dumps({"fn_name": "twice", "inputs": [[2]], "outputs": [[4]]})}  # fmt: skip
    path = write(tmp_path / "test.jsonl", [program, call])
    first, second = load("apps", path).split("test")
    assert first.meta["cases"] == (("2\n", "4\n"), ("3", "6")) and first.answer == "print(int(input()) * 2)"
    run("class Solution:\n    def twice(self, n):\n        return 2 * n\n\n" + second.meta["tests"])
    run("def twice(n):\n    return 2 * n\n\n" + second.meta["tests"])
    with pytest.raises(AssertionError):
        run("def twice(n):\n    return n\n\n" + second.meta["tests"])
    assert [e.id for e in load("apps", path, difficulty="interview").split("test")] == ["apps-1"]
    broken = write(tmp_path / "b_test.jsonl", [program | {"input_output": "{"}])
    with pytest.raises(UserError, match="field 'input_output' is no JSON"):
        load("apps", broken).split("test")
