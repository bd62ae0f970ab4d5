"""One packed pass is as many forwards as there are thoughts, and so are branches on one cache."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from small_models import SHAPE, VOCAB
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config, SmolLM3Config

from quietreasoning.backbone import Backbone, BackboneConfig, role_of
from quietreasoning.backbone.tree import Branches, check_trees, read_tree, sample_thoughts
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.losses.policy import token_log_probs
from quietreasoning.losses.thoughts import ThoughtLaw
from quietreasoning.nn.thought_tree import Thoughts, grow_tree, keyed_uniforms, thought_cap
from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM

SMALL = {**SHAPE, "num_hidden_layers": 2}
FAMILIES = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None),
    "smollm3": SmolLM3Config(**SMALL, num_key_value_heads=1, no_rope_layer_interval=2),
}
SLIDING = MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=5)
START, END, TALK, STEPS = 3, 4, 3, 4
BLOCKED = [0, 1, 2, *range(24, VOCAB)]  # few are left, so that the end marker comes up
LAW = ThoughtLaw(START, END, tuple(BLOCKED), floor=2)
TEXTS = ((0, 9), (2, 7), (1, 4))  # padding on the left, tokens; 10 columns
ANCHORS = torch.tensor([[0, 4, 8], [3, 7, -1], [4, -1, -1]])  # the last real token of a row among them


def in_double(model):
    """fp64 throughout: these families' norms compute in fp32 whatever their weights are."""

    def norm(self, x):
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = norm.__get__(module)
    return model.eval()


@cache
def backbone_of(name):
    torch.manual_seed(len(name))
    return Backbone(in_double(AutoModelForCausalLM.from_config(FAMILIES[name])), BackboneConfig(), {})


def texts():
    source = torch.Generator().manual_seed(0)
    ids_BT = torch.full((3, 10), IGNORE)
    for row, (left, length) in enumerate(TEXTS):
        ids_BT[row, left : left + length] = torch.randint(5, VOCAB, (length,), generator=source)
    return ids_BT


def given_thoughts(group=2):
    """Thoughts of 0 to 4 tokens, ended by choice and by the cap."""
    source = torch.Generator().manual_seed(1)
    shape = (*ANCHORS.shape, group)
    length_BKG = torch.randint(0, STEPS + 1, shape, generator=source) * (ANCHORS >= 0)[..., None]
    length_BKG[0, 0] = torch.tensor([STEPS, 0])
    ids_BKGL = torch.randint(5, VOCAB, (*shape, STEPS), generator=source)
    ids_BKGL[torch.arange(STEPS) >= length_BKG[..., None]] = IGNORE
    return Thoughts(ids_BKGL, length_BKG, length_BKG < 2)


def grown(ids_BT, thoughts, anchor_BK=ANCHORS):
    return grow_tree(
        ids_BT, role_of(ids_BT, Role.PROMPT), anchor_BK, thoughts, talk=TALK, start=START, end=END
    )


def naive(backbone, ids_BT, thoughts, markers_2D=None):
    """(row, anchor, thought) -> the stock model's states behind the text, thought and true tokens, alone."""
    table, found = backbone.model.get_input_embeddings(), {}
    for row, anchors in enumerate(ANCHORS.tolist()):
        text = ids_BT[row][ids_BT[row] != IGNORE]
        for k, column in enumerate(anchors):
            if column < 0:
                continue
            until = column - TEXTS[row][0] + 1
            for g in range(thoughts.ids_BKGL.shape[2]):
                thought = thoughts.ids_BKGL[row, k, g, : thoughts.length_BKG[row, k, g]]
                after = text[until : until + TALK]
                ids = torch.cat(
                    [
                        text[:until],
                        torch.tensor([START]),
                        thought,
                        torch.tensor([END]),
                        after[: len(after) - 1],
                    ]
                )
                embeds = table(ids)
                if markers_2D is not None:
                    embeds = embeds.index_copy(
                        0, torch.tensor([until, until + 1 + len(thought)]), markers_2D.to(embeds)
                    )
                hidden = backbone.model.base_model(inputs_embeds=embeds[None]).last_hidden_state[0]
                found[row, k, g] = hidden[until:], len(thought), after
    return found


def packed_segment(tree, hidden_BSD, key, length, after):
    policy, talks = tree.policy(hidden_BSD)[key], tree.talks(hidden_BSD)[key]
    first = torch.cat([policy, tree.thoughts(hidden_BSD)[key][-1:]])  # start and thought columns
    return torch.cat([first[: 1 + length], talks[: max(len(after), 1)]])


@pytest.mark.parametrize(("name", "markers"), [("llama", False), *((name, True) for name in FAMILIES)])
def test_packed_is_each_thought_alone_in_value_and_gradient(name, markers):
    backbone, ids_BT, thoughts = backbone_of(name), texts(), given_thoughts()
    source = torch.Generator().manual_seed(2)
    markers_2D = torch.randn(2, 32, generator=source, dtype=torch.float64).requires_grad_(markers)
    tree, params = grown(ids_BT, thoughts), list(backbone.model.base_model.parameters())
    params, markers_2D = ([*params, markers_2D], markers_2D) if markers else (params, None)
    hidden_BSD = read_tree(backbone, tree, markers_2D).hidden_BTD
    packed, alone = 0.0, 0.0
    for key, (expected, length, after) in naive(backbone, ids_BT, thoughts, markers_2D).items():
        got = packed_segment(tree, hidden_BSD, key, length, after)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        assert tree.labels_BKM[key[:2]].tolist() == after.tolist() + [IGNORE] * (TALK - len(after))
        slope = torch.randn(expected.shape, generator=source, dtype=torch.float64)
        packed, alone = packed + (got * slope).sum(), alone + (expected * slope).sum()
    grads = [torch.autograd.grad(loss, params) for loss in (packed, alone)]
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_text_reads_the_same_with_thoughts_beside_it(name):
    backbone, ids_BT = backbone_of(name), texts()
    tree = grown(ids_BT, given_thoughts())
    plain_BTD = backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD
    real_BT = ids_BT != IGNORE
    hidden_BSD = read_tree(backbone, tree).hidden_BTD
    torch.testing.assert_close(hidden_BSD[:, :10][real_BT], plain_BTD[real_BT], rtol=0, atol=1e-10)
    bases_BKMD, rows = tree.bases(hidden_BSD), torch.arange(3)
    torch.testing.assert_close(bases_BKMD[:, 0, 0], hidden_BSD[rows, ANCHORS[:, 0]])
    torch.testing.assert_close(bases_BKMD[:2, 0, 2], hidden_BSD[rows[:2], ANCHORS[:2, 0] + 2])


