"""New tokens in a model folder: where their rows start, that they alone learn, and that off is off."""

import copy

import pytest
import torch
from small_models import SHAPE, VOCAB
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig

from quietreasoning.backbone import (
    BackboneConfig,
    LoraConfig,
    adapters_off,
    load_backbone,
    meta_backbone,
    role_of,
)
from quietreasoning.backbone.new_rows import fold_new_rows
from quietreasoning.config import UserError
from quietreasoning.contract import Role

STARTS = {VOCAB: (5, 9), VOCAB + 1: (7,), VOCAB + 2: ()}
IDS_BT = torch.tensor([[3, VOCAB, 7, VOCAB + 1, 9], [VOCAB + 2, 8, VOCAB, 4, 6]])


@pytest.fixture(scope="module", params=["tied", "untied", "scaled"])
def folder(request, tmp_path_factory):
    """scaled: a family that multiplies in the look-up."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / request.param
    config = GemmaConfig if request.param == "scaled" else LlamaConfig
    small = SHAPE | {"tie_word_embeddings": request.param != "untied", "num_hidden_layers": 2}
    small |= {"head_dim": 8, "num_key_value_heads": 4}
    AutoModelForCausalLM.from_config(config(**small)).save_pretrained(path)
    return path


def load(folder, starts=STARTS, tune="lora", tokens=VOCAB + 3):
    settings = {"lora": LoraConfig(rank=2)} if tune == "lora" else {}
    return load_backbone(BackboneConfig(path=str(folder), tune=tune, **settings), tokens, starts=starts)


def logits(backbone):
    return backbone.logits(backbone(IDS_BT, role_of(IDS_BT, Role.PROMPT)).hidden_BTD)


def trained(folder):
    """A backbone after a step that moves everything it may."""
    torch.manual_seed(1)
    backbone = load(folder)
    for p in backbone.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    return backbone


@pytest.mark.parametrize("tune", ["full", "lora", "frozen"])
def test_new_rows_start_at_the_mean_of_their_pieces_and_old_ones_stay(folder, tune):
    plain, grown = load(folder, {}, "full", VOCAB), load(folder, tune=tune)
    for old, new in (
        (plain.model.get_input_embeddings(), grown.model.get_input_embeddings()),
        (plain.model.get_output_embeddings(), grown.model.get_output_embeddings()),
    ):
        assert torch.equal(new.weight[:VOCAB], old.weight)
        torch.testing.assert_close(new.weight[VOCAB], (old.weight[5] + old.weight[9]) / 2)
        assert torch.equal(new.weight[VOCAB + 1], old.weight[7])
        torch.testing.assert_close(new.weight[VOCAB + 2], old.weight.mean(0))
    assert grown.vocab_size == VOCAB + 3 == grown.model.config.vocab_size
    learns = {name for name, p in grown.named_parameters() if p.requires_grad}
    if tune == "lora":
        rows = {name for name in learns if "lora_" not in name}
        assert rows == {name for name in grown.state_dict() if name.endswith("new_rows")} - aliases(grown)
        held = {name for name in grown.state_dict() if name not in grown.borrowed}
        assert all("lora_" in name or name.endswith("new_rows") for name in held)
    else:
        assert bool(learns) == (tune == "full")


def aliases(backbone):
    return {name for name, _ in backbone.named_parameters(remove_duplicate=False)} - {
        name for name, _ in backbone.named_parameters()
    }


def test_an_embedding_padded_past_its_tokenizer_never_shrinks(folder):
    inside = {VOCAB - 1: (3,)}
    backbone = load(folder, inside, tokens=VOCAB - 4)
    assert backbone.vocab_size == VOCAB
    table = backbone.model.get_input_embeddings().weight
    assert torch.equal(table[VOCAB - 1], table[3])


def test_tokens_that_nobody_announced_are_refused(folder):
    with pytest.raises(UserError, match=rf"has {VOCAB + 4} tokens, the embedding only {VOCAB}"):
        load(folder, tokens=VOCAB + 4)


def test_deltas_are_what_rows_written_into_the_matrices_would_be(folder):
    """Look-up, head and blend against the same model with its rows moved for good."""
    backbone = trained(folder)
    table, head = backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()
    moved = copy.deepcopy(backbone)
    fold_new_rows(moved.model)
    assert not moved.model.get_output_embeddings().new_rows.any() and table.new_rows.all()
    torch.testing.assert_close(backbone.embed(IDS_BT), moved.embed(IDS_BT))
    torch.testing.assert_close(logits(backbone), logits(moved), atol=1e-3, rtol=1e-3)
    one_hot = torch.nn.functional.one_hot(IDS_BT, VOCAB + 3).float()
    torch.testing.assert_close(backbone.blend(one_hot), backbone.embed(IDS_BT))
    assert (table.new_rows is head.new_rows) == (table.weight is head.weight)


def test_only_the_new_rows_get_a_gradient(folder):
    backbone = trained(folder)
    logits(backbone).square().sum().backward()
    for matrix in (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()):
        assert matrix.weight.grad is None and (matrix.new_rows.grad.abs().sum(1) > 0).all()


def test_off_is_the_model_as_it_was_loaded_and_on_again_is_not(folder):
    loaded, backbone = logits(load(folder, tune="frozen")), trained(folder)
    learns = {name for name, p in backbone.named_parameters() if p.requires_grad}
    on = logits(backbone)
    with adapters_off(backbone.model):
        assert torch.equal(logits(backbone), loaded)
        assert learns == {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert torch.equal(logits(backbone), on) and not torch.equal(on, loaded)


def test_a_plan_counts_the_same_weights(folder):
    config = BackboneConfig(path=str(folder), tune="lora", lora=LoraConfig(rank=2))
    planned = meta_backbone(config, VOCAB + 3, starts=STARTS)
    real = load(folder)
    assert {n: p.shape for n, p in planned.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }
