"""Logits, states and caches equal transformers' own, on every shape of attention we promise."""

import pytest
import torch
from small_models import SHAPE, VOCAB
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config, SmolLM3Config

from quietreasoning.backbone import BackboneConfig, load_backbone, role_of
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role

FAMILIES = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=4),
    "llama-grouped-tied": LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
    "smollm3": SmolLM3Config(**SHAPE, num_key_value_heads=1, no_rope_layer_interval=2),
    "mistral-sliding": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=5),
}
GLOBAL = [name for name in FAMILIES if "sliding" not in name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders as save_pretrained writes them."""
    root = tmp_path_factory.mktemp("models")
    for seed, (name, config) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def pair(folders):
    """Name -> (our backbone, transformers' own model), both loaded from the folder."""
    loaded = {}

    def get(name):
        if name not in loaded:
            ours = load_backbone(BackboneConfig(path=str(folders / name)), VOCAB).eval()
            loaded[name] = ours, AutoModelForCausalLM.from_pretrained(folders / name).eval()
        return loaded[name]

    return get


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def random_ids(rows=3, length=12, seed=0):
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def read(backbone, ids_BT, past=None, role=Role.PROMPT, **options):
    return backbone(ids_BT, role_of(ids_BT, role), past, **options)


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def left_padded():
    """Rows of 12, 7 and 1 tokens, and each row alone."""
    ids_BT = random_ids()
    rows = [ids_BT[0], ids_BT[1, :7], ids_BT[2, :1]]
    padded_BT = torch.full_like(ids_BT, IGNORE)
    for row, ids in enumerate(rows):
        padded_BT[row, 12 - len(ids) :] = ids
    return padded_BT, rows


@pytest.mark.parametrize("name", FAMILIES)
def test_full_forward(name, pair):
    ours, theirs = pair(name)
    ids_BT = random_ids()
    states = read(ours, ids_BT, layers=True)
    expected = theirs(ids_BT, output_hidden_states=True)
    close(ours.logits(states.hidden_BTD), expected.logits)
    close(states.layers_LBTD, torch.stack(expected.hidden_states[1:]))
    assert states.past is None and ours.vocab_size == VOCAB and ours.context == 64
    assert (ours.num_layers, ours.width) == (4, 32)


@pytest.mark.parametrize("name", FAMILIES)
def test_token_by_token_with_a_cache(name, pair):
    ours, theirs = pair(name)
    ids_BT = random_ids()
    states = read(ours, ids_BT[:, :2], keep=True)
    columns = [states.hidden_BTD]
    for t in range(2, ids_BT.shape[1]):
        states = read(ours, ids_BT[:, t : t + 1], states.past)
        columns.append(states.hidden_BTD)
    close(ours.logits(torch.cat(columns, 1)), theirs(ids_BT).logits)
    assert states.past.length_B.tolist() == [12] * 3 and states.past.valid_BS.shape == (3, 12)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_text_equals_generate(name, pair):
    ours, theirs = pair(name)
    padded_BT, _ = left_padded()
    mask_BT = (padded_BT != IGNORE).long()
    expected = theirs.generate(
        padded_BT.clamp(min=0), attention_mask=mask_BT, max_new_tokens=8, min_new_tokens=8, do_sample=False
    )[:, 12:]
    states, written = read(ours, padded_BT, keep=True), []
    for _ in range(8):
        logits_BV = ours.logits(states.hidden_BTD[:, -1])
        logits_BV[:, SHAPE["eos_token_id"]] = -torch.inf  # min_new_tokens
        written.append(logits_BV.argmax(-1, keepdim=True))
        states = read(ours, written[-1], states.past)
    assert torch.equal(torch.cat(written, 1), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_reads_the_same_alone_and_padded(name, pair):
    ours, theirs = pair(name)
    padded_BT, rows = left_padded()
    together = read(ours, padded_BT, keep=True)
    more_BT = random_ids(length=4, seed=1)
    after = read(ours, more_BT, together.past)
    assert not torch.isnan(together.hidden_BTD).any()
    for row, ids in enumerate(rows):
        alone_1TV = theirs(torch.cat([ids, more_BT[row]])[None]).logits
        close(ours.logits(together.hidden_BTD[row, -len(ids) :]), alone_1TV[0, : len(ids)])
        close(ours.logits(after.hidden_BTD[row]), alone_1TV[0, len(ids) :])


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_in_the_middle_of_new_tokens_is_not_seen(name, pair):
    """A row that has ended feeds padding; the others, and what it reads later, must not notice."""
    ours, theirs = pair(name)
    ids_BT = random_ids(2, 6)
    states = read(ours, ids_BT, keep=True)
    gap_BT = torch.tensor([[5], [IGNORE]])
    states = read(ours, gap_BT, states.past)
    close(ours.logits(states.hidden_BTD[0]), theirs(torch.cat([ids_BT[:1], gap_BT[:1]], 1)).logits[0, -1:])
    assert states.past.length_B.tolist() == [7, 6]
    if name in GLOBAL:  # a sliding window counts columns, so a gap inside it costs a token of sight
        states = read(ours, torch.tensor([[7], [9]]), states.past)
        expected = theirs(torch.cat([ids_BT[1:], torch.tensor([[9]])], 1)).logits
        close(ours.logits(states.hidden_BTD[1]), expected[0, -1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_forks_of_a_cache_do_not_meet(name, pair):
    ours, _ = pair(name)
    prompt_BT = random_ids(length=7)
    past = read(ours, prompt_BT, keep=True).past
    ends = [random_ids(length=n, seed=n) for n in (5, 3, 5)]
    forks = [read(ours, end_BT, past.fork()) for end_BT in ends]
    again = [read(ours, end_BT[:, :1], fork.past) for end_BT, fork in zip(ends, forks, strict=True)]
    for end_BT, fork, more in zip(ends, forks, again, strict=True):
        whole = read(ours, torch.cat([prompt_BT, end_BT, end_BT[:, :1]], 1)).hidden_BTD
        close(torch.cat([fork.hidden_BTD, more.hidden_BTD], 1), whole[:, 7:])
    assert past.cache.get_seq_length() == 7 and past.valid_BS.shape == (3, 7)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_stand_for_their_ids(name, pair):
    ours, _ = pair(name)
    padded_BT, _ = left_padded()
    role_BT = role_of(padded_BT, Role.PROMPT)
    with ours.tap() as calls:
        by_ids = read(ours, padded_BT).hidden_BTD
        by_embeddings = ours(ours.embed(padded_BT), role_BT).hidden_BTD
    assert torch.equal(by_ids, by_embeddings)
    assert calls[0].ids_BT is padded_BT and calls[1].ids_BT is None and len(calls) == 2
    read(ours, padded_BT)
    assert len(calls) == 2, "a tap hears only what runs inside it"


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_sees_a_later_one(name, pair):
    ours, _ = pair(name)
    ids_BT = random_ids()
    before = read(ours, ids_BT).hidden_BTD
    for t in (1, 6, 11):
        changed_BT = ids_BT.clone()
        changed_BT[:, t] = (changed_BT[:, t] + 1) % VOCAB
        after = read(ours, changed_BT).hidden_BTD
        assert torch.equal(after[:, :t], before[:, :t]) and not torch.equal(after[:, t:], before[:, t:])


def naive_mutual(theirs, ids_T, cached, mutual):
    """One row without padding: transformers' own layers under a mask written position by position."""
    length = len(ids_T)
    mask = torch.full((1, 1, length, length), torch.finfo(torch.float32).min)
    for query in range(length):
        for key in range(length):
            inside = all(cached <= at < cached + mutual for at in (query, key))
            if key <= query or inside:
                mask[0, 0, query, key] = 0
    return theirs(ids_T[None], attention_mask=mask).logits[0]


@pytest.mark.parametrize("name", GLOBAL)
@pytest.mark.parametrize("mutual", [1, 3, 5])
def test_mutual_positions_see_each_other(name, mutual, pair):
    ours, theirs = pair(name)
    padded_BT, rows = left_padded()
    new_BT = random_ids(length=5, seed=2)
    past = read(ours, padded_BT, keep=True).past
    states = read(ours, new_BT, past.fork(), mutual=mutual)
    more = read(ours, new_BT[:, :1], states.past)
    for row, ids in enumerate(rows):
        ids_T = torch.cat([ids, new_BT[row], new_BT[row, :1]])
        expected = naive_mutual(theirs, ids_T, len(ids), mutual)
        close(ours.logits(states.hidden_BTD[row]), expected[len(ids) : len(ids) + 5])
        close(ours.logits(more.hidden_BTD[row]), expected[len(ids) + 5 :])
    if mutual == 1:
        close(states.hidden_BTD, read(ours, new_BT, past.fork()).hidden_BTD)


def test_mutual_positions_need_full_attention(pair):
    with pytest.raises(UserError, match="attend=causal"):
        read(pair("mistral-sliding")[0], random_ids(), mutual=2)


def test_the_window_slides(pair):
    """Guards the folder itself: in one layer of window 5 the last of 12 tokens cannot see the first."""
    ours, _ = pair("mistral-sliding")
    ids_BT = random_ids()
    changed_BT = ids_BT.clone()
    changed_BT[:, 0] = (changed_BT[:, 0] + 1) % VOCAB
    first, other = (read(ours, ids, layers=True).layers_LBTD[0] for ids in (ids_BT, changed_BT))
    assert torch.equal(first[:, 5:], other[:, 5:]) and not torch.equal(first[:, 4], other[:, 4])
    assert ours.sliding and not pair("qwen3")[0].sliding


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(attention, folders, pair):
    config = BackboneConfig(path=str(folders / "smollm3"), attention=attention)
    padded_BT, _ = left_padded()
    close(
        read(load_backbone(config, VOCAB).eval(), padded_BT).hidden_BTD[:, -1],
        read(pair("smollm3")[0], padded_BT).hidden_BTD[:, -1],
    )
