"""What a recipe may say about data, and the one line it gets for a mistake."""

import subprocess
import sys

import pytest

from quietreasoning.config import UserError
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.tasks import TASKS
from quietreasoning.evaluate.scorers import SCORERS
from quietreasoning.validation import validate


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "pointr"}, r"Did you mean 'pointer'\? Choices: .*gsm8k"),
        ({"options": {"nods": 3}}, r"options\.nods.*nodes"),
        ({"options": {"nodes": "x"}}, r"options\.nodes"),
        ({"options": {"nodes": 30}}, "symbols=16 must be at least nodes=30"),
        ({"task": "gsm8k"}, "task gsm8k reads files; give data.path"),
        ({"path": "x"}, "data.path has no effect: task pointer generates its examples"),
        ({"train": 0}, "train"),
        ({"too_long": "cut"}, "refuse|drop"),
    ],
)
def test_mistakes_are_one_clear_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        validate(DataConfig, given)
    assert "\n" not in str(caught.value)


def test_options_belong_to_the_task():
    config = DataConfig(task="permutation", options={"size": 4, "factors": [2, 3]})
    task = build_task(config)
    assert task.config.counts == (2, 3) and task.config == TASKS["permutation"].Config(size=4, factors=(2, 3))
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_task_says_what_it_is():
    for name, task in TASKS.items():
        assert task.name == name and task.scorer in SCORERS
        assert task.describe and "\n" not in task.describe and len(task.describe) < 90
        assert task.splits[-1] == "test"


def test_settings_load_without_torch_or_transformers():
    code = (
        "import sys, quietreasoning.data.config; "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
