"""`quiet data texts`: what a teacher writes is what a student reads, however the command was run."""

import json
from itertools import pairwise

import pytest
import torch
import yaml
from typer.testing import CliRunner

from quietreasoning.build import Builder, resolve
from quietreasoning.capture import open_teacher
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.data.config import DataConfig, Format, SpanFormat, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.example import Example
from quietreasoning.data.pairs.keys import Item, Problem
from quietreasoning.data.tokenizers import train_words
from quietreasoning.evaluate.rules.load import load_rules
from quietreasoning.evaluate.rules.scorer import SAME
from quietreasoning.kinds import Kind
from quietreasoning.run import train_run
from quietreasoning.scribe import Draws, Scribe
from quietreasoning.text_pairs import paired
from quietreasoning.texts import document, row_of

WORDS = ("one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with questions, a recipe of them, and a run that has learned them by heart."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "q").mkdir()
    lines = [
        {"prompt": f"what follows {a} ?", "steps": [f"after {a}", f"{b}"], "answer": f"{b} it is"}
        for a, b in pairwise(WORDS)
    ]
    for name in ("train", "valid", "test"):
        (folder / "q" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "backbone": {"scratch": {"layers": 1, "width": 32, "heads": 2, "context": 48}},
        "data": {
            "task": "jsonl",
            "path": str(folder / "q"),
            "tokenizer": {"train": "words"},
            "format": {"step_suffix": " ;"},
            "options": {"fields": {"steps": "steps"}},
        },
        "method": {"name": "cot"},
        "optim": {"lr": 1e-2, "warmup_steps": 0},
        "train": {"steps": 60, "batch_size": 4, "eval_every": 0, "log_every": 1000},
        "eval": {"n": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    train_run(resolve(str(folder / "recipe.yaml"), out=str(folder / "run")), doctor=False)
    return folder


def quiet(place, name, *words, code=0, model=None):
    """The rows that the command wrote, its header first; or what it said."""
    out = place / f"{name}.jsonl"
    model = model or place / "run"
    words = ["data", "texts", model, "--recipe", place / "recipe.yaml", "--out", out, *words]
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--max-new-tokens", 16)])
    assert done.exit_code == code and "Traceback" not in done.output, done.output
    return done.output if code else [json.loads(line) for line in out.read_text().splitlines()]


def test_a_student_of_the_rows_sees_what_the_task_shows(place):
    """Prompts as the same ids, steps and answers as the teacher wrote them; the header is checked."""
    head, *rows = quiet(place, "rows")
    assert head["__header__"]["rows"] == len(rows) == 4
    assert [row["cot_steps"] for row in rows] == [[f"after {a}", b] for a, b in pairwise(WORDS)]
    folder, batches = place / "student", []
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").write_bytes((place / "rows.jsonl").read_bytes())
    values = yaml.safe_load((place / "recipe.yaml").read_text())
    values["data"]["tokenizer"] = {"path": str(place / "run" / "tokenizer")}
    for more in ({}, {"task": "teacher-rows", "path": str(folder), "options": {}}):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values | {"data": values["data"] | more}))
        config = resolve(str(folder / "recipe.yaml")).config
        found = Builder(config).batches(config.stages[0], 48, [])
        batches.append(found.encoder.batch(found.examples))
    first, second = batches
    for part in ("prompt_BP", "steps_BKS", "answer_BA"):
        assert torch.equal(getattr(first, part), getattr(second, part)), part
    text = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(text.replace("it is", "it was", 1))
    with pytest.raises(UserError, match=r"dataset_sha256 is .*: they have changed since"):
        build_task(DataConfig(task="teacher-rows", path=str(folder))).split("train")


