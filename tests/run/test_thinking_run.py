"""Thinking tokens on a model folder: adapters and new rows alone are saved, and come back exactly."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from quietreasoning.backbone import role_of
from quietreasoning.build import Builder, open_run, resolve
from quietreasoning.contract import Role
from quietreasoning.data.thinking import thinking_ids
from quietreasoning.data.tokenizers import save_tokenizer, train_bpe
from quietreasoning.run import train_run
from quietreasoning.train.checkpoint import checkpoints

SETTINGS = [
    "backbone.tune=lora", "backbone.lora={rank: 2, targets: [q_proj]}", "data.tokenizer={thinking: true}",
    "data.train=4", "train={steps: 2, batch_size: 4, save_every: 1, eval_every: 0}", "optim.warmup_steps=0",
]  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def run(request, tmp_path_factory):
    """(recipe, settings, run folder) of two steps."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_bpe(["think step by step #### 3 + 4 so"] * 9, 290)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=512, tie_word_embeddings=request.param,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    recipe = folder / "quiet.yaml"
    recipe.write_text(f"method: {{name: cot}}\nbackbone: {{path: {folder}}}\ndata: {{task: strategies}}\n")
    out = folder / "run"
    assert train_run(resolve(str(recipe), SETTINGS, str(out)), doctor=False) == 0
    return recipe, out


def test_a_checkpoint_holds_adapters_and_new_rows_and_nothing_of_the_model(run):
    held = load_file(checkpoints(run[1])[-1] / "method.safetensors")
    assert all("lora_" in name or name.endswith("new_rows") for name in held)
    rows = [tensor for name, tensor in held.items() if name.endswith("new_rows")]
    assert rows and all(t.shape == (8, 16) and t.abs().sum() > 0 for t in rows)


def test_a_reopened_run_is_the_trained_one_bit_for_bit(run):
    opened, again = open_run(run[1]), open_run(run[1])
    fresh = Builder(opened.config).method(opened.config.stages[0]).eval()
    trained = load_file(opened.checkpoint / "method.safetensors")
    with torch.no_grad():
        for name, tensor in fresh.state_dict().items():
            if name in trained:
                tensor.copy_(trained[name])
    ids_BT = torch.tensor([[7, *thinking_ids(opened.encoder.tokenizer), 9]])
    answers = []
    for method in (opened.method, again.method, fresh):
        backbone = method.backbone
        hidden = backbone(ids_BT.to(next(backbone.parameters()).device), role_of(ids_BT, Role.PROMPT))
        answers.append(backbone.logits(hidden.hidden_BTD).cpu())
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_a_resumed_run_ends_as_an_uninterrupted_one(run):
    recipe, out = run
    wanted = load_file(checkpoints(out)[-1] / "method.safetensors")
    shutil.rmtree(checkpoints(out)[-1])
    assert train_run(resolve(str(recipe), SETTINGS, str(out)), resume=True, doctor=False) == 0
    found = load_file(checkpoints(out)[-1] / "method.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
