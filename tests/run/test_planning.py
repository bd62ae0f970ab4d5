"""`quiet plan` counts what is trained, multiplied and held; the doctor passes over stages of no steps."""

import pytest

from quietreasoning.build import Builder, resolve
from quietreasoning.config import UserError
from quietreasoning.data.absent import ANSWER
from quietreasoning.planning import DEVICES, count, estimate, held_bytes, meta_method, sample_batch
from quietreasoning.run import diagnose
from quietreasoning.workspace.sizes import parameters

SMALL = ["data.options.mentions=400", "train.batch_size=8"]


@pytest.fixture(scope="module")
def tiny():
    return resolve("workspace/tiny", SMALL).config


@pytest.fixture(scope="module")
def sizes(tiny):
    """(parts of the model, stage -> its size)."""
    builder = Builder(tiny)
    methods = {stage.name: meta_method(builder, stage) for stage in tiny.stages}
    parts = parameters(methods["ssm_light"].backbone.model)
    return parts, {name: count(method) for name, method in methods.items()}


def test_modules_that_are_off_are_neither_trained_nor_multiplied(sizes):
    parts, size = sizes
    first, memory, experts = (size[name] for name in ("warmstart_dense_ws", "pkm_adapters", "ssm_light"))
    assert first.tables == 0 and memory.tables == parts["product-key values"]
    assert memory.trained - first.trained > parts["product-key values"] + parts["adapters"]
    assert experts.trained - memory.trained >= parts["state-space experts"]
    assert experts.working - memory.working == parts["state-space experts"]
    assert (
        memory.working - first.working
        < parts["adapters"] + parts["product-key readers"] + parts["product-key keys"]
    )


def test_tables_hold_two_numbers_a_row(sizes):
    memory = sizes[1]["pkm_adapters"]
    assert memory.rows == 64**2 and memory.state == 8 * (memory.trained - memory.tables) + 8 * 64**2


def test_sharding_divides_what_is_kept(tiny, sizes):
    size, train = sizes[1]["ssm_light"], tiny.stages[0].train
    alone = held_bytes(size, train, 1)
    assert held_bytes(size, train, 8) == alone
    sharded = held_bytes(size, train.model_copy(update={"sharding": "fsdp"}), 8)
    assert 4 * (size.all + size.trained) < sharded < alone


def test_a_plan_names_steps_tokens_time_parts_and_memory(tiny, sizes):
    figures = estimate(tiny)
    for stage in tiny.stages:
        assert " steps x " in figures[f"stage {stage.name}"] and "about" in figures[f"stage {stage.name}"]
    assert "0 trained" in figures["stage compress_serve, parameters"]
    assert figures["parameters, product-key values"] == f"{sizes[0]['product-key values']:,}"
    assert (
        f"memory per device of {DEVICES[1]}, ddp, about" in figures and "memory per device, about" in figures
    )


# files that nobody has named yet

PATHS = [
    f"stages.{name}.data.path" for name in ("warmstart_dense_ws", "latent_distill", "retrieval_supervision")
]
TINY = ["backbone.workspace.preset=tiny", "data.tokenizer.vocab=600"]


@pytest.mark.parametrize("named", [[], [1], [0, 2], [0, 1, 2]], ids=str)
def test_what_is_to_be_named_is_told_by_key(named, tmp_path):
    settings = [f"{PATHS[i]}={tmp_path}" for i in named]
    wanted = tuple(key for i, key in enumerate(PATHS) if i not in named)
    assert resolve("workspace/3b", settings, need_files=False).absent == wanted
    if wanted:
        with pytest.raises(UserError) as refused:
            resolve("workspace/3b", settings)
        assert all(f"{key}=FILE" in str(refused.value) for key in wanted)
        assert not any(PATHS[i] in str(refused.value) for i in named) and "\n" not in str(refused.value)


def test_one_setting_names_the_file_of_all_stages():
    assert resolve("slots/gsm8k", need_files=False).absent == ("data.path",)


def test_the_large_recipe_is_planned_without_files():
    """Windows are whole, a vocabulary is full, and a budget of answer tokens is a number of rows."""
    resolved = resolve("workspace/3b", TINY, need_files=False)
    figures = estimate(resolved.config, resolved.absent)
    assert figures["to be set before training"] == ", ".join(PATHS)
    context, rows = 1024, 384  # of the tiny preset
    text = figures["stage warmstart_dense_ws"]
    assert f"{rows * context:,} tokens" in text and f"{round(7e9 / rows / (context - 1)):,} steps" in text
    assert f"{round(1e9 / 16384 / ANSWER):,} steps" in figures["stage latent_distill"]
    assert figures["parameters, embeddings and head"] == f"{2 * 600 * 128:,}"
    assert "memory per device of 8, fsdp, about" in figures and "time, about" in figures


def test_files_that_are_there_are_read(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the river of bora keli is long . " * 2000)
    resolved = resolve("workspace/3b", [*TINY, f"{PATHS[0]}={text}"], need_files=False)
    builder = Builder(resolved.config)
    assert len(builder.tokenizer) == 600 and len(builder.tokenizer.tokenize(" river")) == 1
    first, later = (
        sample_batch(builder, resolved.config.stages[0]),
        sample_batch(builder, resolved.config.stages[3]),
    )
    assert first.prompt_BP.unique().numel() > 5 and later.prompt_BP.unique().numel() == 1


def test_the_doctor_passes_over_stages_of_no_steps(tiny):
    only = tiny.model_copy(update={"stages": (tiny.stages[0], tiny.stages[-1])})
    assert [found.label for found in diagnose(Builder(only))] == ["warmstart_dense_ws"]
