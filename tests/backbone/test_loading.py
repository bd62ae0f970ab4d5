"""Folders in, backbones out; what cannot be carried is refused in one clear line."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    LlamaConfig,
    MambaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from quietreasoning.backbone import BackboneConfig, LoraConfig, ScratchConfig, load_backbone, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.data.tokenizers import load_tokenizer
from quietreasoning.disk import MADE_BY
from quietreasoning.recipe import RECIPES

VOCAB = 40
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def load(folder, vocab_size=VOCAB, **settings):
    return load_backbone(BackboneConfig(path=str(folder), **settings), vocab_size)


def refusal(folder, vocab_size=VOCAB, **settings) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, vocab_size, **settings)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 420, text
    return text


def edit(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_identity_names_the_folder_and_its_bytes(copy):
    before = load(copy).identity
    single = hashlib.sha256((copy / "model.safetensors").read_bytes()).digest()
    assert before == {
        "path": str(copy.resolve()),
        "revision": "",
        "sha256": hashlib.sha256(single).hexdigest(),
    }
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load(copy).identity["sha256"] != before["sha256"]
    scratch = load_backbone(BackboneConfig(scratch=ScratchConfig(width=16, heads=2)), VOCAB)
    assert set(scratch.identity) == {"scratch"}


@pytest.mark.parametrize("tune", ["full", "lora", "frozen"])
def test_borrowed_is_what_stands_unchanged_in_the_folder(saved, tune):
    backbone = load(saved, tune=tune)
    adapters = {name for name in backbone.state_dict() if "lora_" in name}
    assert bool(adapters) == (tune == "lora")
    everything = set(backbone.state_dict())
    assert set(backbone.borrowed) == (set() if tune == "full" else everything - adapters)
    trainable = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trainable == {"full": everything, "lora": adapters, "frozen": set()}[tune]


def test_fresh_weights_are_never_borrowed():
    backbone = load_backbone(BackboneConfig(scratch=ScratchConfig(width=16, heads=2), tune="frozen"), VOCAB)
    assert backbone.borrowed == () and not any(p.requires_grad for p in backbone.parameters())


def test_adapters_start_as_nothing_and_train_alone(saved):
    plain, adapted = load(saved).eval(), load(saved, tune="lora", lora=LoraConfig(rank=2)).eval()
    ids_BT = torch.arange(10)[None]
    role_BT = role_of(ids_BT, Role.PROMPT)
    before = adapted(ids_BT, role_BT).hidden_BTD
    torch.testing.assert_close(before, plain(ids_BT, role_BT).hidden_BTD)
    base = {key: adapted.state_dict()[key].clone() for key in adapted.borrowed}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        adapted(ids_BT, role_BT).hidden_BTD.square().sum().backward()
        optimizer.step()
    assert not torch.equal(adapted(ids_BT, role_BT).hidden_BTD, before)
    assert all(torch.equal(adapted.state_dict()[key], value) for key, value in base.items())


def test_all_linear_means_all_but_the_head(saved):
    adapted = {name.split(".lora_")[0] for name in load(saved, tune="lora").state_dict() if "lora_" in name}
    layers = [name for name in adapted if ".layers.0." in name]
    assert len(layers) == 7 and len(adapted) == 14 and not any("head" in name for name in adapted)
    some = load(saved, tune="lora", lora=LoraConfig(targets=("q_proj", "mlp.up_proj")))
    assert {n.split(".lora_")[0].split(".")[-1] for n in some.state_dict() if "lora_" in n} == {
        "q_proj",
        "up_proj",
    }


def test_unknown_lora_targets_are_named_with_the_choices(saved):
    text = refusal(saved, tune="lora", lora=LoraConfig(targets=("q_proj", "query")))
    assert "backbone.lora.targets=query" in text and "down_proj, gate_proj" in text


def test_held_precision(saved):
    backbone = load(saved, dtype="bfloat16")
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}


def test_a_folder_that_is_not_there(tmp_path):
    assert "nowhere: no such folder" in refusal(tmp_path / "nowhere")
    assert "runs/teacher: no such folder" in refusal(Path("runs/teacher"))  # which has the shape of a hub id
    with pytest.raises(
        UserError, match=r"runs/teacher: no such folder\. Make it: quiet train distill/teacher"
    ):
        load_tokenizer("runs/teacher")
    (tmp_path / "empty").mkdir()
    assert "backbone.path=" in (said := refusal(tmp_path / "empty")) and "of a run, by quiet export" in said
    for name in ("nowhere", "no/where"):  # old hub ids have no owner
        lines = [refusal(Path(name))]
        with pytest.raises(UserError) as error:
            load_tokenizer(name)
        for said in (*lines, str(error.value)):
            what, _, why = said.partition(": ")
            assert what in (f"backbone.path={name}", f"tokenizer of {name}")
            assert why.startswith(f"no folder {name} here, and {name} was not found on the hub: We couldn't")
            assert why.rstrip(".").endswith("installation#offline-mode'"), "cut"
    with pytest.raises(
        UserError, match=r"^method\.teacher\.path=runs/student: no such folder\. Make it: .*kd-tiny"
    ):
        load_backbone(BackboneConfig(path="runs/student"), 5, key="method.teacher.path")


def test_the_commands_that_make_a_folder_are_those_of_the_makefile():
    """And the recipes that read it name it."""
    page = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    for folder, (recipe, run) in MADE_BY.items():
        assert re.search(rf"^{folder}: .*\n(?:\t.*\n)*\t\$\(QUIET\) export {run} \$@$", page, re.MULTILINE)
        assert recipe in RECIPES and run == f"runs/{recipe.replace('/', '-')}-0"
        assert any(f"{{path: {folder}}}" in file.read_text() for file in RECIPES.values())


@pytest.mark.parametrize("model_type", ["llama", "brand_new"])
def test_code_in_a_folder_is_never_run(copy, model_type, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    (copy / "modeling_own.py").write_text("raise SystemExit('ran code of the folder')\n")
    auto_map = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    edit(copy, auto_map=auto_map, model_type=model_type)
    if model_type == "llama":  # transformers ships this architecture: its own code is used
        assert type(load(copy).model).__module__.startswith("transformers.")
    else:
        assert "never run here" in refusal(copy)


def test_an_unknown_architecture(copy):
    edit(copy, model_type="brand_new")
    assert "brand_new" in refusal(copy)


def test_pickled_weights_are_never_loaded(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    text = refusal(copy)
    assert "pickled weights are never loaded" in text


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "truncated", "flipped header"])
def test_weights_that_do_not_fit(copy, fault):
    path = copy / "model.safetensors"
    weights = load_file(path)
    if fault == "missing":
        del weights["model.layers.1.mlp.up_proj.weight"]
    elif fault == "unexpected":
        weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
    elif fault == "shape":
        weights["model.norm.weight"] = torch.zeros(5)
    if fault in ("missing", "unexpected", "shape"):
        save_file(weights, path, metadata={"format": "pt"})
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    text = refusal(copy)
    if fault in ("missing", "unexpected"):
        assert fault in text and "mlp.up_proj" in text
    if fault == "shape":
        assert "model.norm.weight" in text


def test_a_config_that_is_no_json(copy):
    (copy / "config.json").write_text("{not json")
    assert "config" in refusal(copy)


def test_a_tokenizer_with_more_tokens_than_the_embedding(saved):
    text = refusal(saved, vocab_size=VOCAB + 1)
    assert "41" in text and "40" in text
    assert load(saved, vocab_size=VOCAB - 5).vocab_size == VOCAB


SMALL_BERT = {key: value for key, value in SMALL.items() if key != "initializer_range"}
REFUSED = {
    "bidirectional": BertConfig(**SMALL_BERT),
    "state space": MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4),
    "no positions": BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2),
    "capped logits": Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2, final_logit_softcapping=0.5),
}


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_cannot_carry_a_method(family, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(REFUSED[family]).save_pretrained(tmp_path)
    assert "backbone.attention=eager" in refusal(tmp_path) or family == "bidirectional"
    assert "support" in refusal(tmp_path, attention="eager")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_are_refused(kind, tmp_path):
    if kind == "t5":
        config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    else:
        from transformers import BartForConditionalGeneration

        config = BartConfig(
            vocab_size=VOCAB,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
        )
        BartForConditionalGeneration(config).save_pretrained(tmp_path)
    assert refusal(tmp_path)


def test_loading_leaves_mode_and_random_state_alone(saved):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert load(saved).training is load(saved).model.training
    torch.testing.assert_close(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"revision": "main"}, "revision has no effect"),
        ({"tune": "lora"}, "tune=lora on fresh weights"),
        ({"scratch": {"width": 30, "heads": 4}}, "multiple of heads"),
        ({"scratch": {"heads": 4, "kv_heads": 3}}, "multiple of kv_heads"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        BackboneConfig.model_validate(settings)


@pytest.mark.parametrize("tie", [False, True])
def test_scratch_is_a_llama_of_the_shape_asked_for(tie):
    scratch = ScratchConfig(layers=3, width=48, heads=4, kv_heads=2, context=20, tie=tie, init_std=0.5)
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(scratch=scratch), VOCAB)
    config = backbone.model.config
    assert isinstance(config, LlamaConfig) and config.intermediate_size == 128
    assert (backbone.num_layers, backbone.width, backbone.context, backbone.vocab_size) == (3, 48, 20, VOCAB)
    assert config.num_key_value_heads == 2
    table, head = backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight
    assert (head is table) == tie and float(table.detach().std()) == pytest.approx(0.5, rel=0.1)


def test_config_round_trips_through_the_folder(saved):
    assert AutoConfig.from_pretrained(saved).to_dict()["vocab_size"] == load(saved).vocab_size


def test_adapter_settings_without_adapters_are_refused():
    with pytest.raises(ValueError, match="lora has no effect with tune=full"):
        BackboneConfig(lora=LoraConfig(rank=4))
