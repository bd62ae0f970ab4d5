"""The doctor passes every stage of every shipped recipe: its own data and method, at a small width."""

import json
from functools import cache

import pytest
import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.data.batches import Batches
from quietreasoning.data.config import DataConfig, build_task
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.load import load_split
from quietreasoning.data.tokenizers import build_tokenizer
from quietreasoning.layers import resolve_stages
from quietreasoning.methods import METHODS
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.recipe import RECIPES, load_recipe
from quietreasoning.train.doctor import examine
from quietreasoning.train.settings import TrainConfig
from quietreasoning.validation import validate


def stages() -> dict[str, dict]:
    """Stages that differ in data or method, each under the name of the first recipe that has it."""
    found = {}
    for name in RECIPES:
        for stage in resolve_stages(load_recipe(name).values):
            same = json.dumps([stage["method"], stage["data"]["task"]], sort_keys=True)
            found.setdefault(same, (f"{name}:{stage['name']}", stage))
    return dict(found.values())


STAGES = stages()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A folder in GSM8K's format."""
    folder = tmp_path_factory.mktemp("gsm8k")
    lines = []
    for i in range(2, 42):
        text = f"Ann has {i} bags of {i + 1} nuts and eats {i % 5 + 1} nuts. How many are left?"
        total, left = i * (i + 1), i * (i + 1) - i % 5 - 1
        chain = f"She has {i}*{i + 1}=<<{i}*{i + 1}={total}>>{total} nuts."
        if i % 3:
            chain += f"\nLeft are {total}-{i % 5 + 1}=<<{total}-{i % 5 + 1}={left}>>{left} nuts."
        answer = left if i % 3 else total
        lines.append(json.dumps({"question": text, "answer": f"{chain}\n#### {answer}"}))
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def encoded(rows):
    @cache
    def encode(task: str, options: str):
        settings = {"task": task, "train": 40, "tokenizer": {"vocab": 384}}
        if task == "gsm8k":
            settings["path"] = rows
        else:
            settings |= {"options": json.loads(options), "tokenizer": {"train": "words"}}
        config = validate(DataConfig, settings)
        encoder = Encoder(build_tokenizer(config, build_task(config)))
        examples, _ = load_split(build_task(config), "train", config, encoder, n=24)
        return encoder, Batches(examples, encoder, 8).batch_at(0)

    return encode


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_healthy(name, encoded):
    stage = STAGES[name]
    data = stage["data"]
    encoder, batch = encoded(data["task"], json.dumps(data.get("options", {})))
    torch.manual_seed(0)
    shape = ScratchConfig(layers=1, width=32, heads=2, context=1024)
    backbone = load_backbone(BackboneConfig(scratch=shape), len(encoder.tokenizer))
    method_class = METHODS[stage["method"]["name"]]
    method = method_class(backbone, validate(method_class.Config, stage["method"]), encoder.markers())
    train = validate(TrainConfig, stage["train"])
    diagnosis = examine(
        method, batch, label=name, optim=validate(OptimConfig, stage["optim"]), enable=train.enable
    )
    assert diagnosis.healthy, [str(finding) for finding in diagnosis.findings]
