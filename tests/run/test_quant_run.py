"""A stage that trains for integers: from its step on, after a resume, when opened, and as a folder."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from quietreasoning.backbone import BackboneConfig, load_backbone, meta_backbone
from quietreasoning.build import open_run, resolve
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.export import export
from quietreasoning.nn.fake_quant import prepared, switch
from quietreasoning.nn.int_linear import IntLinear
from quietreasoning.run import doctor, plan, train_run
from quietreasoning.train.checkpoint import checkpoints

SETTINGS = [
    "backbone.scratch={layers: 1, width: 16, heads: 2, mlp: 24, context: 64, tie: true}",
    "data={train: 8, valid: 4, test: 4, options: {nodes: 4, hops: 2}}",
    "train={steps: 5, batch_size: 4, save_every: 1, keep: 20, eval_every: 0, precision: fp32, log_every: 1}",
    "optim={lr: 0.02, warmup_steps: 0, schedule: constant}",
]
QUANT = "train.quant={start: 0.6, lr_multiplier: 0.5}"
IDS_BT = torch.arange(6)[None]


def trained(folder, *settings, start=True):
    recipe = folder / "quiet.yaml"
    recipe.write_text("base: base/pointer\nmethod: {name: cot}\n", encoding="utf-8")
    resolved = resolve(str(recipe), [*SETTINGS, *settings], str(folder / "run"))
    if start:
        train_run(resolved, doctor=False)
    return folder / "run" if start else resolved


@cache
def run():
    """Five steps, the last two in integers."""
    return trained(Path(mkdtemp()), QUANT)


def says(model):
    with torch.no_grad():
        return model(input_ids=IDS_BT.to(model.device)).logits.cpu()


def is_on(model):
    return {layer.on for _, layer in prepared(model)}


def test_it_turns_on_at_its_step_and_slows_down():
    rows = [json.loads(line) for line in (run() / "log.jsonl").read_text().splitlines()]
    rates = [row["train/lr"] for row in rows if "train/lr" in row]
    assert rates == pytest.approx([0.02] * 3 + [0.01] * 2)
    on = [is_on(open_run(path).method.backbone) for path in checkpoints(run())]
    assert on == [{False}] * 2 + [{True}] * 3  # three steps done: the next is the first in integers


def test_until_then_it_is_the_run_without_it_and_then_it_is_not(tmp_path):
    plain = trained(tmp_path)
    files = [[load_file(p / "method.safetensors") for p in checkpoints(each)] for each in (run(), plain)]
    same = [all(torch.equal(a[k], b[k]) for k in a | b) for a, b in zip(*files, strict=True)]
    assert same == [True] * 3 + [False] * 2
    assert files[0][-1].keys() == files[1][-1].keys()


@pytest.mark.parametrize("last", [2, 4])
def test_a_resume_goes_on_bit_for_bit(tmp_path, last):
    again = trained(tmp_path, QUANT, start=False)
    shutil.copytree(run(), tmp_path / "run")
    for path in checkpoints(tmp_path / "run")[last:]:
        shutil.rmtree(path)
    train_run(again, resume=True, doctor=False)
    files = [load_file(checkpoints(each)[-1] / "method.safetensors") for each in (run(), tmp_path / "run")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


@pytest.mark.parametrize(
    "quant", [QUANT, "train.quant={start: 0, weight_bits: 4, group: 8}"], ids=["int8", "int4"]
)
def test_the_folder_says_what_training_said(tmp_path, quant):
    folder = run() if quant == QUANT else trained(tmp_path, quant, "train.steps=2")
    wanted = says(open_run(folder).method.backbone.model)
    made = export(str(folder), str(tmp_path / "out"), int8=True)
    assert made.distance < 1e-6 and "-bit weights move the logits by" in made.notes[-1]
    held = load_file(tmp_path / "out" / "model.safetensors")
    kinds = {t.dtype for name, t in held.items() if name.endswith(("proj.weight", "proj.weight_packed"))}
    assert kinds == ({torch.int8} if quant == QUANT else {torch.int32})
    path = str(tmp_path / "out")
    rows = held["model.embed_tokens.weight"].shape[0]
    backbone = load_backbone(BackboneConfig(path=path, tune="frozen"), rows)
    assert len([m for m in backbone.modules() if isinstance(m, IntLinear)]) == 7
    torch.testing.assert_close(says(backbone.model), wanted, rtol=1e-5, atol=1e-6)
    assert backbone.borrowed and meta_backbone(BackboneConfig(path=path, tune="frozen"), rows)
    with pytest.raises(UserError, match=r"integers, which do not train. Set backbone.tune=frozen"):
        load_backbone(BackboneConfig(path=path), rows)


def test_a_run_of_the_folder_answers(tmp_path):
    export(str(run()), str(tmp_path / "out"), int8=True)
    settings = [
        "backbone.scratch=null", f"backbone={{path: {tmp_path / 'out'}, tune: frozen}}", "train.steps=0",
        f"data.tokenizer={{path: {tmp_path / 'out'}, train: null}}",
    ]  # fmt: skip
    served = open_run(trained(tmp_path, *settings))
    loaded = open_run(run())
    prompts_BP = torch.arange(5)[None]
    answers = [each.method.generate(prompts_BP, max_new_tokens=6).tokens for each in (loaded, served)]
    assert answers[0] == answers[1]


def test_a_plain_export_is_the_floats_behind_and_says_so(tmp_path):
    made = export(str(run()), str(tmp_path / "out"))
    assert made.distance < 1e-6 and "--int8 writes what the run was evaluated as" in made.notes[0]
    loaded = open_run(run()).method.backbone.model
    counted = says(loaded)
    switch(loaded, False)
    found = says(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, says(loaded))
    assert (found - counted).norm() > 1e-4 * counted.norm()


def test_torchaos_tensors_say_the_same(tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed: the extra `quant`")
    out = tmp_path / "out"
    said = CliRunner().invoke(app, ["export", str(run()), str(out), "--int8", "--torchao"])
    assert said.exit_code == 0, said.output
    found = says(AutoModelForCausalLM.from_pretrained(out, dtype="auto"))
    torch.testing.assert_close(found, says(open_run(run()).method.backbone.model), rtol=1e-5, atol=1e-6)


def test_without_torchao_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"quietreasoning\[quant\], or leave it out"):
        export(str(run()), str(tmp_path / "out"), int8=True, torchao=True)
    with pytest.raises(UserError, match="no effect without --int8"):
        export(str(run()), str(tmp_path / "out"), torchao=True)


def test_quantised_after_training_without_a_step(tmp_path):
    """A stage of no steps: what int8 costs a model that was not trained for it."""
    late = trained(tmp_path, "train.steps=0", "train.quant={}")
    assert is_on(open_run(late).method.backbone) == {True}


def test_doctor_and_plan_read_such_a_recipe(tmp_path):
    resolved = trained(tmp_path, "train.quant={start: 0}", start=False)
    assert all(each.healthy for each in doctor(resolved))
    assert plan(resolved)["stage main"]
