"""LongBench and PopQA files: what an example holds, splits by subject, shots, groups, broken records."""

import csv
import json
from collections import Counter

import pytest
from pydantic import ValidationError

from quietreasoning.config import UserError
from quietreasoning.data.config import DataConfig
from quietreasoning.data.tasks import TASKS
from quietreasoning.evaluate.scorers import SCORERS

QA = {
    "input": "Who sails {north}?",
    "context": "Ada sails north. " * 30,
    "answers": ["Ada", "Ada Lark"],
    "all_classes": None,
    "dataset": "hotpotqa",
    "length": 90,
    "_id": "q1",
}
TREC = QA | {"dataset": "trec", "answers": ["Food"], "all_classes": ["Food", "Animal"], "_id": "t1"}
CODE = QA | {"dataset": "lcc", "input": "", "answers": ["    return a"], "_id": "c1", "length": 9000}


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def load(name, path, **options):
    return TASKS[name](TASKS[name].Config.model_validate(options), path=str(path))


# LongBench


def test_longbench_reads_a_folder_with_the_data_sets_in_turn(tmp_path):
    write(tmp_path / "hotpotqa.jsonl", [QA, QA | {"_id": "q2"}])
    write(tmp_path / "trec_e.jsonl", [TREC | {"dataset": "trec_e"}])
    write(tmp_path / "lcc.jsonl", [CODE])
    task = load("longbench", tmp_path)
    found = task.split("test")
    assert [e.id for e in found] == ["hotpotqa-q1", "lcc-c1", "trec-t1", "hotpotqa-q2"]
    assert task.split("test", 3) == found[:3] and set(task.fingerprint()) >= {"trec_e.jsonl", "lcc.jsonl"}
    first, code, trec = found[:3]
    assert QA["context"] in first.prompt and first.prompt.rstrip().endswith("words:")
    assert "Who sails {north}?" in first.prompt and first.answer == "Ada"
    assert [task.group(e) for e in found[:3]] == ["hotpotqa", "lcc", "trec"]
    assert load("longbench", tmp_path, groups="length").group(code) == "8k words and more"
    assert [e.id for e in load("longbench", tmp_path, datasets=["trec"]).split("test")] == ["trec-t1"]
    score = SCORERS["longbench"]
    assert score("ada lark", first) and not score("Ada sails", first) and not score("", first)
    assert score("Food\nAnimal", trec) and not score("Animal", trec) and score("    return a", code)
    with pytest.raises(UserError, match="holds no musique, only hotpotqa"):
        load("longbench", tmp_path, datasets=["musique"]).split("test")
    with pytest.raises(UserError, match="no split 'train'"):
        task.split("train")


def test_longbench_reads_documents_of_ones_own(tmp_path):
    path = write(tmp_path / "long.jsonl", [{"document": "d " * 9, "question": "q?", "answer": " a "}])
    (example,) = load("longbench", path).split("test")
    assert (example.answer, example.meta["dataset"], example.meta["length"]) == ("a", "own", 9)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"answers": []}, "'answers' is no list"),
        ({"answers": ["Ada", ""]}, "holds an empty answer"),
        ({"answers": ["?!"]}, "an answer without a word"),
        ({"input": " "}, "'input' is empty"),
        ({"context": ""}, "'context' is empty"),
        ({"dataset": "hotpotqq"}, "Did you mean 'hotpotqa'"),
        ({"dataset": "trec", "all_classes": ["x"]}, "'all_classes' holds none of the answers"),
        ({"dataset": "passage_count"}, "an answer without a number"),
        ({"length": "long"}, "'length' is no number"),
        ({"all_classes": "Food"}, "'all_classes' is no list"),
    ],
)
def test_broken_longbench_lines_are_named_and_counted(tmp_path, change, fault):
    path = write(tmp_path / "a.jsonl", [QA, QA | change])
    with pytest.raises(UserError, match=rf"a.jsonl:2: .*{fault}.*1 of 2 records.*max_bad_fraction"):
        load("longbench", path).split("test")
    task = load("longbench", path, max_bad_fraction=0.5)
    assert len(task.split("test")) == 1 and len(task.faults) == 1


def test_a_cut_needs_a_length():
    with pytest.raises(ValidationError, match="too_long=middle needs max_prompt_tokens"):
        DataConfig(task="longbench", path="x", too_long="middle")


# PopQA

RELATIONS = ("capital", "author", "genre", "sport")


def facts(n):
    return [
        {
            "id": str(relation * 1000 + i),
            "subj": f"Place {i}" if relation else f"  place  {i}",  # one subject, spelled in two ways
            "prop": RELATIONS[relation],
            "obj": f"thing {relation} {i % 3}",
            "s_pop": str(10 ** (i % 5)),
            "question": f"What is the {RELATIONS[relation]} of Place {i}?",
            "possible_answers": json.dumps([f"thing {relation} {i % 3}", f'the "{i}"']),
        }
        for relation in range(4)
        for i in range(n)
    ]


