"""Every shipped recipe loads, validates and keeps its promises."""

import pytest

from quietreasoning.config import UserError
from quietreasoning.data.tasks import TASKS
from quietreasoning.layers import flatten
from quietreasoning.recipe import FOLDER, RECIPES, describe, load_recipe
from quietreasoning.run import resolve


def settle(name):
    """The recipe, told where its files are if it reads any."""
    reads_files = TASKS[load_recipe(name).values["data"]["task"]].needs_path
    return resolve(name, ["data.path=rows.jsonl"] if reads_files else [])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid(name):
    resolved = settle(name)
    written = {key.removesuffix(".name") for key in resolved.provenance}
    known = flatten(resolved.config.model_dump(mode="json"))
    assert all(any(key.startswith(one) for key in known) for one in written)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_ends_in_the_method_of_its_folder(name):
    assert settle(name).config.stages[-1].method.name == name.partition("/")[0]


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith(("-tiny", "/pointer"))])
def test_a_large_recipe_has_a_small_twin_of_the_same_stages(name):
    large, small = settle(name).config, settle(f"{name}-tiny").config
    assert [s.name for s in large.stages] == [s.name for s in small.stages]
    assert [s.method.name for s in large.stages] == [s.method.name for s in small.stages]
    assert small.backbone.scratch.width * small.backbone.scratch.layers <= 4 * 256


def test_a_recipe_that_reads_files_asks_for_them():
    with pytest.raises(UserError, match=r"data\.path=FILE"):
        resolve("cot/gsm8k")


def test_descriptions_are_one_line_and_name_papers_by_id():
    for name in RECIPES:
        assert 20 < len(describe(name)) <= 120, name


def test_every_base_is_used():
    text = "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))
    for path in (FOLDER / "base").glob("*.yaml"):
        assert f"base/{path.stem}" in text
