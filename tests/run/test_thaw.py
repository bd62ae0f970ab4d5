"""A stage that freezes the language model binds no other stage, and no run that starts from it."""

import pytest

from quietreasoning.build import Builder, resolve
from quietreasoning.run import train_run

SMALL = [
    "backbone.scratch={layers: 1, width: 16, heads: 2, context: 64}",
    'method={"name": "recursion", "blocks": 1, "steps": 1, "cell": {"width": 16, "heads": 2}}',
    "train.steps=1",
    "train.batch_size=2",
    "train.eval_every=0",
]


def learns(method):
    return {name for name, p in method.backbone.named_parameters() if p.requires_grad}


@pytest.fixture
def frozen(tmp_path):
    """A recipe of one stage of recursion, resolved."""
    recipe = tmp_path / "quiet.yaml"
    recipe.write_text("base: base/pointer\nmethod: {name: recursion}\n", encoding="utf-8")
    return resolve(str(recipe), SMALL, str(tmp_path / "run"))


def test_the_next_stage_and_the_next_run_learn_what_the_backbone_lets_them(frozen, tmp_path):
    stage = frozen.config.stages[0]
    open_stage = type(stage).model_validate(stage.model_dump() | {"method": {"name": "plain"}})
    builder = Builder(frozen.config)
    before = builder.method(stage)
    assert learns(before) == set()
    after = builder.method(open_stage, before)
    assert learns(after) == {name for name, _ in after.backbone.named_parameters()}
    train_run(frozen, doctor=False)
    started = frozen.config.model_copy(update={"init": str(tmp_path / "run"), "stages": (open_stage,)})
    begun = Builder(started).method(open_stage)
    assert learns(begun) == {name for name, _ in begun.backbone.named_parameters()}
