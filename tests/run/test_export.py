"""A run's language model as a model folder: what it says there is what it says here."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from quietreasoning.backbone.heads import SCALE
from quietreasoning.build import open_run, resolve
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.data.config import build_task
from quietreasoning.data.tags import THINKING
from quietreasoning.data.tokenizers import save_tokenizer, train_bpe
from quietreasoning.export import export
from quietreasoning.run import train_run

SETTINGS = ["train={steps: 2, batch_size: 4, eval_every: 0}", "optim={warmup_steps: 0, lr: 0.05}"]
SETTINGS += ["data.train=4", "data.tokenizer={thinking: true}", "data.options={}"]
LORA = ["backbone.tune=lora", "backbone.lora={rank: 2, targets: [q_proj, k_proj, down_proj]}"]


def trained(folder, task, settings, *, tie=True):
    """A run of two steps from a fresh Llama folder."""
    tokenizer = train_bpe(["think step by step #### 3 + 4 so , ? a b c d e f g h"] * 9, 290)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=512, tie_word_embeddings=tie,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder / "model")
    save_tokenizer(tokenizer, folder / "model")
    recipe = folder / "quiet.yaml"
    recipe.write_text(
        f"method: {{name: cot}}\nbackbone: {{path: {folder / 'model'}}}\ndata: {{task: {task}}}\n"
    )
    train_run(resolve(str(recipe), [*SETTINGS, *settings], str(folder / "run")), doctor=False)
    return folder / "run"


def test_what_may_have_been_trained_is_kept(tmp_path):
    """A run that began from another one: that one may have learned the tokens."""
    first = trained(tmp_path, "strategies", ["backbone.tune=full"])
    settings = [*SETTINGS, "backbone.tune=full", f"init={first}", f"data.tokenizer.path={first}/tokenizer"]
    recipe = tmp_path / "next.yaml"
    recipe.write_text((tmp_path / "quiet.yaml").read_text().replace("strategies", "pointer"))
    train_run(resolve(str(recipe), settings, str(tmp_path / "next")), doctor=False)
    said = export(str(tmp_path / "next"), str(tmp_path / "out"))
    assert said.distance < 1e-6 and not said.notes
    assert set(THINKING) <= AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab().keys()


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_adapters_new_rows_and_clipped_heads_are_in_the_weights(tmp_path, tie):
    run = trained(tmp_path, "strategies", [*LORA, "optim.qk_clip={tau: 100}"], tie=tie)
    loaded = open_run(run)
    ids_BT = torch.tensor([[7, *range(loaded.method.backbone.vocab_size - 8, 290), 9]])
    said = export(str(run), str(tmp_path / "out"))
    assert said.distance < 1e-6 and not said.notes
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("lora" in name or "new_rows" in name for name in model.state_dict())
    with torch.no_grad():
        here = loaded.method.backbone.model(input_ids=ids_BT).logits
        torch.testing.assert_close(model(input_ids=ids_BT).logits, here, rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == loaded.encoder.tokenizer.get_vocab()
    assert model.generation_config.eos_token_id == loaded.encoder.markers().eos


def test_a_scale_on_heads_is_folded_in(tmp_path, monkeypatch):
    run = trained(tmp_path, "strategies", [*LORA, "optim.qk_clip={tau: 100}"])
    loaded = open_run(run)
    scales = [getattr(module, SCALE) for module in loaded.method.modules() if hasattr(module, SCALE)]
    assert len(scales) == 2  # of queries and of keys
    for scale_H in scales:
        scale_H.fill_(0.5)
    monkeypatch.setattr("quietreasoning.export.open_run", lambda path: loaded)
    assert export(str(run), str(tmp_path / "out")).distance < 1e-6  # asked before and after


def test_thinking_tokens_that_nothing_was_trained_on_are_cut_off(tmp_path):
    run = trained(tmp_path, "pointer", LORA)
    loaded = open_run(run)
    said = export(str(run), str(tmp_path / "out"))
    assert said.distance < 1e-6 and "the 8 that were added are cut off" in said.notes[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(tokenizer) == len(loaded.encoder.tokenizer) - 8
    assert not set(THINKING) & tokenizer.get_vocab().keys()
    prompts_BP = loaded.encoder.prompts(list(build_task(loaded.config.stages[0].data).split("valid", 1)))
    written = loaded.method.generate(prompts_BP, max_new_tokens=5).tokens[0]
    found = model.generate(
        prompts_BP, attention_mask=torch.ones_like(prompts_BP), do_sample=False, max_new_tokens=5
    )
    assert found[0, prompts_BP.shape[1] :].tolist()[: len(written)] == written


def test_the_command_writes_once_in_the_precision_asked_for(tmp_path):
    run = trained(tmp_path, "pointer", ["backbone.tune=full"])
    out = tmp_path / "out"
    words = ["export", str(run), str(out), "--dtype", "bfloat16", "--json", str(tmp_path / "said.json")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["distance"] < 0.03 and {f["name"] for f in said["files"]} >= {"config.json", "tokenizer.json"}
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2 and "is there already; name a new folder" in again.output
    with pytest.raises(UserError, match="choose one of float32, bfloat16, float16"):
        export(str(run), str(tmp_path / "other"), "int3")
