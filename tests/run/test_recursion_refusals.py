"""On the way from a model to a reasoner, what cannot be is one line with the cure, and leaves no run."""

import json
from dataclasses import replace

import pytest
import torch
from small_smollm3 import TINY, write_model
from typer.testing import CliRunner

from quietreasoning.backbone import BackboneConfig, load_backbone
from quietreasoning.backbone.compressor_file import Origin, save_compressor
from quietreasoning.cli.main import app
from quietreasoning.methods.recursion.reading import compressor_path
from quietreasoning.nn.compressor import pca
from quietreasoning.nn.moments import Moments

CELL = "{width: 16, layers: 1, heads: 2, latent_steps: 1, rounds: 1}"
TRAIN = ["train", "recursion/gsm8k-tiny", "stages.chain.train.steps=0", "backbone.scratch=null"]
TRAIN += ["backbone.tune=frozen", "train.batch_size=4", f"stages.match.method.cell={CELL}"]
TRAIN += ["stages.match.method.steps=1", "data.train=null"]
PAIRS = ["--max-new-tokens", 12, "--num-samples", 4, "--dtype", "float32"]
HELD = 6  # directions of the compressors here


@pytest.fixture
def command(smollm3, sums, tmp_path):
    """`command("train", ...)`: (exit code, output) in an empty folder; MODEL and SUMS stand for the two."""

    def call(*arguments):
        names = {"MODEL": str(smollm3), "SUMS": str(sums), "HERE": str(tmp_path)}
        words = []
        for word in map(str, arguments):
            for name, value in names.items():
                word = word.replace(name, value)
            words.append(word)
        done = CliRunner().invoke(app, words)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout + done.stderr

    return call


@pytest.fixture
def refused(command, tmp_path):
    """`refused("train", ...)`: the one line of a command that must fail."""

    def call(*arguments):
        out = tmp_path / "run"
        code, said = command(*arguments, *(["--out", out] if arguments[0] == "train" else []))
        lines = [line for line in said.splitlines() if line.startswith("quiet: ")]
        assert code == 2 and len(lines) == 1 and "Traceback" not in said, said
        assert not out.exists()
        return lines[0]

    return call


TASK = ["backbone.path=MODEL", "data.path=SUMS"]


@pytest.fixture
def compressors(smollm3, tmp_path):
    """`compressors(layer=9)`: files for the layers read by default, with what another origin left."""

    def make(**other):
        width = other.get("hidden_size", TINY["hidden_size"])
        moments = Moments(width)
        moments.update(torch.randn(200, width, generator=torch.Generator().manual_seed(0)))
        identity = load_backbone(BackboneConfig(path=str(smollm3)), 1).identity
        origin = Origin(identity, layer=2, hidden_size=width, centred=True, tokens=200)
        for layer in (2, "pre_norm"):
            made = replace(origin, **{"layer": layer} | other)
            save_compressor(compressor_path(tmp_path, layer), pca(moments, HELD), made)

    return make


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"identity": {"path": "lab/other", "revision": ""}}, "model lab/other, not MODEL"),
        (
            {"identity": {"path": "lab/other", "revision": "", "sha256": "aa"}},
            "model lab/other, whose weights are not those of MODEL",
        ),
        ({"layer": "last"}, "layer 'last', not 2"),
        ({"hidden_size": 24}, "states of width 24, not 32"),
    ],
)
def test_a_compressor_of_other_states_is_refused(refused, compressors, smollm3, other, says):
    compressors(**other)
    for start in (TRAIN, ["plan", *TRAIN[1:-1]]):
        said = refused(*start, *TASK, "stages.match.method.compressor=HERE")
        assert f"compressor-2.safetensors was made of {says.replace('MODEL', str(smollm3))}" in said
        assert "Make one of these states, or read those it was made of" in said


def test_its_own_is_taken_and_no_more_of_it_than_it_holds(command, refused, compressors):
    compressors()
    wish = [*TASK, "stages.match.method.compressor=HERE"]
    assert command("plan", *TRAIN[1:-1], *wish, f"stages.match.method.d_compressed={HELD}")[0] == 0
    said = refused(*TRAIN, *wish, "stages.match.method.d_compressed=7")
    assert "holds 6 directions, width=7 was asked for. Choose 1 to 6, or make a wider one" in said
    said = refused(*TRAIN, *TASK, "stages.match.method.d_compressed=7")
    assert "d_compressed has no effect without compressor" in said


@pytest.mark.parametrize("layer", ["9", "-1", "middle"])
def test_a_layer_that_the_model_lacks_is_refused(refused, layer):
    said = refused(*TRAIN, *TASK, f"stages.match.method.layers=[{layer}]")
    assert "this model has 4 blocks. Choices: 0 to 4" in said and "pre_norm, last" in said and layer in said
    assert "method.layers: " in said and refused("plan", *TRAIN[1:-1], *TASK, f"method.layers=[{layer}]")


def test_a_folder_without_compressors_is_refused(refused):
    said = refused(*TRAIN, *TASK, "stages.match.method.compressor=HERE")
    assert "method.compressor: " in said
    assert "compressor-2.safetensors: there is no such file. Make one, or give its path" in said


def test_gold_steps_are_not_taught_where_there_are_none(refused, tmp_path):
    rows = [{"prompt": f"Ann has {i} nuts. How many?", "answer": str(i)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    free = ["backbone.path=MODEL", "data.task=jsonl", "data.path=HERE/rows.jsonl"]
    said = refused(*TRAIN, *free)
    assert "doctor, answer: [missing-field] term step: weight 1" in said
    assert "Give data that has it, or set method.weights.step=0" in said


# The model's own chains


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template, so nobody can ask it to think. Give a model"),
        ("{{ messages[-1].content }}", "it does not think aloud"),
    ],
)
def test_a_model_that_does_not_think_writes_no_pairs(refused, sums, tmp_path, template, says):
    folder = write_model(tmp_path / "plain", sums, template=template)
    said = refused("data", "pairs", folder, "--dataset", "gsm8k", "--path", "gsm8k=SUMS", "--out", "HERE/p")
    assert says in said and str(folder) in said and not (tmp_path / "p").exists()


def test_rollouts_of_which_none_was_right_teach_nothing_and_are_not_mixed_with_others(
    command, refused, tmp_path
):
    make = ["data", "pairs", "MODEL", "--dataset", "gsm8k", "--path", "gsm8k=SUMS", *PAIRS, "--out", "HERE/p"]
    code, said = command(*make)
    assert code == 0 and "nothing to train on:" in said and "next: " not in said
    said = refused(*TRAIN, "backbone.path=MODEL", "data.task=pairs", "data.path=HERE/p")
    assert "none of its 4 rollouts was kept" in said and "--max-new-tokens" in said and "--keep all" in said
    said = refused(*make, "--layers", "2")
    assert "was made with other settings: layers: ['last'] -> [2]" in said
    assert "give another --out, or --no-auto-resume" in said
