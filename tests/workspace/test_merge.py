"""A merged model has no adapters left and says what the adapters said at those weights."""

import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM
from quietreasoning.workspace.merge import merge_adapters

SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4},
    **{
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "read_block": 1,
        "ssm_blocks": (1,),
        "pkm_blocks": (2,),
    },
    **{"ssm_inner": 32, "ssm_state": 4, "ssm_head_dim": 16, "slot_width": 32, "chunk_size": 8, "slots": 4},
    **{"adapters": 3, "adapters_active": 3, "adapter_rank": 2, "attention_bias": True, "qk_norm": True},
}


def made(seed=0, **changes):
    """Banks that have learned, beside a trunk."""
    torch.manual_seed(seed)
    model = WorkspaceForCausalLM(WorkspaceConfig.preset("tiny", **(SIZES | changes))).eval()
    with torch.no_grad():
        for block in model.model.blocks:
            if block.qkv.bias is not None:
                block.qkv.bias.normal_()
            for p in block.adapters.parameters():
                p.add_(0.3 * torch.randn_like(p))
        for reader in model.model.readers.values():
            reader.gate.fill_(0.5)
    return model


def fix_choice(model, weights):
    """Make the router choose these weights, which sum to one, for every chunk."""
    head = model.model.router.heads["adapters"]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(weights).log())


@pytest.mark.parametrize("weights", [None, [0.7, 0.1, 0.2], [1.0, 0.0, 0.0]])
@pytest.mark.parametrize(
    "changes", [{}, {"ia3": False, "attention_bias": False}, {"tie_word_embeddings": True}]
)
def test_logits_are_those_of_the_fixed_choice(weights, changes):
    model, ids = made(**changes), torch.randint(64, (2, 30), generator=torch.Generator().manual_seed(1))
    merged = merge_adapters(model, weights)
    free = model(ids).logits
    fix_choice(model, weights or [1 / 3] * 3)
    wanted = model(ids).logits
    assert (free - wanted).abs().max() > 0.01 and wanted.std() > 0.05
    torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-4, atol=1e-5)
    assert model.config.has("adapters") and model.model.blocks[0].adapters is not None


def test_nothing_of_the_banks_is_left(tmp_path):
    merged = merge_adapters(made())
    assert not [name for name, _ in merged.named_parameters() if "adapter" in name]
    assert not merged.config.has("adapters") and merged.config.has("workspace")
    ids = torch.arange(20)[None]
    assert merged(ids, trace=True).trace.plans[-1].choice is None
    merged.save_pretrained(tmp_path)
    again = WorkspaceForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids).logits, merged(ids).logits)
    with pytest.raises(UserError, match="bank of 1 or more"):
        merged.model.set_features(("workspace", "adapters"))


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(UserError, match="nothing to merge"):
        merge_adapters(made(features=("workspace",)))
    with pytest.raises(UserError, match="token by token"):
        merge_adapters(made(adapter_fusion=True))
    for weights in ([0.5, 0.5], [1.0, float("nan"), 0.0]):
        with pytest.raises(UserError, match="one finite number for each of the 3 adapters"):
            merge_adapters(made(), weights)
