"""`quiet plan` counts what is trained, multiplied and held; the doctor passes over stages of no steps."""

import pytest
import torch
from small_smollm3 import REAL, write_model

from quietreasoning.build import Builder, resolve
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers
from quietreasoning.data.absent import ANSWER
from quietreasoning.methods import METHODS
from quietreasoning.methods.recursion.settings import RecursionSettings
from quietreasoning.planning import DEVICES, count, estimate, held_bytes, meta_method, sample_batch
from quietreasoning.planning.recursion import positions
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


# a frozen model that a reasoner thinks for


def reasoned(sums, folder, *settings):
    resolved = resolve("recursion/gsm8k", [f"data.path={sums}", f"backbone.path={folder}", *settings])
    return resolved.config


def test_the_3b_model_is_planned_from_its_configuration_alone(sums, tmp_path):
    folder = write_model(tmp_path, sums, REAL, weights=False)
    figures = estimate(reasoned(sums, folder))
    # 36 blocks of attention (16 heads, 4 shared), a net and two norms, the last norm, and one tied table
    own = 36 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 11008 + 2 * 2048) + 2048 + 128256 * 2048
    sizes = {name: figures[f"stage {name}, parameters"] for name in ("match", "answer", "halt", "reward")}
    everything, trained = (int(part.split()[0].replace(",", "")) for part in sizes["answer"].split(", "))
    assert own < everything < own + 15e6 and trained == everything - own - 513  # less the halting head
    assert "513 trained" in sizes["halt"]
    assert figures["memory per device, about"].endswith("GiB")
    held = float(figures["memory per device, about"].split()[0]) * 2**30
    assert 2 * own < held < 4 * own, "two bytes a weight; neither gradients nor moments of it"
    assert figures["disk, at most"].endswith("GiB") and float(figures["disk, at most"].split()[0]) < 3


def test_a_frozen_model_costs_its_weights_in_their_precision(sums, smollm3):
    config = reasoned(sums, smollm3)
    builder, stage = Builder(config), config.stages[1]
    size = count(meta_method(builder, stage))
    frozen = size.all - size.trained
    assert size.weights - size.gradients in range(2 * frozen, 2 * frozen + 4 * 513 + 1)  # the head is unused
    assert size.gradients == 4 * size.trained and size.state == 8 * size.trained


@pytest.mark.parametrize(
    ("settings", "learned"),
    [
        ({"weights": {"match": 1, "answer": 0}}, 0),
        ({"weights": {"answer": 1}}, 3 * (2 + 1 + 3 - 1)),
        ({"weights": {"answer": 1}, "supervise": "last"}, 2 + 1 + 3 - 1),
        ({"weights": {"answer": 1}, "per_step_updates": True}, 2 + 1 + 3 - 1),
        ({"weights": {"answer": 0, "halt": 1}}, 0),
        ({"reward": {"group": 5}}, 2 + 1 + 5 * 3),
        ({"reward": {"group": 5, "beside": 1}}, 2 + 1 + 5 * 3 + 3 * (2 + 1 + 3 - 1)),
    ],
)
def test_positions_with_a_graph_are_those_that_a_step_reads_with_one(sums, smollm3, settings, learned):
    """Slots 2, answer prefix 1, answers of 3 with their end, 3 supervised steps; counted in a real step."""
    config = reasoned(sums, smollm3, "backbone.dtype=float32")
    method = METHODS["recursion"](
        Builder(config).backbone(),
        RecursionSettings.model_validate({"blocks": 2, "steps": 3, "cell": {"width": 16}, **settings}),
        Markers(answer_prefix=(7,), eos=1),
    )
    ids = torch.full((4, 9), 5)
    batch = Batch(torch.arange(4), ids, ids[:, None], ids[:, None, :1], ids[:, :3], torch.full((4,), IGNORE))
    read, with_graph, _ = positions(method, batch)
    assert with_graph == learned
    with method.backbone.tap() as calls:
        method.train()(batch)
    if "reward" in settings:
        return  # how long its answers are is drawn
    heard = [(len(call.role_BT[0]), call.hidden_BTD.requires_grad) for call in calls]
    assert sum(length for length, graph in heard if graph) == with_graph
    assert sum(length for length, graph in heard if not graph) == read
