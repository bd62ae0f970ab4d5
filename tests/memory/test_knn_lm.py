"""The neighbours' distribution and its mixture; what writes and what scores see the same one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from quietreasoning.backbone import Backbone, last_hidden, role_of
from quietreasoning.backbone.sampling import sample
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Role
from quietreasoning.indices.knn import make_knn
from quietreasoning.memory.arrays import open_keys
from quietreasoning.memory.datastore import Source, build_datastore
from quietreasoning.memory.knn_decoding import at_head, knn_logits, score
from quietreasoning.memory.knn_lm import KNNLM, KNNSettings, knn_log_probs, mix, values_of
from quietreasoning.memory.knn_weight import Lambda
from quietreasoning.workspace import WorkspaceConfig, WorkspaceForCausalLM

VOCAB, WIDTH, NEW = 40, 16, 6
SOURCE = Source("a" * 64, "b" * 64, WIDTH, VOCAB)
SHAPE = {"num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2, "hidden_size": WIDTH}
LLAMA = LlamaConfig(
    **SHAPE, vocab_size=VOCAB, max_position_embeddings=64, initializer_range=0.3, eos_token_id=None
)
TEXT = np.array([7, 3, 11, 29, 5, 17, 2, 23, 13, 19, 31, 37])  # no token stands twice
PROMPT = torch.tensor([[1, 4, 9, 16]])


def half(found):
    return torch.full((len(found),), 0.5)


def seeing():
    """A weight that depends on all it may read."""
    part = Lambda(WIDTH)
    draw = torch.Generator().manual_seed(2)
    for weights in part.parameters():
        weights.data = 0.5 * torch.randn(weights.shape, generator=draw)
    return part


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(LLAMA).eval()


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    """An index of the text and of some noise, exact."""
    folder = tmp_path_factory.mktemp("store")
    draw = np.random.default_rng(0)
    texts = [TEXT, *(draw.integers(0, VOCAB, 9) for _ in range(5))]
    build_datastore(model, texts, folder / "keys", SOURCE)
    make_knn(folder / "keys", folder / "keys", folder / "knn.index", WIDTH, "Flat")
    return folder / "knn.index"


def opened(store, weight=half, rare=None, **settings):
    return KNNLM.open(store, SOURCE, weight, rare, KNNSettings(**{"max_lookups": 99} | settings))


def test_all_mass_stands_on_what_was_found_and_duplicates_add_up():
    distances = torch.tensor([[0.0, 2.0, 2.0, 5.0], [1e6, 1e6 + 1, 3.4e38, 3.4e38], [0.0, 0.0, 0.0, 0.0]])
    tokens = torch.tensor([[3, 7, 3, 9], [5, 6, -1, -1], [-1, -1, -1, -1]])
    p = knn_log_probs(distances, tokens, 2.0, 12).exp()
    weights = torch.exp(torch.tensor([0.0, -1.0, -1.0, -2.5]))
    weights = weights / weights.sum()
    torch.testing.assert_close(
        p[0, [3, 7, 9]], torch.stack([weights[0] + weights[2], weights[1], weights[3]])
    )
    torch.testing.assert_close(p[1, 5], torch.sigmoid(torch.tensor(0.5)))
    torch.testing.assert_close(p.sum(1), torch.tensor([1.0, 1.0, 0.0]))
    assert (p[0, [0, 1, 2, 4, 11]] == 0).all() and (p[1] > 0).sum() == 2


def test_a_mixture_sums_to_one_and_weight_nought_is_the_model_exactly():
    torch.manual_seed(0)
    log_lm = torch.randn(3, 12).mul(30).log_softmax(-1)
    log_knn = knn_log_probs(torch.rand(3, 4), torch.tensor([[3, 7, 3, 9]] * 3), 1.0, 12)
    weight = torch.tensor([[0.5], [1e-30], [0.0]])
    mixed = mix(log_lm, log_knn, weight)
    want = weight.double() * log_knn.double().exp() + (1 - weight.double()) * log_lm.double().exp()
    torch.testing.assert_close(mixed[:2].double().exp(), want[:2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(3))
    assert torch.equal(mixed[2], log_lm[2])


def test_a_memorised_text_is_known_by_its_neighbours(model, store):
    knn = opened(store, temperature=1e-3)
    log_p = score(model, knn, torch.from_numpy(TEXT), 1)
    assert (
        log_p >= np.log(0.5) - 1e-5
    ).all()  # the nearest state is this very one, and what followed is next
    assert (score(model, opened(store, max_lookups=0), torch.from_numpy(TEXT), 1) < np.log(0.5)).any()


def test_candidates_of_a_coarse_index_are_ranked_by_the_keys_themselves(store, tmp_path):
    keys = store.parent / "keys"
    make_knn(keys, keys, tmp_path / "coarse", WIDTH, "SQ4")
    query = torch.from_numpy(open_keys(keys, "--keys").take(np.arange(5)))
    coarse = KNNLM.open(tmp_path / "coarse", SOURCE, half, settings=KNNSettings(neighbours=4))
    ranked = KNNLM.open(tmp_path / "coarse", SOURCE, half, settings=KNNSettings(neighbours=4), keys=keys)
    exact = opened(store, neighbours=4).look_up(query)
    assert not torch.allclose(coarse.look_up(query)[0], exact[0], atol=1e-4)
    torch.testing.assert_close(ranked.look_up(query)[0], exact[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(ranked.look_up(query)[1], exact[1])


def written(model, knn, prompt=PROMPT, mask=None, **options):
    with knn_logits(model, knn) as processor:
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt) if mask is None else mask,
            logits_processor=[processor],
            **{"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options,
        )


def scores_of(model, knn, prompt=PROMPT):
    """Each step's log-probabilities [N, V] as greedy generation saw them, and the ids."""
    with knn_logits(model, knn) as processor:
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            logits_processor=[processor],
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    return torch.cat(out.scores).log_softmax(-1), out.sequences[0]


