"""Runs whose heads are clipped: what is logged, and that a stopped run goes on to the bit."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from train_toys import VOCAB, WIDTH, Toy, ToyBackbone, logged, run_toy, toy_batches, toy_plan
from transformers import AutoModelForCausalLM, LlamaConfig

from quietreasoning.backbone import Backbone, BackboneConfig, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.train.signals import StopFlag, Stopped
from quietreasoning.train.snapshot import load_weights

SHAPE = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=2,
    initializer_range=0.5,
)
OPTIM = {
    "name": "muon",
    "lr": 0.2,
    "muon": {"precision": "fp32"},
    "grokfast": {"strength": 0.2},
    "qk_clip": {"tau": 0.3},
}


class Attends(ToyBackbone):
    def __init__(self, tune):
        super().__init__()
        model = AutoModelForCausalLM.from_config(SHAPE)
        if tune == "lora":
            model.requires_grad_(False)
            inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "k_proj"]), model)
        self.reads = Backbone(model, BackboneConfig(path="a folder", tune=tune), {"path": "a folder"})

    @property
    def borrowed(self):
        return tuple(f"reads.{key}" for key in self.reads.borrowed)

    def forward(self, ids_BT):
        return super().forward(ids_BT) + self.reads(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD.mean(1)


class Attending(Toy):
    def __init__(self, tune="full"):
        super().__init__()
        self.backbone = Attends(tune)


def run(folder, tune, stop_at=None):
    stop, batches = StopFlag(), toy_batches(8)

    def batch_at(step, *where):
        if step == stop_at:
            stop.request()
        return batches(step, *where)

    plan = toy_plan(steps=6, optim=OPTIM, batch_at=batch_at, accumulate=2, save_every=0)
    run_toy(folder, replace(plan, make_method=lambda previous: Attending(tune)), stop=stop)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_clipped_run_resumes_exactly_and_says_what_it_clipped(tune, tmp_path):
    run(tmp_path / "through", tune)
    with pytest.raises(Stopped):
        run(tmp_path / "broken", tune, stop_at=3)
    run(tmp_path / "broken", tune)
    for key in ("train/loss", "train/qk_max", "train/qk_limit", "train/qk_clipped", "train/qk_tau"):
        through = logged(tmp_path / "through", key)
        assert len(through) == 6 and through == logged(tmp_path / "broken", key)
    clipped = [value for _, value in logged(tmp_path / "through", "train/qk_clipped")]
    assert clipped[0] == 0 and sum(clipped) > 0
    for name in ("method", "optimizer"):
        one, two = (
            load_file(tmp_path / r / f"step-000006/{name}.safetensors") for r in ("through", "broken")
        )
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert sum(key.endswith("qk_clip_limit") for key in one) == 2
    assert sum(key.endswith("grokfast_mean") for key in one) > 2
    method = Attending(tune)
    load_weights(tmp_path / "through/step-000006", method)
    scales = [t for key, t in method.state_dict().items() if "lora_head_scale" in key]
    assert len(scales) == (4 if tune == "lora" else 0) and all((t <= 1).all() for t in scales)


def test_a_compiled_forward_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"qk_clip.*train\.compile=false"):
        run_toy(tmp_path, toy_plan(optim={"qk_clip": {}}, compile=True))


def test_a_method_without_attention_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"qk_clip.tau=100: no query or key projection"):
        run_toy(tmp_path, toy_plan(optim={"qk_clip": {}}))
