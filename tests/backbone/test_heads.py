"""QK-clip on real attention: the largest logit comes to the limit exactly, and nothing else changes."""

from functools import cache

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from small_models import SHAPE, VOCAB
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quietreasoning.backbone import Backbone, BackboneConfig
from quietreasoning.backbone.adapters import adapters_off
from quietreasoning.backbone.heads import SCALE, START, adopt_scales, fold_scales, qk_clip
from quietreasoning.config import UserError
from quietreasoning.contract import Role
from quietreasoning.methods.grpo_reference import Reference
from quietreasoning.optim.qk_clip import BLOCK, largest_logits, shares

ONE = SHAPE | {"num_hidden_layers": 1}
FAMILIES = {
    "llama": LlamaConfig(**ONE, num_key_value_heads=2),
    "qwen2": Qwen2Config(**ONE, num_key_value_heads=2),
    "qwen3": Qwen3Config(**ONE, num_key_value_heads=2, head_dim=8),
    "phi3": Phi3Config(**ONE, num_key_value_heads=2),
}
FULL = BackboneConfig()
LORA = BackboneConfig(path="folder", tune="lora")


class Reads(nn.Module):
    def __init__(self, family, config=FULL, attention="sdpa", dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        shape = FAMILIES[family]
        model = AutoModelForCausalLM.from_config(shape, attn_implementation=attention).to(dtype)
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(p)
        if config.tune != "full":
            model.requires_grad_(False)
        if config.tune == "lora":
            inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "k_proj"]), model)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p)
        self.backbone = Backbone(model, config, {"path": config.path} if config.path else {})

    @property
    def attention(self):
        return self.backbone.model.model.layers[0].self_attn

    def forward(self):
        return self.backbone(*text()).hidden_BTD


@cache
def text():
    """Two rows, the second with padding on its left."""
    ids_BT = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    role_BT = torch.full((2, 9), int(Role.PROMPT))
    role_BT[1, :4] = Role.PAD
    return ids_BT, role_BT


def true_maxima(reads):
    """Largest logit of each head, from projections and rotary, by loops."""
    rotary = __import__(type(reads.attention).__module__, fromlist=["x"]).apply_rotary_pos_emb
    seen = {}

    def keep(module, args, kwargs):
        hidden, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
        query, key = (p(hidden).view(2, 9, -1, 8).mT.mT for p in (module.q_proj, module.k_proj))
        seen["q"], seen["k"] = rotary(query.transpose(1, 2), key.transpose(1, 2), cos, sin)

    handle = reads.attention.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        reads()
    handle.remove()
    role_BT = text()[1]
    found = torch.full((4,), -torch.inf, dtype=torch.float64)
    for row in range(2):
        for t in range(9):
            for s in range(t + 1):
                if role_BT[row, s] != Role.PAD and role_BT[row, t] != Role.PAD:
                    q_HD, k_HD = seen["q"][row, :, t], seen["k"][row, :, s].repeat_interleave(2, 0)
                    found = torch.maximum(found, (q_HD * k_HD).sum(-1) / 8**0.5)
    return found


def step(clip, reads):
    with clip.watching():
        reads()
    figures = clip.step()
    clip.forget()
    return figures


def weights(reads):
    return [p.detach().clone() for p in reads.parameters()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "config"), [("llama", FULL), ("qwen2", FULL), ("qwen2", LORA)])
def test_the_largest_logit_comes_to_the_limit_exactly(family, config, attention):
    reads = Reads(family, config, attention)
    before_H = true_maxima(reads)
    tau = before_H.sort().values[:2].mean().item()  # two heads of four lie above
    clip = qk_clip(reads, tau)
    clip.layers[0].limit_H = torch.full((4,), tau, dtype=torch.float64)  # as if it had begun below
    figures = step(clip, reads)
    assert figures["qk_clipped"] == 3 and figures["qk_max"] == pytest.approx(before_H.max().item(), abs=1e-9)
    near = 1e-12 if config is FULL else 1e-6  # the scales of adapters are fp32
    torch.testing.assert_close(true_maxima(reads), before_H.clamp(max=tau), rtol=near, atol=0)
    held = weights(reads)
    assert step(clip, reads)["qk_max"] <= tau * (1 + 1e-6)
    assert all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(held, weights(reads), strict=True))


def test_loading_alters_nothing_and_what_stays_below_keeps_every_bit():
    reads = Reads("llama")
    held, largest_H = weights(reads), true_maxima(reads)
    tau = largest_H.median().item()
    clip = qk_clip(reads, tau=tau)
    with pytest.warns(UserWarning, match=rf"tau={tau:g} is below what . attention heads"):
        first = step(clip, reads)
    assert first["qk_clipped"] == 0 and first["qk_limit"] == pytest.approx(largest_H.max().item())
    assert first == step(clip, reads)
    assert all(torch.equal(p, q) for p, q in zip(held, weights(reads), strict=True))
    with torch.no_grad():
        reads.attention.q_proj.weight.mul_(3.0)
    assert step(clip, reads)["qk_clipped"] > 0
    torch.testing.assert_close(true_maxima(reads), torch.maximum(largest_H, clip.layers[0].limit_H))


