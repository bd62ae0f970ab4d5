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


FAMILIES = {  # folder -> its methods, if several
    "recursion": {"recursion", "compressor", "reasoner"},
    "distill": {"distill", "plain", "continuous", "cross", "prefer"},
    "thoughts": {"thoughts", "bake", "plain"},  # thoughts may shrink to none
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_ends_in_a_method_of_its_folder(name):
    folder = name.partition("/")[0]
    assert settle(name).config.stages[-1].method.name in FAMILIES.get(folder, {folder})


# small as they are
LAPTOP = ("tiny", "/pointer", "/encyclopaedia", "/permutation", "/sudoku", "/sudoku-6", "/maze")
TWINS = {name: f"{name}-tiny" for name in RECIPES if not name.endswith(LAPTOP)}
TWINS |= {"workspace/3b": "workspace/tiny", "thoughts/bake": "thoughts/tiny"}


@pytest.mark.parametrize("name", TWINS)
def test_a_large_recipe_has_a_small_twin_of_the_same_stages(name):
    large, small = settle(name).config, settle(TWINS[name]).config
    shared = small.stages[-len(large.stages) :]  # before them it may train the model that the large one loads
    assert [s.name for s in large.stages] == [s.name for s in shared]
    assert [s.method.name for s in large.stages] == [s.method.name for s in shared]
    assert small.backbone.scratch.width * small.backbone.scratch.layers <= 4 * 256
    assert small.backbone.workspace is None or small.backbone.workspace.preset == "tiny"


PLAN = {  # stage -> tokens, peak rate, modules
    "warmstart_dense_ws": (7e9, 2.5e-4, "workspace"),
    "pkm_adapters": (7e9, 1e-4, "workspace pkm adapters"),
    "ssm_light": (2e9, 1e-4, "workspace pkm adapters ssm"),
    "latent_distill": (1e9, 1e-4, "workspace pkm adapters ssm"),
    "retrieval_supervision": (5e8, 1e-4, "workspace pkm adapters ssm retrieval knn"),
    "compress_serve": (None, 1e-4, "workspace pkm adapters ssm retrieval knn"),
}


@pytest.mark.parametrize("name", ["workspace/3b", "workspace/tiny"])
def test_the_six_stages_are_those_of_the_plan(name):
    stages = settle(name).config.stages
    assert [stage.name for stage in stages] == list(PLAN)
    for stage, (tokens, rate, modules) in zip(stages, PLAN.values(), strict=True):
        assert stage.method.features == tuple(modules.split())
        if name == "workspace/3b":
            assert stage.train.tokens == tokens and stage.optim.lr == rate
            assert stage.optim.name == "adamw" and stage.optim.betas == (0.9, 0.95)
            assert stage.optim.weight_decay == 0.05 and stage.optim.clip == 1.0
    weights = [stage.method.weights for stage in stages]
    plan = {"sparsity": 0.1, "contrast": 0.2}
    if name == "workspace/3b":  # the small one weighs what keeps its slots apart more
        plan |= {"next_latent": 1.0, "orthogonality": 0.05}
    assert weights[0].model_dump() | plan == weights[0].model_dump()
    assert weights[1].router_z == 1e-4 and stages[0].method.z_loss == 1e-4
    assert stages[1].method.temperature == (2.0, 0.7) and stages[2].method.temperature == (0.7, 0.7)
    assert weights[3].rationale == 5 and (weights[3].step or weights[3].teacher)
    assert weights[4].retrieval and weights[2].gate
    assert [stage.method.learn for stage in stages] == ["all"] * 3 + ["answer"] * 3
    assert stages[5].train.steps == 0 and stages[5].method.int8


def test_a_recipe_that_reads_files_asks_for_them():
    with pytest.raises(UserError, match=r"data\.path=FILE"):
        resolve("cot/gsm8k")


def test_a_recipe_from_scratch_takes_a_workspace_in_its_place():
    settings = ["backbone.workspace.preset=tiny"]
    with pytest.raises(UserError, match=r"set backbone\.scratch=null"):
        resolve("plain/pointer", settings)
    backbone = resolve("plain/pointer", [*settings, "backbone.scratch=null"]).config.backbone
    assert backbone.workspace.preset == "tiny"


def test_descriptions_are_one_line_and_name_papers_by_id():
    for name in RECIPES:
        assert 20 < len(describe(name)) <= 120, name


def test_every_base_is_used():
    text = "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))
    for path in (FOLDER / "base").glob("*.yaml"):
        assert f"base/{path.stem}" in text
