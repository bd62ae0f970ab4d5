"""`quiet plan` counts what is trained, multiplied and held; the doctor passes over stages of no steps."""

import pytest

from quietreasoning.build import Builder, resolve
from quietreasoning.planning import DEVICES, count, estimate, held_bytes, meta_method
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


def test_a_plan_names_steps_tokens_time_parts_and_memory(tiny):
    figures = estimate(tiny)
    for stage in tiny.stages:
        assert " steps x " in figures[f"stage {stage.name}"] and "about" in figures[f"stage {stage.name}"]
    assert "0 trained" in figures["stage compress_serve, parameters"]
    assert figures["parameters, product-key values"] == f"{64**2 * 64:,}"
    assert (
        f"memory per device of {DEVICES[1]}, ddp, about" in figures and "memory per device, about" in figures
    )


def test_the_doctor_passes_over_stages_of_no_steps(tiny):
    only = tiny.model_copy(update={"stages": (tiny.stages[0], tiny.stages[-1])})
    assert [found.label for found in diagnose(Builder(only))] == ["warmstart_dense_ws"]