def test_products_are_exact_where_heads_share_a_key_and_where_a_side_does_not_train():
    gamma_H = torch.tensor([1.0, 0.25, 0.5, 0.9, 1.0, 1.0], dtype=torch.float64)
    query_H, key_G = shares(gamma_H, 3)
    torch.testing.assert_close(query_H * key_G.repeat_interleave(2), gamma_H)
    torch.testing.assert_close(key_G.square(), gamma_H[[1, 2, 4]])
    assert (query_H[4:] == 1).all() and key_G[2] == 1
    assert shares(gamma_H, 3, key_trains=False)[0] is gamma_H
    assert shares(gamma_H, 3, query_trains=False)[1].tolist() == [0.25, 0.5, 1.0]


def test_blocks_and_masks_of_every_kind_give_one_maximum():
    made = torch.Generator().manual_seed(0)
    query, key = (
        torch.randn(2, 3, BLOCK + 5, 4, generator=made),
        torch.randn(2, 3, BLOCK + 5, 4, generator=made),
    )
    logits = query @ key.mT * 0.5
    sees_TS = torch.ones(BLOCK + 5, BLOCK + 5).tril().bool()
    truth_H = logits.masked_fill(~sees_TS, -torch.inf).amax((0, 2, 3))
    added = torch.zeros(1, 1, BLOCK + 5, BLOCK + 5).masked_fill(~sees_TS, torch.finfo(torch.float32).min)
    for mask, causal in ((None, True), (sees_TS[None, None], True), (added, False)):
        torch.testing.assert_close(largest_logits(query, key, 0.5, mask, causal), truth_H)
    torch.testing.assert_close(largest_logits(query, key, 0.5, None, False), logits.amax((0, 2, 3)))


def test_a_reference_keeps_the_heads_it_was_taken_with():
    """A teacher that is a copy of the trained weights must not shrink with the student's heads."""
    reads = Reads("qwen2", LORA)
    clip = qk_clip(reads, tau=0.1)
    held = Reference(reads)
    held.hold(reads)
    with torch.no_grad():
        before = reads()
    clip.layers[0].limit_H = torch.full((4,), 0.1)
    step(clip, reads)
    with torch.no_grad():
        assert not torch.equal(reads(), before)
    assert torch.equal(held.call(reads, reads), before)


def test_adapters_shrink_with_their_base_and_the_base_alone_stays():
    reads = Reads("qwen2", LORA)
    frozen = {name: p.detach().clone() for name, p in reads.named_parameters() if not p.requires_grad}
    with adapters_off(reads.backbone.model), torch.no_grad():
        reference = reads()
    clip = qk_clip(reads, tau=0.1)
    clip.layers[0].limit_H = torch.full((4,), 0.1)
    step(clip, reads)
    with adapters_off(reads.backbone.model), torch.no_grad():
        assert torch.equal(reads(), reference)
    with adapters_off(reads.backbone.model):  # a teacher's pass says nothing of what trains
        with clip.watching():
            reads()
        assert clip.layers[0].seen_H is None
    assert all(torch.equal(p, frozen[name]) for name, p in reads.named_parameters() if name in frozen)
    saved = {
        k: v
        for k, v in reads.state_dict().items()
        if k.removeprefix("backbone.") not in reads.backbone.borrowed
    }
    assert {k.rpartition(".")[2] for k in saved if "lora_A" not in k and "lora_B" not in k} == {SCALE, START}
    fresh = Reads("qwen2", LORA)
    adopt_scales(fresh, saved)
    assert fresh.load_state_dict(saved, strict=False).unexpected_keys == []
    with torch.no_grad():
        assert torch.equal(fresh(), reads())
        clipped = reads()
        for module in (reads.attention.q_proj, reads.attention.k_proj):
            module.merge()
        torch.testing.assert_close(reads(), clipped)
        fold_scales(reads)
        torch.testing.assert_close(reads(), clipped)
    assert (getattr(reads.attention.q_proj, SCALE) == 1).all()


def test_only_forwards_that_learn_are_watched_and_nothing_stays_behind():
    reads = Reads("llama")
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    clip = qk_clip(reads, tau=1.0)
    with clip.watching(), torch.no_grad():
        reads()
    assert clip.layers[0].seen_H is None and ALL_ATTENTION_FUNCTIONS._local_mapping == before
    with pytest.raises(UserError, match=r"qk_clip.*no attention"):
        clip.step()
    with pytest.raises(RuntimeError), clip.watching():
        raise RuntimeError
    assert ALL_ATTENTION_FUNCTIONS._local_mapping == before


def test_models_that_cannot_be_clipped_say_so():
    with pytest.warns(UserWarning, match="normalises queries and keys"):
        assert qk_clip(Reads("qwen3"), 30.0) is None
    with pytest.raises(UserError, match="separate q_proj and k_proj"):
        qk_clip(Reads("phi3"), 30.0)
    with pytest.raises(UserError, match=r"tau=30: no query or key projection .* trains"):
        qk_clip(Reads("llama", BackboneConfig(path="folder", tune="frozen")), 30.0)
