"""`--config` files over a recipe: order, stages, sources, and what they may not do."""

import pytest

from quietreasoning.config import UserError
from quietreasoning.layers import expand
from quietreasoning.recipe import load_recipe


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def file(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return file


STAGES = """
method: {name: cot}
train: {steps: 10, batch_size: 4}
stages:
- {name: a, train: {steps: 1}}
- {name: b, method: {name: plain}, optim: {lr: 0.1}}
"""


def test_files_merge_deeply_in_order_and_settings_come_last(write):
    recipe = write("r.yaml", "seed: 1\noptim: {lr: 0.1, clip: 1}\ntrain: {steps: 10}")
    one = write("one.yaml", "optim: {lr: 0.2, ema: 0.9}")
    two = write("two.yaml", "optim: {lr: 0.3}\ntrain: {batch_size: 2}")
    found = load_recipe(recipe, ["train.steps=7"], [one, two])
    assert found.values == {
        "seed": 1,
        "optim": {"lr": 0.3, "clip": 1, "ema": 0.9},
        "train": {"steps": 7, "batch_size": 2},
    }
    sources = {
        "seed": "recipe r.yaml",
        "optim.lr": "config two.yaml",
        "optim.clip": "recipe r.yaml",
        "optim.ema": "config one.yaml",
        "train.steps": "command line",
        "train.batch_size": "config two.yaml",
    }
    assert found.provenance == sources
    assert load_recipe(recipe, configs=[two, one]).values["optim"]["lr"] == 0.2


def test_a_file_reaches_every_stage_or_the_one_it_names(write):
    recipe = write("r.yaml", STAGES)
    config = write("c.yaml", "train: {steps: 5}\nstages: {b: {optim: {lr: 0.2}, train: {batch_size: 8}}}")
    a, b = expand(load_recipe(recipe, configs=[config])).values["stages"]
    assert (a["train"], b["train"]) == ({"steps": 5, "batch_size": 4}, {"steps": 5, "batch_size": 8})
    assert b["optim"]["lr"] == 0.2 and (a["method"]["name"], b["method"]["name"]) == ("cot", "plain")
    sources = expand(load_recipe(recipe, configs=[config])).provenance
    assert sources["stages.b.optim.lr"] == "config c.yaml, stage b"
    with pytest.raises(UserError, match=r"stages\.c: no such stage"):
        load_recipe(recipe, configs=[write("d.yaml", "stages: {c: {train: {steps: 1}}}")])


def test_a_file_has_bases_and_names_files_from_its_own_folder(write):
    write("sub/rows.jsonl", "")
    write("sub/base.yaml", "seed: 3\ntrain: {steps: 2}")
    config = write("sub/c.yaml", "base: base\ndata: {path: rows.jsonl}\ntrain: {steps: 4}")
    found = load_recipe(write("r.yaml", "seed: 1"), configs=[config])
    assert found.values["seed"] == 3 and found.values["train"] == {"steps": 4}
    assert found.values["data"]["path"].endswith("/sub/rows.jsonl")


def test_what_no_stage_uses_and_what_is_no_file_are_refused(write):
    recipe = write("r.yaml", STAGES)
    lost = write("lost.yaml", "optim: {lr: 0.3}")
    over = write("over.yaml", "stages:\n- {name: x, optim: {lr: 0.4}}")
    with pytest.raises(UserError, match=r"optim\.lr: has no effect, .*stages\.x\.optim\.lr.*config lost"):
        expand(load_recipe(recipe, configs=[lost, over]))
    with pytest.raises(UserError, match=r"--config: .*nowhere\.yaml does not exist"):
        load_recipe(recipe, configs=["nowhere.yaml"])
    with pytest.raises(UserError, match="a recipe is a mapping"):
        load_recipe(recipe, configs=[write("list.yaml", "- 1")])
