"""Around a trunk's weights: with every module on, the first logits are the trunk's own."""

import pytest
import torch
from made_models import ids_of
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from quietreasoning.backbone import BackboneConfig, load_backbone
from quietreasoning.config import UserError

SHAPE = {
    **{"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "llama-biased-tied": LlamaConfig(**SHAPE, attention_bias=True, tie_word_embeddings=True),
    "llama-yarn": LlamaConfig(
        **SHAPE,
        rope_parameters={
            **{"rope_type": "yarn", "rope_theta": 500.0, "factor": 2.0},
            **{"original_max_position_embeddings": 32},
        },
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "smollm3": SmolLM3Config(**SHAPE, no_rope_layer_interval=2),
}
EVERY = ("workspace", "pkm", "adapters", "ssm", "retrieval", "knn")
SMALL = {"chunk_size": 8, "slot_width": 16, "slot_heads": 2, "pkm_slots": 64, "pkm_value_dim": 8}


def saved(config, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                p.add_(0.2 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model


def warm(folder, **sizes):
    return load_backbone(BackboneConfig(workspace={"trunk": str(folder), "sizes": SMALL | sizes}), 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_logits_are_the_trunks(family, tmp_path):
    trunk, ids = saved(FAMILIES[family], tmp_path), ids_of(2, 29)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    model = warm(tmp_path).model
    with torch.no_grad():
        wanted = trunk(ids, attention_mask=mask).logits
        for features in ((), EVERY):
            model.model.set_features(features)
            for training in (False, True):
                got = model.train(training)(ids, mask).logits
                torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], rtol=1e-4, atol=1e-4)
    assert model.config.tie_word_embeddings == trunk.config.tie_word_embeddings
    assert model.config.eos_token_id == 1 and model.config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=2),
            "'gpt2' is not Llama-like; choices: llama",
        ),
        (MistralConfig(**SHAPE, sliding_window=4), "sliding windows"),
        (LlamaConfig(**SHAPE, mlp_bias=True), "biases in its MLP"),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), "activation other than silu"),
    ],
    ids=["gpt2", "sliding", "biased", "gelu"],
)
def test_another_trunk_is_refused(config, says, tmp_path):
    saved(config, tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        warm(tmp_path)
    assert "\n" not in str(caught.value)


def test_sizes_of_the_trunk_cannot_be_changed(tmp_path):
    saved(FAMILIES["llama"], tmp_path)
    with pytest.raises(UserError, match="sizes of the trunk cannot be changed"):
        warm(tmp_path, intermediate_size=64)
    with pytest.raises(UserError, match="no such size"):
        warm(tmp_path, slot_count=3)


def test_a_tokenizer_that_is_too_large_is_refused(tmp_path):
    saved(FAMILIES["llama"], tmp_path)
    with pytest.raises(UserError, match="the tokenizer has 60 tokens, the embedding only 48"):
        load_backbone(BackboneConfig(workspace={"trunk": str(tmp_path)}), 60)
