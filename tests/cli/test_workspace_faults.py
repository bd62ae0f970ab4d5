"""A workspace model through the command line: what cannot be is refused in one line, before any compute."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config
from typer.testing import CliRunner

from quietreasoning.cli.main import app

RECIPE = """
backbone: {workspace: {preset: tiny}}
data: {task: pointer, tokenizer: {train: words}, train: 32, valid: 8, test: 8}
train: {steps: 2, batch_size: 4}
stages: [{name: all, method: {name: workspace}}]
"""
METHOD = "method={name: workspace, %s}"
SCRATCH = "backbone={workspace: null, scratch: {layers: 1, width: 32}}"
SIZES = "backbone={workspace: {sizes: {%s}}}"


@pytest.fixture
def refused(tmp_path):
    """The one line of a refusal; nothing is trained."""

    def ask(*settings):
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        words = ["train", tmp_path / "recipe.yaml", "--no-doctor", *settings, "--out", tmp_path / "run"]
        said = line(words)
        assert not list(tmp_path.glob("run/step-*"))
        return said

    return ask


def line(words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([SIZES % "num_attention_heads: 3"], "num_attention_heads=3 does not divide hidden_size=128; try"),
        ([SIZES % "slots: 0"], "slots=0 must be 1 or more"),
        ([SIZES % "ssm_blocks: [1, 10]"], "ssm_blocks=10 lies outside the trunk"),
        ([SIZES % "pkm_slots: 4000"], "Use 3969 or 4096"),
        ([SIZES % "slot: 4"], "no such size"),
        ([SIZES % "features: [pkm]"], "method.features"),
        ([SIZES % "vocab_size: 9"], "the tokenizer"),
        (["backbone={workspace: {preset: tinny}}"], "tiny"),
        (["backbone={workspace: {}, path: here}"], "workspace excludes path"),
        (["backbone={workspace: {}, scratch: {layers: 1}}"], "set backbone.scratch=null"),
        (["backbone={workspace: {}, tune: lora}"], "method.features"),
        (["backbone={workspace: {trunk: /nowhere/at/all}}"], "backbone.workspace.trunk=/nowhere/at/all"),
        ([SIZES % "", METHOD % "features: [workspace, pmk]"], "pmk"),
        ([SIZES % "", METHOD % "weights: {gate: 1}"], "without the feature ssm"),
        ([SIZES % "", METHOD % "temperature: [2, 1]"], "without the feature pkm"),
        ([SCRATCH], "backbone.workspace.preset=tiny"),
        (["method={name: slots, attend: full}"], "attend=full"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(settings, says, refused):
    assert says in refused(*settings)


def test_a_trunk_of_another_family_is_refused(refused, tmp_path):
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=2)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "gpt2")
    said = refused(f"backbone={{workspace: {{trunk: {tmp_path}/gpt2}}}}")
    assert "'gpt2' is not Llama-like; choices: llama" in said
