"""Running text from a recipe to rows: refused for methods that learn from answers, windows for the others."""

import importlib.util
import math
from pathlib import Path

import pytest

from quietreasoning.build import Builder
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, MethodConfig
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.load import load_split
from quietreasoning.evaluate.controls import Arm
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.planning import tokens_a_step
from quietreasoning.proof import Exam, quick_rows
from quietreasoning.run_config import RunConfig, StageConfig
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.signals import StopFlag
from quietreasoning.validation import validate

_spec = importlib.util.spec_from_file_location("toy_method", Path(__file__).with_name("toy_method.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

WORDS = "the cat sat on a mat and then it ran away from me".split()
STAGE = {"method": {"name": "plain"}, "train": {"steps": 2, "batch_size": 4}}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("\n\n".join(" ".join(WORDS[: 4 + i % 9] * (1 + i % 3)) for i in range(60)))
    return {
        "task": "text",
        "path": str(path),
        "options": {"window": 8},
        "tokenizer": {"train": "words"},
    }


@pytest.fixture
def run(data):
    """(builder, stage) of a method that reads text; no recipe of this suite trains one."""
    stage = StageConfig.model_construct(
        name="main",
        method=MethodConfig(name="reader"),
        data=DataConfig.model_validate(data),
        optim=OptimConfig(),
        train=TrainConfig(steps=2, batch_size=4),
    )
    base = validate(RunConfig, {"stages": [STAGE], "eval": {"n": 10}})
    return Builder(base.model_copy(update={"stages": (stage,)})), stage


def test_a_method_that_learns_from_answers_refuses_text(data):
    with pytest.raises(UserError, match=r"data\.task=text is running.*method plain learns") as caught:
        validate(RunConfig, {"stages": [STAGE | {"data": data}]})
    assert "methods that read text: " in str(caught.value) and "\n" not in str(caught.value)


def test_training_rows_are_windows(run):
    builder, stage = run
    batches = builder.batches(stage, 32, notes := [])
    batch = batches.batch_at(0)
    assert batch.prompt_BP.shape == (4, 8) and batch.answer_BA.shape == (4, 0) and not notes
    assert tokens_a_step(builder, stage) == pytest.approx(4 * 7, abs=4)
    with pytest.raises(UserError, match=r"window=8: the model's context is 6"):
        builder.batches(stage, 6, [])


def test_evaluation_in_training_and_after_it_is_perplexity(run):
    builder, stage = run
    method = toy.Reader(vocab=len(builder.tokenizer))
    (row,) = quick_rows(builder, stage, method, StopFlag())
    assert (row["task"], row["method"], row["split"], row["n"]) == ("text", "reader", "valid", 10)
    encoder = builder.encoder(stage.data, 32)
    config = builder.config.eval.model_copy(update={"n": None})
    report = Exam(stage.data, config, encoder, 0).ask([Arm(method, "reader")], StopFlag(), shortcuts=True)
    rows, _ = load_split(build_task(stage.data), "valid", stage.data, encoder)
    batch = encoder.batch(rows)
    seen_BP = batch.prompt_BP[:, :-1] != IGNORE
    last_N, next_N = batch.prompt_BP[:, :-1][seen_BP], batch.prompt_BP[:, 1:][seen_BP]
    logs = method.table_VV.log_softmax(1)[last_N, next_N]
    assert report.rows[0]["perplexity"] == pytest.approx(math.exp(-logs.mean().item()), rel=1e-5)
    assert report.rows[0]["n"] == len(batch) > 10
