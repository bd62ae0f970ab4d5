"""The main path on real GSM8K rows: train, evaluate, report; from scratch and from a SmolLM3 folder."""

import json
import math

import pytest
import torch
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from quietreasoning.build import open_run, resolve
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.tokenizers import save_tokenizer, texts, train_bpe
from quietreasoning.run import evaluate_run, report_runs, train_run

SMALL = [
    "data.train=4", "train.batch_size=4",  # the same rows in every step, so that the loss must fall
    "train.log_every=1", "train.precision=fp32", "optim.warmup_steps=0", "optim.lr=3e-3",
    "eval.n=4", "eval.max_new_tokens=12", "eval.timing=0", "eval.controls=[zero]",
]  # fmt: skip
SCRATCH = [
    "backbone.scratch.layers=1", "backbone.scratch.width=32", "backbone.scratch.heads=2",
    "data.tokenizer.vocab=300",
]  # fmt: skip


@pytest.fixture(scope="module")
def smollm3(real, tmp_path_factory):
    """A model folder as another tool would leave it: one layer with positions, one without."""
    folder = tmp_path_factory.mktemp("smollm3")
    data = DataConfig(task="gsm8k", path=str(real("gsm8k")), train=24)
    tokenizer = train_bpe(texts(data, build_task(data)), 300)
    shape = SmolLM3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024, no_rope_layer_interval=2,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    SmolLM3ForCausalLM(shape).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def trained(real, out, recipe, *settings):
    """(first, last) of each loss term by stage."""
    assert train_run(resolve(recipe, [f"data.path={real('gsm8k')}", *SMALL, *settings], out=str(out))) == 0
    losses = {}
    for line in (out / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        for key, value in record.items():
            if key.startswith("loss/"):
                losses.setdefault((record["stage"], key), []).append(value)
    return {key: (values[0], values[-1]) for key, values in losses.items()}


def test_chain_from_scratch(real, tmp_path):
    losses = trained(real, tmp_path / "run", "cot/gsm8k-tiny", *SCRATCH, "train.steps=8")
    first, last = losses["main", "loss/answer"]
    assert last < first - 0.5
    rows = evaluate_run(str(tmp_path / "run"))
    assert {row["control"] for row in rows} == {None, "zero"} and {row["n"] for row in rows} == {4}
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    page = report_runs([str(tmp_path / "run")]).read_text(encoding="utf-8")
    assert "gsm8k (valid split)" in page and "loss/answer" in page


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_quiet_from_a_model_folder(real, smollm3, tmp_path, tune):
    losses = trained(
        real, tmp_path / "run", "continuous/gsm8k-tiny", f"backbone.path={smollm3}", f"backbone.tune={tune}",
        "stages.chain.train.steps=4", "stages.quiet.train.steps=4",
    )  # fmt: skip
    assert set(losses) == {("chain", "loss/answer"), ("quiet", "loss/answer"), ("quiet", "loss/step")}
    assert all(last < first for first, last in losses.values())
    rows = evaluate_run(str(tmp_path / "run"))
    quiet = next(row for row in rows if row["method"] == "continuous" and row["control"] is None)
    assert quiet["visible_tokens"] == 0 and quiet["passes"] == 6
    saved = open_run(tmp_path / "run").method.borrowed
    assert bool(saved) == (tune == "lora")


def test_more_steps_than_thoughts_and_none(real, tmp_path):
    """Rows with 0 to 8 steps, two latents, multi-token results."""
    losses = trained(
        real, tmp_path / "run", "continuous/gsm8k-tiny", *SCRATCH, "stages.chain.train.steps=1",
        "stages.quiet.train.steps=2", "stages.quiet.method.latents=2", "stages.quiet.method.target=step",
        "data.train=96", "train.batch_size=96",
    )  # fmt: skip
    assert all(math.isfinite(value) for pair in losses.values() for value in pair)


def test_humaneval_is_asked_on_its_only_split(real, tmp_path, capsys):
    trained(real, tmp_path / "run", "cot/gsm8k-tiny", *SCRATCH, "train.steps=1")
    settings = ["data.task=humaneval", f"data.path={real('humaneval')}", "data.max_dropped_fraction=1"]
    (row,) = evaluate_run(str(tmp_path / "run"), [*settings, "eval.n=20", "eval.controls=[]"])
    assert "humaneval has no valid split, only test" in capsys.readouterr().err
    assert row["split"] == "test" and row["accuracy"] == 0 and 0 < row["high"] < 1