@torch.no_grad()
def drawn(
    backbone, ids_BT, anchor_BK=ANCHORS, group=3, keys=(11, 22, 33), greedy=False, markers_2D=None, room=0
):
    past = backbone(ids_BT, role_of(ids_BT, Role.PROMPT), keep=True).past
    before = [layer.keys.clone() for layer in past.cache.layers]
    branches = Branches(backbone, past, anchor_BK, group, LAW, markers_2D, room)
    at_BK = (ids_BT != IGNORE).cumsum(1).gather(1, anchor_BK.clamp(min=0)) - 1
    key_B111 = torch.tensor(keys)[:, None, None, None]
    steps_L = torch.arange(STEPS)
    uniforms = keyed_uniforms(key_B111, at_BK[..., None, None], torch.arange(group)[:, None], steps_L)
    caps_BK = thought_cap(at_BK + 1, floor=2, cap=STEPS, divisor=2)
    thoughts = sample_thoughts(branches, caps_BK, None if greedy else uniforms)
    for layer, keys_were in zip(past.cache.layers, before, strict=True):
        assert layer.keys.shape == keys_were.shape and torch.equal(layer.keys, keys_were)
    return thoughts, branches, caps_BK


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_room_made_beforehand_changes_nothing_and_no_shape(name):
    backbone, ids_BT = backbone_of(name), texts()
    room = STEPS + 4  # start, a thought, its last token, end, one token that is emitted
    (grown_, one, _), (fixed, other, _) = (drawn(backbone, ids_BT, room=r) for r in (0, room))
    assert torch.equal(grown_.ids_BKGL, fixed.ids_BKGL)
    torch.testing.assert_close(grown_.logp_BKGL, fixed.logp_BKGL, rtol=0, atol=1e-12)
    layer = other.past.cache.layers[0]
    kept = layer.keys.shape, layer.keys.data_ptr(), other.seen_BNS.shape
    exists_BKG = (ANCHORS >= 0)[..., None].expand_as(grown_.ended_BKG)
    closed = [branches.close(grown_)[exists_BKG] for branches in (one, other)]
    torch.testing.assert_close(*closed, rtol=0, atol=1e-12)
    emitted_BN = torch.full_like(one.next_BN, 7)
    said = [branches.step(emitted_BN)[exists_BKG.flatten(1)] for branches in (one, other)]
    torch.testing.assert_close(*said, rtol=0, atol=1e-12)
    assert kept == (layer.keys.shape, layer.keys.data_ptr(), other.seen_BNS.shape)
    with pytest.raises(ValueError, match=f"room={room}"):
        for _ in range(room):
            other.step(emitted_BN)


def test_drawn_thoughts_keep_the_law():
    ids_BT, ended, lengths = texts(), 0, set()
    for seed in range(4):
        keys = (seed, 100 + seed, 200 + seed)
        thoughts, _, caps_BK = drawn(backbone_of("llama"), ids_BT, keys=keys)
        real = thoughts.ids_BKGL != IGNORE
        exists = (ANCHORS >= 0)[..., None]
        assert torch.equal(real.sum(-1), thoughts.length_BKG)
        assert not torch.isin(thoughts.ids_BKGL, torch.tensor([*BLOCKED, START, END])).any()
        assert ((thoughts.length_BKG >= 2) == exists).all(), "none below the floor, none without an anchor"
        capped = thoughts.length_BKG == caps_BK[..., None]
        assert ((thoughts.ended_BKG ^ capped) == exists).all(), "ended by choice or by the cap"
        ended += int(thoughts.ended_BKG.sum())
        lengths |= set(thoughts.length_BKG[exists.expand_as(capped)].tolist())
    assert ended and len(lengths) > 1