def rare_of(threshold):
    """Some tokens are rare and some are not."""
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    return lambda hidden: torch.sigmoid(hidden @ direction + threshold)


@pytest.mark.parametrize(
    "settings", [{}, {"max_lookups": 3}, {"max_lookups": 2, "rare_entity_threshold": 0.5}]
)
def test_sampling_and_scoring_agree(model, store, settings):
    rare = rare_of(0.0) if "rare_entity_threshold" in settings else None
    knn = opened(store, seeing(), rare, **settings)
    log_p, ids = scores_of(model, knn)
    writing = knn.counts
    assert writing.lookups <= NEW and writing.tokens == NEW
    if "max_lookups" in settings:
        assert writing.lookups == min(settings["max_lookups"], writing.rare) < NEW
    scoring = opened(store, seeing(), rare, **settings)
    want = log_p[torch.arange(NEW), ids[-NEW:]]
    torch.testing.assert_close(score(model, scoring, ids, PROMPT.shape[1]), want, atol=1e-5, rtol=1e-5)
    assert scoring.counts == writing
    plain = model.generate(
        PROMPT, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(PROMPT)
    )
    assert settings or not torch.equal(plain[0], ids)  # the neighbours have a say at all


def test_the_head_says_the_same_to_generate_and_to_our_own_writer(model, store):
    want = written(model, opened(store, max_lookups=3))
    with at_head(model, opened(store, max_lookups=3)):
        got = model.generate(
            PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=NEW, do_sample=False
        )
    assert torch.equal(got, want)
    backbone = Backbone(model, SimpleNamespace(tune="frozen"), {})
    two = torch.cat([PROMPT, torch.tensor([[IGNORE, IGNORE, 9, 16]])])
    with at_head(model, opened(store, max_lookups=3)) as head:
        assert ours(backbone, two[:1]) == want[:, PROMPT.shape[1] :].tolist()
        head.begin()
        both = ours(backbone, two)
        head.begin()
        assert both == [*want[:, PROMPT.shape[1] :].tolist(), *ours(backbone, two[1:, 2:])]
        with pytest.raises(UserError, match="other states"):
            backbone.logits(torch.zeros(1, WIDTH))
    assert torch.equal(model(PROMPT).logits, model(PROMPT).logits)  # and outside the block all is as before


def ours(backbone, prompt):
    with torch.no_grad():
        states = backbone(prompt, role_of(prompt, Role.PROMPT), keep=True)
        return sample(backbone, states.past, last_hidden(states), max_new_tokens=NEW, eos=-1)


def test_a_row_reads_the_same_in_any_batch_and_pays_for_itself(model, store):
    knn = opened(store, seeing(), max_lookups=2)
    padded = torch.cat([PROMPT, torch.tensor([[0, 0, 9, 16]])])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    both = written(model, knn, padded, mask)
    assert knn.counts.lookups == 4 and knn.counts.refused == 2 * (NEW - 2)
    assert torch.equal(both[:1], written(model, opened(store, seeing(), max_lookups=2)))
    assert torch.equal(both[1:, 2:], written(model, opened(store, seeing(), max_lookups=2), PROMPT[:, 2:]))
    never = opened(store, weight=lambda found: torch.zeros(len(found)))
    plain = model.generate(
        PROMPT, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(PROMPT)
    )
    assert torch.equal(written(model, never), plain)
    logits = torch.randn(1, VOCAB)
    assert torch.equal(never.mixed(logits, torch.randn(1, WIDTH), [0], [True]), logits)
    with pytest.raises(UserError, match="beams"):
        written(model, opened(store), num_beams=3)


def test_only_what_is_likely_a_rare_entity_is_looked_up(store):
    knn = opened(store, rare=lambda hidden: hidden[:, 0])  # the threshold is 0.2 by itself
    query, logits, spent = torch.randn(4, WIDTH), torch.randn(4, VOCAB), [0] * 4
    query[:, 0] = torch.tensor([0.1, 0.2, 0.9, 0.19])
    mixed = knn.mixed(logits, query, spent, [True] * 4)
    assert spent == [0, 1, 1, 0] and (knn.counts.tokens, knn.counts.rare, knn.counts.lookups) == (4, 2, 2)
    assert torch.equal(mixed[[0, 3]], logits[[0, 3]])
    torch.testing.assert_close(mixed[[1, 2]].exp().sum(1), torch.ones(2))


def test_a_row_that_is_over_costs_nothing(model, store):
    knn = opened(store)
    first = int(written(model, opened(store))[0, PROMPT.shape[1]])
    padded = torch.cat([PROMPT, torch.tensor([[5, 17, 2, 23]])])
    written(model, knn, padded, eos_token_id=first)
    with knn_logits(model, knn, stop=[first]) as processor:
        knn.counts.lookups = 0
        model.generate(
            padded,
            attention_mask=torch.ones_like(padded),
            logits_processor=[processor],
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=first,
            pad_token_id=0,
        )
    assert knn.counts.lookups == 1 + NEW


@pytest.mark.parametrize("name", ["model_sha256", "tokenizer_sha256", "layer", "vocabulary"])
def test_a_datastore_of_another_model_is_refused_by_name(store, name):
    changed = {"vocabulary": VOCAB + 1}.get(name, "c" * 64)
    other = Source(**SOURCE.__dict__ | {name: changed})
    with pytest.raises(UserError, match=f"{name} is "):
        KNNLM.open(store, other, half)


def test_values_that_are_damaged_or_of_another_index_are_refused(store, tmp_path):
    for path in store.parent.glob("knn.index*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copy = tmp_path / "knn.index"
    assert len(KNNLM.open(copy, SOURCE, half).index) == 51
    beside = values_of(copy)
    held = beside.read_bytes()
    beside.write_bytes(held[:-1] + b"\1")
    with pytest.raises(UserError, match="damaged"):
        KNNLM.open(copy, SOURCE, half)
    np.save(beside, np.full(51, VOCAB, np.int32))
    beside.with_name(beside.name + ".json").unlink()
    with pytest.raises(UserError, match="was not made with"):
        KNNLM.open(copy, SOURCE, half)
    np.save(tmp_path / "keys.npy", np.zeros((9, WIDTH), np.float32))
    np.save(tmp_path / "values.npy", np.arange(9))
    make_knn(tmp_path / "keys.npy", tmp_path / "values.npy", copy, WIDTH, "Flat")
    with pytest.raises(UserError, match="model_sha256 is None"):
        KNNLM.open(copy, SOURCE, half)


def test_a_workspace_model_writes_and_scores_alike(tmp_path):
    torch.manual_seed(3)
    shape = {"hidden_size": WIDTH, "vocab_size": VOCAB, "intermediate_size": 24, "chunk_size": 8}
    shape |= {"initializer_range": 0.3, "num_attention_heads": 2, "ssm_inner": 32, "pkm_slots": 64}
    model = WorkspaceForCausalLM(WorkspaceConfig.preset("tiny", **shape)).eval()
    texts = [TEXT, *(np.random.default_rng(i).integers(0, VOCAB, 20) for i in range(2))]
    build_datastore(model, texts, tmp_path / "keys", SOURCE)
    make_knn(tmp_path / "keys", tmp_path / "keys", tmp_path / "i", WIDTH, "Flat")
    assert (score(model, opened(tmp_path / "i", temperature=1e-3), torch.from_numpy(TEXT), 1) > -0.7).all()
    prompt = torch.arange(11)[None]
    backbone = Backbone(model, SimpleNamespace(tune="frozen"), {})
    with at_head(model, opened(tmp_path / "i", max_lookups=3)):
        answer = ours(backbone, prompt)
        padded = torch.cat([prompt, prompt]).masked_fill(
            torch.tensor([[False], [True]]) & (prompt < 2), IGNORE
        )
        with pytest.raises(UserError, match="one prompt at a time"):
            ours(backbone, padded)
    ids = torch.cat([prompt[0], torch.tensor(answer[0])])
    assert written(model, opened(tmp_path / "i", max_lookups=3), prompt)[0].tolist() == ids.tolist()