def test_neither_batches_nor_kills_change_a_sample(place):
    draws = ("--temperature", 3, "--samples", 4, "--keep", "all")
    whole = quiet(place, "whole", *draws, "--batch-size", 5)
    quiet(place, "torn", *draws, "--batch-size", 1)
    log = place / "torn.jsonl.work" / "samples.jsonl"
    before = log.read_bytes()
    log.write_bytes(before[: len(before) // 2])  # in the middle of a line
    (place / "torn.jsonl").unlink()
    assert quiet(place, "torn", *draws, "--batch-size", 3) == whole
    assert sorted(log.read_bytes().splitlines()) == sorted(before.splitlines())
    assert len({row["teacher_text"] for row in whole[1:]}) > 4  # each sample has draws of its own
    again = quiet(place, "torn", "--temperature", 3, "--samples", 4, "--seed", 1, code=2)
    assert "sampling.seed: 0 -> 1" in again and "another --out" in again


def test_what_is_kept_is_chosen_from_one_log(place):
    """More samples and another choice go on; right ones are right, best is one a prompt, rules refuse."""
    draws = ("--temperature", 2)
    _, *every = quiet(place, "kept", *draws, "--samples", 3, "--keep", "all")
    log = (place / "kept.jsonl.work" / "samples.jsonl").read_bytes()
    _, *right = quiet(place, "kept", *draws, "--samples", 3)
    assert right == [row for row in every if row["metadata"]["right"]] and 0 < len(right) < len(every)
    assert (place / "kept.jsonl.work" / "samples.jsonl").read_bytes() == log
    _, *best = quiet(place, "kept", *draws, "--samples", 3, "--keep", "best")
    prompts = [row["prompt"] for row in best]
    assert len(set(prompts)) == len(prompts) and set(prompts) == {row["prompt"] for row in every}
    for row in best:
        rivals = [one["teacher_quality_score"] for one in every if one["prompt"] == row["prompt"]]
        assert row["teacher_quality_score"] == max(rivals)
    quiet(place, "kept", *draws, "--samples", 4, "--keep", "all")
    assert (place / "kept.jsonl.work" / "samples.jsonl").read_bytes().startswith(log)
    (place / "rules.yaml").write_text("rules: [{id: short, kind: budget, max_words: 2, hard: true}]")
    told = quiet(
        place, "kept", *draws, "--samples", 4, "--keep", "all", "--rules", place / "rules.yaml", code=2
    )
    assert "no row is left of 16 samples" in told and " 0 refused by rules" not in told
    assert "more --samples, or ease --rules." in " ".join(told.split()) and "give --keep all" not in told


def test_pairs_hold_the_best_against_the_worst_and_train_prefer(place):
    """Of all samples of a prompt: by the task's reward, then by rules; ties make no row; prefer trains."""
    draws = ("--temperature", 1.5, "--samples", 10)
    _, *every = quiet(place, "every", *draws, "--keep", "all")
    said = {}
    for row in every:
        answer = row["teacher_text"].removeprefix("\n".join(row.get("cot_steps", [])) + "\n")
        said.setdefault(row["prompt"], {}).setdefault(answer, row["metadata"]["right"])
    (place / "rules.yaml").write_text("rules: [{id: short, kind: budget, max_words: 1}]")
    rules = load_rules(place / "rules.yaml")
    judges = (
        ((), lambda prompt, answer: float(said[prompt][answer]), SAME),
        (("--rules", place / "rules.yaml"), lambda prompt, answer: rules.reward(answer), 0.05),
    )
    for words, worth, least in judges:
        rows = quiet(place, "every", *draws, "--keep", "pairs", *words)
        wanted = {}
        for prompt, answers in said.items():
            ranked = sorted(answers, key=lambda answer: -worth(prompt, answer))
            if worth(prompt, ranked[0]) - worth(prompt, ranked[-1]) >= least:
                wanted[prompt] = worth(prompt, ranked[0]), worth(prompt, ranked[-1])
        found = {
            row["prompt"]: (worth(row["prompt"], row["chosen"]), worth(row["prompt"], row["rejected"]))
            for row in rows
        }
        assert found == wanted and len(found) == len(rows) and 0 < len(rows)
        assert all(row["margin"] == a - b for row, (a, b) in zip(rows, found.values(), strict=True))
        head = json.loads((place / "every.jsonl.work" / "pairs.json").read_text())
        assert head["__header__"]["choice"]["keep"] == "pairs"
    example = Example("0", "what ?", (), (), "two", {})
    items = [Item(Problem("0", "jsonl", "exact", example), k) for k in range(4)]
    answers = ("three it is", "a b c d e f", "one", "two words")
    lines = {i.key: {"outcome": "whole", "answer": a} for i, a in zip(items, answers, strict=True)}
    ((row,), counts) = paired(items, lines, "exact", rules)
    assert (row["chosen"], row["rejected"]) == ("one", "a b c d e f"), "neither the first nor the last"
    assert counts["tied"] == 0 and paired(items, lines, "exact", None)[1]["tied"] == 1, "none is right"
    pairs = place / "pairs"
    pairs.mkdir()
    for split in ("train", "valid", "test"):
        (pairs / f"{split}.jsonl").write_bytes((place / "every.jsonl").read_bytes())
    more = ["data.task=preferences", f"data.path={pairs}", "data.options={}", "method={name: prefer}"]
    more += ["train.steps=2", f"init={place / 'run'}", "data.tokenizer.train=null"]
    more += [f"data.tokenizer.path={place / 'run' / 'tokenizer'}"]
    assert train_run(resolve(str(place / "recipe.yaml"), more, str(place / "preferred")), doctor=False) == 0
    log = [json.loads(line) for line in (place / "preferred" / "log.jsonl").read_text().splitlines()]
    assert any("loss/prefer" in str(line) for line in log), log


def test_wishes_that_cannot_be_met_are_refused(place, smollm3):
    (place / "mine.jsonl").write_text("{}\n")
    for name, words, says in (
        ("x", ("--samples", 2), "Give --temperature 0.7"),
        ("x", ("--keep", "good"), "choices are right, all, best, pairs"),
        ("x", ("--keep", "pairs"), "give --samples 4 --temperature 0.7"),
        ("x", ("--split", "test"), "no one learns from test"),
        ("mine", (), "was not begun by this command"),
        ("x", ("data.max_prompt_tokens=2",), "more than data.max_prompt_tokens=2"),
    ):
        assert says in " ".join(quiet(place, name, *words, code=2).split())
    told = quiet(place, "model", "--dtype", "float32", "--n", 2, code=2, model=smollm3)
    assert "no row is left of 2 samples" in told and "All were cut: allow more with --max-new-tokens" in told


def test_a_models_text_is_cut_at_its_tags_or_its_prefix(smollm3):
    scribe = Scribe(open_teacher(str(smollm3), None, "float32"), DataConfig(task="pointer"), Draws())
    for text, parts in (
        ("a\nb\n#### 5", (["a", "b"], "5")),
        ("so\n\n  ####5 nuts", (["so"], "5 nuts")),
        ("5 nuts", ([], "5 nuts")),
        ("Is #1 5?", ([], "Is #1 5?")),
        ("a\n####", None),
    ):
        ids = scribe.teacher.tokenizer(text, add_special_tokens=False).input_ids
        assert scribe.parts(ids) == parts, text


def test_a_row_reads_back_as_it_was_written(tmp_path):
    """Steps that the answer repeats; prompts that declare tools in their own words."""
    task = build_task(DataConfig(task="tools", train=4))
    examples = list(task.split("train", 4))
    rows = []
    for example in examples:
        line = {"steps": ["5", "5 a"], "answer": "5 a\nb"}
        rows.append(row_of(Item(Problem("0", "tools", "call", example), 0), line, True, 1.0))
    (tmp_path / "rows_train.jsonl").write_text(document({}, rows))
    for name in ("valid", "test"):
        (tmp_path / f"rows_{name}.jsonl").write_text(document({}, rows))
    back = build_task(DataConfig(task="teacher-rows", path=str(tmp_path)))
    found = back.split("train")
    assert [one.prompt for one in found] == [one.prompt for one in examples] and not back.faults
    assert all((one.steps, one.answer) == (("5", "5 a"), "5 a\nb") for one in found)
    for one, source in zip(found, examples, strict=True):
        assert one.meta["tools"] == source.meta["tools"] and one.meta["tools"]
    coder = Encoder(
        train_words([*task.vocabulary(), "####", "a", "b"]),
        Format(spans=SpanFormat(dialect="json", grammar=True)),
    )
    call = next(e for e in task.split("train", 30) if e.meta["kind"] == "call")
    line = {"steps": [], "answer": call.answer}
    row = row_of(Item(Problem("0", "tools", "call", call), 0), line, True, 1.0)
    (tmp_path / "rows_train.jsonl").write_text(document({}, [row]))
    (again,) = build_task(DataConfig(task="teacher-rows", path=str(tmp_path))).split("train")
    bits = [coder.encode(one).tokens.allowed_AW for one in (call, again)]
    assert (bits[0] == bits[1]).all() and bits[1].any(), (
        "the grammar holds of what was written as of the source"
    )
    told = next(e for e in task.split("train", 30) if e.meta["kind"] == "answer")
    row = row_of(Item(Problem("0", "tools", "call", told), 0), line | {"answer": told.answer}, True, 1.0)
    (tmp_path / "rows_train.jsonl").write_text(document({}, [row]))
    (again,) = build_task(DataConfig(task="teacher-rows", path=str(tmp_path))).split("train")
    kinds = [coder.encode(one).tokens.classes_A for one in (told, again)]
    assert (kinds[0] == kinds[1]).all() and (kinds[1] == Kind.INTEGRATION).any(), "what tools told is known"