def test_log_probabilities_are_those_of_the_gradient_pass():
    """Drawn token by token on the cache, scored in the packed pass: the same law, end markers included."""
    for name in FAMILIES:
        backbone, ids_BT = backbone_of(name), texts()
        marks = torch.randn(2, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        thoughts, branches, _ = drawn(backbone, ids_BT, keys=(3, 103, 203), markers_2D=marks)
        tree = grown(ids_BT, thoughts)
        hidden_BSD = read_tree(backbone, tree, marks).hidden_BTD.detach()
        chosen = tree.choice_BKGL != IGNORE
        assert ((tree.choice_BKGL == END).sum(-1) == thoughts.ended_BKG).all()
        step_N = torch.arange(tree.choice_BKGL.shape[-1]).expand_as(chosen)[chosen]
        logits_NV = backbone.logits(tree.policy(hidden_BSD)[chosen]).detach()
        logp_N = token_log_probs(LAW.logits(logits_NV, step_N), tree.choice_BKGL[chosen])
        torch.testing.assert_close(logp_N, thoughts.logp_BKGL[chosen], rtol=0, atol=1e-10)
        assert not thoughts.logp_BKGL[~chosen].any()
        expected_NV = logits_NV.clone()
        expected_NV[:, [*BLOCKED, START]] = -torch.inf
        expected_NV[step_N < LAW.floor, END] = -torch.inf
        rows = torch.arange(len(step_N))
        torch.testing.assert_close(logp_N, expected_NV.log_softmax(-1)[rows, tree.choice_BKGL[chosen]])
        with torch.no_grad():  # inference goes on from the same cache
            talks = [branches.close(thoughts)]
            for i in range(TALK - 1):
                token_BN = tree.labels_BKM[..., i].repeat_interleave(3, 1)
                talks.append(branches.step(token_BN, token_BN != IGNORE).view(talks[0].shape))
        there = (tree.labels_BKM != IGNORE)[:, :, None].expand(-1, -1, 3, -1)
        torch.testing.assert_close(
            torch.stack(talks, 3)[there], tree.talks(hidden_BSD)[there], rtol=0, atol=1e-10
        )


def test_neighbours_padding_and_order_change_no_draw():
    backbone, ids_BT = backbone_of("qwen3"), texts()
    together, _, _ = drawn(backbone, ids_BT)
    assert len({tuple(t) for t in together.ids_BKGL.flatten(0, 2).tolist()}) > 12, "thoughts differ"
    for row, key in enumerate((11, 22, 33)):
        shifted_BT = pad(ids_BT[row : row + 1], (2, 1), value=IGNORE)
        anchor_BK = torch.where(ANCHORS >= 0, ANCHORS + 2, -1)[row : row + 1]
        alone, _, _ = drawn(backbone, shifted_BT, anchor_BK, keys=(key,))
        steps = alone.ids_BKGL.shape[-1]
        assert torch.equal(alone.ids_BKGL, together.ids_BKGL[row : row + 1, ..., :steps])
        assert (together.ids_BKGL[row, ..., steps:] == IGNORE).all()
    one, _, _ = drawn(backbone, ids_BT, ANCHORS[:, 1:2], group=1)
    assert torch.equal(one.ids_BKGL[0, 0, 0], together.ids_BKGL[0, 1, 0, : one.ids_BKGL.shape[-1]])


def test_nothing_behind_an_anchor_is_seen():
    """Other tokens behind the anchor: the same thought, cap, mask, start, thought and end states."""
    backbone, ids_BT = backbone_of("smollm3"), texts()
    other_BT = ids_BT.clone()
    other_BT[0, 5:9] = ids_BT[0, 5:9] % 50 + 6
    anchor_BK = torch.tensor([[1, 4], [3, -1], [4, -1]])
    (a, _, caps), (b, _, caps_too) = (drawn(backbone, ids, anchor_BK) for ids in (ids_BT, other_BT))
    for field in ("ids_BKGL", "length_BKG", "ended_BKG", "logp_BKGL"):
        assert torch.equal(getattr(a, field), getattr(b, field))
    assert torch.equal(caps, caps_too)
    tree, other = (grown(ids, a, anchor_BK) for ids in (ids_BT, other_BT))
    assert torch.equal(tree.seen_BSS, other.seen_BSS) and torch.equal(tree.position_BS, other.position_BS)
    with torch.no_grad():
        was, now = read_tree(backbone, tree).hidden_BTD, read_tree(backbone, other).hidden_BTD
    assert torch.equal(was[:, :5], now[:, :5])
    for part in (tree.policy, tree.thoughts):
        assert torch.equal(part(was), part(now))
    assert torch.equal(tree.talks(was)[:, :, :, 0], tree.talks(now)[:, :, :, 0])
    assert torch.equal(tree.talks(was)[0, 0], tree.talks(now)[0, 0]), "of anchor 1: true tokens 2 and 3"
    assert not torch.equal(tree.talks(was)[0, 1, :, 1], tree.talks(now)[0, 1, :, 1])


@torch.no_grad()
def test_nobody_has_to_think():
    backbone, ids_BT, none_BK = backbone_of("llama"), texts(), torch.full((3, 1), -1)
    thoughts, branches, _ = drawn(backbone, ids_BT, none_BK)
    assert thoughts.ids_BKGL.shape == (3, 1, 3, 0) and not thoughts.length_BKG.any()
    assert branches.close(thoughts).isfinite().all()
    tree = grown(ids_BT, thoughts, none_BK)
    hidden_BSD, real_BT = read_tree(backbone, tree).hidden_BTD, ids_BT != IGNORE
    plain_BTD = backbone(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD
    torch.testing.assert_close(hidden_BSD[:, :10][real_BT], plain_BTD[real_BT], rtol=0, atol=1e-10)
    assert hidden_BSD.isfinite().all() and (tree.labels_BKM == IGNORE).all()


def test_greedy_is_the_true_argmax():
    backbone, ids_BT = backbone_of("mistral"), texts()
    thoughts, _, caps_BK = drawn(backbone, ids_BT, group=1, greedy=True)
    ids, written = torch.cat([ids_BT[0, :5], torch.tensor([START])]), []
    for step in range(int(caps_BK[0, 1])):
        with torch.no_grad():
            logits_V = backbone.model(ids[None]).logits[0, -1].clone()
        logits_V[[*BLOCKED, START, *([END] if step < LAW.floor else [])]] = -torch.inf
        token = int(logits_V.argmax())
        if token == END:
            break
        written.append(token)
        ids = torch.cat([ids, torch.tensor([token])])
    assert thoughts.ids_BKGL[0, 1, 0, : thoughts.length_BKG[0, 1, 0]].tolist() == written


def test_families_that_break_it_are_refused():
    torch.manual_seed(0)
    ids_BT = texts()
    sliding = Backbone(AutoModelForCausalLM.from_config(SLIDING), BackboneConfig(), {"path": "gem"}).eval()
    past = sliding(ids_BT, role_of(ids_BT, Role.PROMPT), keep=True).past
    for use in (
        lambda: check_trees(sliding),
        lambda: read_tree(sliding, grown(ids_BT, given_thoughts())),
        lambda: Branches(sliding, past, ANCHORS, 2, LAW),
    ):
        with pytest.raises(UserError, match=r"backbone\.path=gem.*sliding windows.*sliding_window is null"):
            use()
    shape = WorkspaceConfig.preset("tiny", vocab_size=VOCAB)
    workspace = Backbone(WorkspaceForCausalLM(shape), BackboneConfig(), {"workspace": "tiny"})
    with pytest.raises(UserError, match=r"backbone\.workspace=tiny.*a workspace model has none"):
        check_trees(workspace)


class Forgetful(torch.nn.Module):
    """A model whose attention knows only what padding is, as fused kernels without 4-D masks do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, attention_mask=None, **kwargs):
        return self.inner(attention_mask=None, **kwargs)


def test_the_probe_finds_what_the_configuration_does_not_say():
    check_trees(backbone_of("smollm3"))
    torch.manual_seed(0)
    coarse = AutoModelForCausalLM.from_config(FAMILIES["qwen3"], attn_implementation="eager").bfloat16()
    check_trees(Backbone(coarse, BackboneConfig(), {}))
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"])
    backbone = Backbone(model, BackboneConfig(), {"path": "odd"}).train()
    check_trees(backbone)
    assert backbone.training and model.training
    model.model = Forgetful(model.model)
    model.get_input_embeddings = lambda: model.model.inner.embed_tokens
    with pytest.raises(UserError, match=r"backbone\.path=odd.*backbone\.attention=sdpa or eager"):
        check_trees(backbone)


def test_bad_values_are_refused():
    ids_BT, thoughts = texts(), given_thoughts()
    with pytest.raises(ValueError, match="at padding"):
        grown(ids_BT, thoughts, torch.tensor([[9, 4, 8], [3, 7, -1], [4, -1, -1]]))
    with pytest.raises(ValueError, match="longer than its 4 columns"):
        grown(ids_BT, replace(thoughts, length_BKG=thoughts.length_BKG + 4))
    past = backbone_of("llama")(ids_BT, role_of(ids_BT, Role.PROMPT), keep=True).past
    branches = Branches(backbone_of("llama"), past, ANCHORS, 2, LAW)
    with pytest.raises(ValueError, match="caps up to 9 need as many uniform numbers, not 4"):
        sample_thoughts(branches, torch.full((3, 3), 9), torch.zeros(3, 3, 2, 4))
