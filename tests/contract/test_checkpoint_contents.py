"""A checkpoint holds all but what is borrowed, and gives it back, tied or not."""

import pytest
import torch
from contract_cases import FIRST, VOCAB, backbone_for, batch_of, go, make, rows_of, scratch, start
from safetensors.torch import load_file

from quietreasoning.backbone import BackboneConfig, LoraConfig, load_backbone
from quietreasoning.config import UserError
from quietreasoning.train.snapshot import load_weights, save_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    scratch().model.save_pretrained(path)
    return path


def on_folder(case, folder, tune):
    adapters = {"lora": LoraConfig(rank=2, targets=("q_proj", "down_proj"))} if tune == "lora" else {}
    return make(case, load_backbone(BackboneConfig(path=str(folder), tune=tune, **adapters), VOCAB))


def saved(method, case, path):
    state = start(case, method=method, steps=1)
    go(state, rows_of(case), steps=1)
    return save_state(state, path, run={}, position={})


@pytest.mark.parametrize("tune", ["full", "lora", "frozen"])
@pytest.mark.parametrize("case", ["plain", "pause", "continuous-decoder", "slots-wide"])
def test_all_but_the_borrowed(case, tune, folder, tmp_path):
    method = on_folder(case, folder, tune)
    own = {name for name in method.state_dict() if not name.startswith("backbone.")}
    if tune == "frozen" and not own:
        with pytest.raises(UserError, match="nothing to train"):
            saved(method, case, tmp_path)
        return
    before = {name: t.clone() for name, t in method.state_dict().items()}
    held = load_file(saved(method, case, tmp_path) / "method.safetensors")
    backbone = {name for name in held if name.startswith("backbone.")}
    assert held.keys() - backbone == own
    if tune == "full":
        assert held.keys() == method.state_dict().keys()
    else:
        assert all(".lora_" in name for name in backbone) and bool(backbone) == (tune == "lora")
        for name in method.borrowed:
            assert torch.equal(method.state_dict()[name], before[name]), name
    assert any(not torch.equal(t, before[name]) for name, t in held.items())
    again = on_folder(case, folder, tune)
    load_weights(tmp_path / "step-000001", again)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in method.state_dict().items())


@pytest.mark.parametrize("case", FIRST)
def test_tied_embeddings_come_back_tied(case, tmp_path):
    method = make(case, backbone_for(case, tie=True))
    path = saved(method, case, tmp_path)
    held = load_file(path / "method.safetensors")
    own = [name for name in held if name.startswith("backbone.")]
    assert sum("embed_tokens" in name or "lm_head" in name for name in own) == 1
    again = make(case, backbone_for(case, seed=5, tie=True))
    load_weights(path, again)
    model = again.backbone.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    prompt_BP = batch_of([0, 1]).prompt_BP
    ours, theirs = (m.eval().generate(prompt_BP, max_new_tokens=3) for m in (method, again))
    assert ours.tokens == theirs.tokens
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in method.state_dict().items())


def test_another_method_does_not_fit(tmp_path):
    path = saved(make("slots"), "slots", tmp_path)
    with pytest.raises(UserError, match=r"only in the checkpoint: feedback"):
        load_weights(path, make("plain"))
