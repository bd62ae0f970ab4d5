"""States read by hooks are those of transformers and of a token-by-token run, wherever padding stands."""

import pytest
import torch
from small_models import BLOCKS, SHAPE, VOCAB
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config, SmolLM3Config

from quietreasoning.backbone import Backbone, BackboneConfig, load_backbone, role_of
from quietreasoning.backbone.states import read_states, rewriting, watch
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role

FAMILIES = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=4),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
    "smollm3": SmolLM3Config(**SHAPE, num_key_value_heads=1, no_rope_layer_interval=2),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=BLOCKS, n_head=4, n_positions=64),
}
ALL = (0, 1, 2, 3, 4, "pre_norm", "last")


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[request.param])
    for name, p in model.named_parameters():
        if "norm" in name or "ln_" in name:  # so that states before and after a norm differ in direction
            torch.nn.init.uniform_(p, 0.5, 2.0)
    return Backbone(model, BackboneConfig(), {}).eval()


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return Backbone(AutoModelForCausalLM.from_config(FAMILIES["llama"]), BackboneConfig(), {}).eval()


def random_ids(rows=3, length=10, seed=0):
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def read(backbone, ids_BT, layers=ALL):
    return read_states(backbone, ids_BT, role_of(ids_BT, Role.PROMPT), layers)


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_they_are_transformers_own_and_the_head_reads_the_last(backbone):
    ids_BT = random_ids()
    found = read(backbone, ids_BT)
    with torch.no_grad():
        theirs = backbone.model(ids_BT, output_hidden_states=True)
    for depth in range(BLOCKS):
        close(found[depth], theirs.hidden_states[depth])
    close(found["last"], theirs.hidden_states[-1])
    close(backbone.logits(found["last"]), theirs.logits)
    assert torch.equal(found["pre_norm"], found[BLOCKS])
    norm = getattr(backbone.model.base_model, "norm", None) or backbone.model.base_model.ln_f
    close(norm(found["pre_norm"]), found["last"])
    assert (found["pre_norm"] - found["last"]).norm() > 0.1 * found["last"].norm()


@torch.no_grad()
def test_teacher_forced_equals_token_by_token_with_a_cache(backbone):
    ids_BT = random_ids()
    whole, past, columns = read(backbone, ids_BT), None, []
    with watch(backbone.model, ALL) as seen:
        for t in range(ids_BT.shape[1]):
            column_B1 = ids_BT[:, t : t + 1]
            past = backbone(column_B1, role_of(column_B1, Role.PROMPT), past, keep=True).past
            columns.append(dict(seen))
    for layer in ALL:
        assert columns[0][layer].shape == (3, 1, 32)
        close(torch.cat([column[layer] for column in columns], 1), whole[layer])


@pytest.mark.parametrize("left", [True, False])
def test_a_row_reads_the_same_alone_and_among_longer_ones(backbone, left):
    ids_BT, lengths = random_ids(), (10, 6, 1)
    rows = [ids_BT[row, :length] for row, length in enumerate(lengths)]
    padded_BT = torch.stack(
        [pad(ids, (10 - len(ids), 0) if left else (0, 10 - len(ids)), value=IGNORE) for ids in rows]
    )
    together = read(backbone, padded_BT)
    for row, ids in enumerate(rows):
        alone = read(backbone, ids[None])
        place = slice(10 - len(ids), None) if left else slice(len(ids))
        for layer in ALL:
            close(together[layer][row, place], alone[layer][0])


def test_no_state_sees_a_later_token(llama):
    ids_BT = random_ids()
    changed_BT = ids_BT.clone()
    changed_BT[:, 6] = (changed_BT[:, 6] + 1) % VOCAB
    one, two = read(llama, ids_BT), read(llama, changed_BT)
    for layer in ALL:
        assert torch.equal(one[layer][:, :6], two[layer][:, :6])
        assert not torch.equal(one[layer][:, 6:], two[layer][:, 6:])


def test_only_what_is_wanted_is_kept_and_nothing_above_it_runs(llama):
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, depth=depth: ran.append(depth))
        for depth, block in enumerate(
            [*llama.model.model.layers, llama.model.model.norm, llama.model.lm_head], 1
        )
    ]
    ids_BT = random_ids()
    found = read(llama, ids_BT, (2, 1))
    assert list(found) == [2, 1] and ran == [1, 2]
    read(llama, ids_BT, (0,))
    assert ran == [1, 2], "the embeddings need no block"
    read(llama, ids_BT, ("last",))
    assert ran == [1, 2, 1, 2, 3, 4, 5], "the head is never run"
    for hook in hooks:
        hook.remove()


def test_hooks_are_gone_after_reading_and_after_a_fault(llama):
    ids_BT = random_ids()
    read(llama, ids_BT, (1,))
    with pytest.raises(RuntimeError), watch(llama.model, ALL):
        raise RuntimeError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.model.layers)
    assert not llama.model.base_model._forward_hooks
    close(read(llama, ids_BT, ("last",))["last"], llama(ids_BT, role_of(ids_BT, Role.PROMPT)).hidden_BTD)


def test_watching_keeps_gradients_and_reading_has_none(llama):
    ids_BT = random_ids()
    embeds_BTD = llama.embed(ids_BT).detach().requires_grad_()
    with watch(llama.model, (2,)) as seen:
        llama(embeds_BTD, role_of(ids_BT, Role.PROMPT))
    seen[2].sum().backward()
    assert embeds_BTD.grad.abs().sum() > 0
    assert not read(llama, ids_BT, (2,))[2].requires_grad


@pytest.mark.parametrize("layer", [5, -1, "first", True, 1.0])
def test_a_layer_that_is_not_there_is_refused_with_the_choices(llama, layer):
    with pytest.raises(UserError, match=r"4 blocks. Choices: 0 to 4 .*pre_norm, last"):
        read(llama, random_ids(), (layer,))


def test_a_workspace_model_is_refused_because_its_blocks_run_chunk_by_chunk():
    workspace = load_backbone(BackboneConfig(workspace={"preset": "tiny"}), VOCAB)
    with pytest.raises(UserError, match="Choose a decoder such as Llama"):
        read(workspace, random_ids(), (1,))


@pytest.mark.parametrize("layer", ALL)
@torch.no_grad()
def test_a_rewritten_state_is_what_the_rest_of_the_model_reads(backbone, layer):
    """Put back as it was it changes nothing; taken from other ids it gives their final states."""
    ids_BT, other_BT = random_ids(), random_ids(seed=1)
    role_BT = role_of(ids_BT, Role.PROMPT)
    other = read(backbone, other_BT)
    with rewriting(backbone.model, layer, lambda state: state.clone()):
        close(backbone(ids_BT, role_BT).hidden_BTD, read(backbone, ids_BT)["last"])
    with rewriting(backbone.model, layer, lambda state: other[layer]):
        close(backbone(ids_BT, role_BT).hidden_BTD, other["last"])
    close(backbone(ids_BT, role_BT).hidden_BTD, read(backbone, ids_BT)["last"])