def tsv(path, records):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(records)
    return path


def test_popqa_splits_by_subject_and_shots_are_of_other_subjects_and_relations(tmp_path):
    task = load("popqa", tsv(tmp_path / "popQA.tsv", facts(60)), shots=6)
    splits = {name: list(task.split(name)) for name in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 240
    subjects = {
        name: {e.meta["entity"].lower().replace("  ", " ") for e in found} for name, found in splits.items()
    }
    assert sum(map(len, subjects.values())) == 60 and min(map(len, subjects.values())) > 1
    questions = {f"What is the {r} of Place {i}?": (r, f"place {i}") for r in RELATIONS for i in range(60)}
    for name, found in splits.items():
        for example in found:
            *shots, last = example.prompt.split("\n\n")
            assert (
                len(shots) == 6
                and last == f"Q: {last[3:]}"
                and questions[last[3:]][0] == example.meta["relation"]
            )
            shown = [questions[shot[3:].partition(" A: ")[0]] for shot in shots]
            assert {subject for _, subject in shown} <= subjects["train"] - {questions[last[3:]][1]}, name
            assert sorted(relation for relation, _ in shown) == sorted(
                2 * [r for r in RELATIONS if r != example.meta["relation"]]
            )
            assert shots[0].partition(" A: ")[2].startswith("thing ")
    most = Counter(e.answer for e in splits["train"] if e.meta["relation"] == "genre").most_common(1)[0][1]
    (rule,) = {task.shortcuts(e)["common-answer"] for e in splits["test"] if e.meta["relation"] == "genre"}
    assert sum(e.answer == rule for e in splits["train"] if e.meta["relation"] == "genre") == most
    again = load("popqa", tmp_path / "popQA.tsv", shots=6).split("test")
    assert (
        again[0] == splits["test"][0] and again[0] != load("popqa", tmp_path / "popQA.tsv").split("test")[0]
    )


def test_popqa_groups_by_powers_of_ten_and_marks_the_long_tail(tmp_path):
    records = [
        one | {"s_pop": pop} for one, pop in zip(facts(5), ("0", "9", "10", "999", "1000"), strict=False)
    ]
    task = load(
        "popqa", write(tmp_path / "test.jsonl", [r | {"possible_answers": ["x"]} for r in records]), shots=0
    )
    found = task.split("test")
    assert [task.group(e) for e in found] == [
        "s_pop below 1",
        "s_pop 1 to 9",
        "s_pop 10 to 99",
        "s_pop 100 to 999",
        "s_pop 1,000 to 9,999",
    ]
    assert [e.meta["rare"] for e in found] == [1, 1, 1, 1, 0]
    assert found[0].answer == "x" and found[0].prompt == "Q: What is the capital of Place 0?"
    with pytest.raises(UserError, match=r"holds no train split, which shots are taken from.*shots=0"):
        load("popqa", tmp_path / "test.jsonl").split("test")[0]


def test_popqa_refuses_a_subject_in_two_files_and_too_few_shots(tmp_path):
    records = facts(9)
    tsv(tmp_path / "train.tsv", records)
    tsv(tmp_path / "test.tsv", [records[0]])
    with pytest.raises(
        UserError, match=r"train.tsv and .*test.tsv both ask about 'place +0'.*divided by subjects"
    ):
        load("popqa", tmp_path).split("test")
    tsv(tmp_path / "test.tsv", [records[0] | {"subj": "Elsewhere"}])
    assert len(load("popqa", tmp_path).split("test")) == 1
    with pytest.raises(
        UserError, match=r"shots=400, and only .* training questions are about other subjects"
    ):
        load("popqa", tmp_path, shots=400).split("test")[0]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1\ta\tcapital\tx\t5\tq?\t[]", "no list of at least one"),
        ('1\ta\tcapital\tx\t5\tq?\t"[""x"", """"]"', "holds an empty answer"),
        ("1\ta\tcapital\tx\t5\tq?\tx", "is no JSON list"),
        ("1\ta\tcapital\tx\tmany\tq?\t[]", "possible_answers"),
        ('1\ta\tcapital\tx\tnan\tq?\t"[""x""]"', "'s_pop' is nan, no count"),
        ('1\t\tcapital\tx\t5\tq?\t"[""x""]"', "'subj' is empty"),
        ("1\ta\tcapital", "3 columns where the first line has 7"),
        ('1\ta\tcapital\tx\t5\tq?\t"[""x""', "not TSV"),
    ],
)
def test_broken_popqa_rows_are_named_and_counted(tmp_path, line, fault):
    path = tsv(tmp_path / "popQA.tsv", facts(3))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=rf"popQA.tsv:14: .*{fault}.*1 of 13 records"):
        load("popqa", path).split("train")
    assert len(load("popqa", path, max_bad_fraction=0.1, shots=0).split("train"))
