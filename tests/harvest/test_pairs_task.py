"""Kept rollouts as examples: the model's own chain, token for token, for any method to train on."""

from dataclasses import replace

import pytest

from quietreasoning.build import open_run
from quietreasoning.config import UserError
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.example import Example
from quietreasoning.data.pairs.folder import read_rows
from quietreasoning.data.pairs.keys import problem_id
from quietreasoning.data.pairs.roll import Roller, RollSettings
from quietreasoning.data.pairs.sources import RunSource
from quietreasoning.data.tasks import TASKS
from quietreasoning.harvest import Request, harvest, identity_of
from quietreasoning.run import resolve, train_run
from quietreasoning.validation import validate


def task_of(folder, **options):
    return build_task(validate(DataConfig, {"task": "pairs", "path": str(folder), "options": options}))


@pytest.fixture(scope="module")
def many(roll):
    """Enough problems for three splits."""
    return roll(num_samples=200, samples_per_problem=2, temperature=1.4, batch_size=30, checkpoint_every=60)


def test_examples_are_the_kept_rollouts_in_their_splits(many):
    task, rows = task_of(many.folder), [row for row in read_rows(many.folder) if row["kept"]]
    train, valid, test = (task.split(name) for name in ("train", "valid", "test"))
    assert len(train) == sum(row["split"] == "train" for row in rows) > 20
    for name, examples in (("valid", valid), ("test", test)):
        problems = {row["id"] for row in rows if row["split"] == name}
        assert len(examples) == len(problems) > 0, "one sample of each problem"
    prompts = [{problem_id("pointer", example.prompt) for example in part} for part in (train, valid, test)]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert task.split("train", 3) == train[:3] and task.scorer == "exact"
    assert len({example.id for example in [*train, *valid, *test]}) == len(train) + len(valid) + len(test)


def test_wrong_chains_lead_to_their_own_answer_in_training_and_to_the_gold_one_where_they_judge(many):
    task, rows = task_of(many.folder), {row["key"]: row for row in read_rows(many.folder)}
    wrong = [e for e in task.split("train") if e.meta["outcome"] == "wrong"]
    assert wrong and all(
        e.answer == (rows[e.meta["key"]]["answer"] or rows[e.meta["key"]]["gold"]) for e in wrong
    )
    assert all(e.answer == rows[e.meta["key"]]["gold"] for e in task.split("valid"))


def test_written_again_the_chain_has_the_models_own_tokens(run):
    loaded = open_run(run)
    source, encoder = RunSource(loaded.method.backbone, loaded.encoder), loaded.encoder
    for example in build_task(loaded.config.stages[0].data).split("train", 20):
        chain = encoder.encode(example).steps.tolist()
        again = replace(example, steps=source.steps(chain), results=("",) * len(source.steps(chain)))
        assert again.steps == example.steps and encoder.encode(again).steps.tolist() == chain


def test_any_method_trains_on_them_and_the_writer_is_known(many, run, tmp_path):
    settings = [
        "data.task=pairs",
        f"data.path={many.folder}",
        *("data.tokenizer.train=null", f"data.tokenizer.path={run}/tokenizer"),
        "data.options={}",
        *("data.train=null", "data.valid=null", "data.test=null", "eval.n=2"),
        *("train.steps=1", "train.batch_size=2", "data.too_long=drop"),
        "backbone.scratch={layers: 1, width: 16, heads: 1, context: 96}",
    ]
    for method in ("cot", "continuous"):
        folder = tmp_path / method
        train_run(
            resolve("cot/pointer", [*settings, f"method={{name: {method}}}"], out=str(folder)), doctor=False
        )
        assert open_run(folder).config.stages[0].data.task == "pairs"
    task = task_of(many.folder)
    assert task.identity["sha256"] == identity_of(str(run))["sha256"] and task.identity["path"] == str(run)
    assert task.fingerprint()["shards"].count("shard-") == len(list(many.folder.glob("shard-*.json")))


def test_results_are_those_of_gold_steps_and_of_marked_equations(run):
    loaded = open_run(run)
    roller = Roller(RunSource(loaded.method.backbone, loaded.encoder), RollSettings(), None)
    example = Example("x", "p", ("a b , 1", "b f , 0"), ("b", "f"), "f")
    ids = loaded.encoder.tokenizer("a b , 1\na c , 1\nb f , 0\n", add_special_tokens=False).input_ids
    chain = roller._chain(example, ids)
    assert chain == {"steps": ["a b , 1", "a c , 1", "b f , 0"], "results": ["b", "", "f"]}


def test_data_sets_that_are_scored_differently_are_taken_one_at_a_time(chat, sums, tmp_path):
    request = {"model": str(chat), "out": tmp_path, "dtype": "float32", "keep": "all", "instruction": ""}
    request |= {"dataset": "gsm8k,jsonl", "paths": (f"gsm8k={sums}", f"jsonl={sums}/plain.json")}
    harvest(Request(**request, num_samples=40, max_new_tokens=24, temperature=1.0))
    with pytest.raises(UserError, match=r"scored differently: choose one with data.options.dataset. .*gsm8k"):
        task_of(tmp_path).split("train")
    with pytest.raises(UserError, match=r"dataset=gsm8: not in .* Did you mean 'gsm8k'"):
        task_of(tmp_path, dataset="gsm8").split("train")
    one, other = task_of(tmp_path, dataset="gsm8k"), task_of(tmp_path, dataset="jsonl")
    assert (one.scorer, other.scorer) == ("numeric", "exact")
    assert all(example.id.startswith("jsonl-") for example in other.split("train"))


def test_what_cannot_be_read_is_refused_with_the_cure(roll, tmp_path):
    with pytest.raises(UserError, match=r"data.path=FOLDER"):
        TASKS["pairs"]()
    with pytest.raises(UserError, match=r"is no folder of pairs"):
        task_of(tmp_path).split("train")
    empty = roll(keep="correct", num_samples=3).folder
    with pytest.raises(UserError, match=r"none of its 3 rollouts was kept"):
        task_of(empty).split("train")
    few = task_of(roll(num_samples=12).folder)
    missing = next(name for name in ("valid", "test") if name not in {row["split"] for row in few.rows})
    with pytest.raises(UserError, match=rf"no kept rollout in its {missing} split. .*larger --num-samples"):
        few.split(missing)
    with pytest.raises(UserError, match=r"no split 'dev'"):
        few.split("dev")
