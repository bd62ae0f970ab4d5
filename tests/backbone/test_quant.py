"""What of a language model counts in integers, what cannot, and that nothing else notices."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone, meta_backbone
from quietreasoning.backbone.config import WorkspaceSizes
from quietreasoning.backbone.int_folder import describe, described
from quietreasoning.backbone.quant import prepare, prepare_model
from quietreasoning.backbone.weights import weights_identity
from quietreasoning.config import UserError
from quietreasoning.nn.fake_quant import Bits, prepared, switch

SMALL = BackboneConfig(scratch=ScratchConfig(layers=2, width=16, heads=2, mlp=24, context=32))


def small(**changes):
    torch.manual_seed(0)
    return load_backbone(SMALL.model_copy(update=changes), 20)


def test_blocks_count_and_head_and_embedding_do_not():
    backbone = small()
    before, keys = weights_identity(backbone), list(backbone.state_dict())
    prepare(backbone, Bits(), ("lm_head", "embed", "down_proj", "layers.1"))
    assert weights_identity(backbone) == before and list(backbone.state_dict()) == keys
    names = {name for name, _ in prepared(backbone.model)}
    ends = {name.rpartition(".")[2] for name in names}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    assert all(name.startswith("model.layers.0.") for name in names)
    switch(backbone, True)
    assert weights_identity(backbone) == before


def test_a_plan_without_weights_counts_as_well():
    backbone = meta_backbone(SMALL, 20)
    prepare(backbone, Bits(4, 8, 8), ())
    assert len(list(prepared(backbone))) == 14


@pytest.mark.parametrize(
    ("bits", "exclude", "says"),
    [
        (Bits(), ("down_prj",), r"exclude=down_prj: no linear layer.*Choices: down_proj"),
        (Bits(), ("layers",), "cannot be counted in integers: it has no linear layer but layers"),
        (Bits(4, 8, 5), (), "group=5 does not divide the 16 inputs of model.layers.0"),
    ],
)
def test_what_would_do_nothing_is_refused(bits, exclude, says):
    with pytest.raises(UserError, match=says):
        prepare(small(), bits, exclude)


def test_models_that_multiply_elsewhere_are_refused():
    with pytest.raises(UserError, match="workspace model"):
        prepare(load_backbone(BackboneConfig(workspace=WorkspaceSizes()), 20), Bits())
    with torch.device("meta"):
        gpt = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2))
        experts = MixtralForCausalLM(
            MixtralConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
        )  # fmt: skip
    for model, name in ((gpt, "c_attn.weight"), (experts, "mlp.gate.weight")):
        with pytest.raises(UserError, match=rf"cannot be counted in integers: .*{name}.* is no linear layer"):
            prepare_model(model, Bits())


def test_adapters_are_refused(tmp_path):
    small().model.save_pretrained(tmp_path)
    adapted = load_backbone(BackboneConfig(path=str(tmp_path), tune="lora"), 20)
    with pytest.raises(UserError, match="merge them with quiet export RUN FOLDER"):
        prepare(adapted, Bits())


def test_other_layouts_are_refused_by_name():
    class Shape(nn.Module):
        quantization_config = describe(Bits(4, None, 32), ["lm_head"])

    assert described(Shape, "here") == (Bits(4, None, 32), ["lm_head"])
    for change in ({"quant_method": "gptq"}, {"kv_cache_scheme": {"num_bits": 8}}, {"ignore": ["re:.*"]}):
        Shape.quantization_config = describe(Bits(), []) | change
        with pytest.raises(UserError, match=r"here: weights quantised as .* are not read here"):
            described(Shape, "here")
