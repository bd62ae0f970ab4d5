"""Reading token by token, in pieces or at once is one computation; generate is a loop of full forwards."""

from functools import partial

import pytest
import torch
from made_models import ALL, CHUNK, VOCAB, awake, close, ids_of, in_pieces, ragged
from transformers import DynamicCache

from quietreasoning.config import UserError
from quietreasoning.memory.kv_cache.cache import CompressedCache
from quietreasoning.memory.kv_cache.settings import KVCacheSettings
from quietreasoning.workspace.cache import WorkspaceCache

LONG = 160
ROUNDING = 5e-4  # of fp32, over twenty updates of the slots; in double precision there is none, see below


@pytest.fixture(scope="module")
def model():
    return awake()


@pytest.fixture(scope="module")
def trunk():
    """The trunk alone, which opens no chunk."""
    return awake(features=())


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_the_long_text_takes_every_turn(model):
    """Guards the tests below: gates open and close, rows halt apart, memory is hot and cold."""
    trace = model(ids_of(4, LONG), trace=True).trace
    assert len(trace.columns) == -(-LONG // CHUNK)
    steps = torch.cat([a.executed_R for a in trace.advances if a is not None])
    assert set(steps.tolist()) == {1, 2, 3}
    plans = trace.plans
    for gates in (torch.cat([p.ssm_RG for p in plans]), torch.cat([p.pkm_R for p in plans])):
        assert 0.1 < (gates > 0).float().mean() < 0.95
    temperature = torch.cat([p.temperature_R for p in plans])
    assert temperature.min() < 0.7 and temperature.max() > 1.4
    assert len({tuple(c) for p in plans for c in p.choice.indices_RK.tolist()}) > 3


@pytest.mark.parametrize("sizes", [[1], [7, 1, 30, 2, 8, 64, 3], [LONG]])
def test_decoding_equals_the_full_forward(sizes, model):
    ids_BT = ids_of(1, LONG, seed=1)
    close(in_pieces(model, ids_BT, sizes), model(ids_BT, use_cache=False).logits, ROUNDING)


@pytest.mark.parametrize("sizes", [[117, 5, 1], [70, 1, 30, 2, 8, 14, 3]])
def test_decoding_a_ragged_batch_equals_each_row_alone(sizes, model):
    lengths = [LONG, 127, 5, CHUNK * 11]
    ids_BT, mask_BT = ragged(ids_of(4, LONG, seed=2), lengths)
    got = in_pieces(model, ids_BT, sizes, mask_BT)
    for row, length in enumerate(lengths):
        alone = model(ids_BT[row : row + 1, -length:], use_cache=False).logits
        close(got[row : row + 1, -length:], alone, ROUNDING)


@pytest.mark.parametrize("tol", [1e-10, 1e-5])
def test_in_double_precision_nothing_but_rounding_is_left(tol):
    """The memory scores in fp32, whatever the model is held in, and rounds as many tokens as it is shown."""
    features = tuple(name for name in ALL if name != "pkm" or tol == 1e-5)
    exact, ids_BT = awake(features=features).double(), ids_of(1, 150, seed=1)
    close(in_pieces(exact, ids_BT, [7, 1, 30, 2, 8, 64, 3]), exact(ids_BT, use_cache=False).logits, tol)


def test_without_a_workspace_nothing_but_keys_is_cached(trunk):
    ids_BT, mask_BT = ragged(ids_of(2, 40), [40, 13])
    close(in_pieces(trunk, ids_BT, [5, 1], mask_BT), trunk(ids_BT, mask_BT).logits)


@pytest.mark.parametrize(
    "features", [("ssm",), ("ssm", "pkm", "adapters"), ("workspace",), ("workspace", "ssm")]
)
def test_decoding_with_a_part_of_the_modules(features):
    model = awake(features=features)
    ids_BT, mask_BT = ragged(ids_of(2, 40), [40, 13])
    close(in_pieces(model, ids_BT, [5, 1], mask_BT), model(ids_BT, mask_BT).logits)


@pytest.mark.parametrize("ia3", [False, True])
def test_adapters_that_are_held_for_single_tokens(ia3):
    """Without a fusion, a plan's adapters are worked out once for the tokens that come one by one."""
    model, cache = awake(adapter_fusion=False, ia3=ia3), WorkspaceCache()
    ids_BT, mask_BT = ragged(ids_of(3, 40), [40, 13, 27])
    close(in_pieces(model, ids_BT, [5, 1], mask_BT), model(ids_BT, mask_BT).logits)
    close(in_pieces(model, ids_BT, [5, 1, 9, 1]), model(ids_BT).logits)
    model(ids_BT[:, :5], past_key_values=cache, use_cache=True)
    model(ids_BT[:, 5:6], past_key_values=cache, use_cache=True)
    assert len(cache.state.held) == len(model.model.blocks)
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    moved = ids_BT[[2, 0, 1]]
    after = model(moved[:, 6:7], past_key_values=cache, use_cache=True).logits[:, -1]
    close(after, model(moved[:, :7]).logits[:, -1])


def test_rows_that_have_ended_feed_padding_and_stay_as_they_are(model):
    """One row reads on while the other reads padding; then both go on."""
    ids_BT = ids_of(2, 30, seed=3)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 10:21] = 0
    got = in_pieces(model, ids_BT, [10, 1], mask_BT)
    close(got[0], model(ids_BT[:1]).logits[0])
    kept = ids_BT[1, mask_BT[1].bool()][None]
    close(got[1, mask_BT[1].bool()], model(kept).logits[0])


# generate


def by_hand(model, prompt_P, new):
    """Greedy: a full forward a token; the first new token opens a chunk."""
    ids = prompt_P[None]
    for _ in range(new):
        starts = torch.zeros_like(ids, dtype=torch.bool)
        starts[:, len(prompt_P) :][:, :1] = True
        logits = model(ids, starts=starts, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids[0, len(prompt_P) :]


PROMPTS = [2 * CHUNK + 3, 5, 1, CHUNK]
NEW = CHUNK + 2


def test_generate_is_a_loop_of_full_forwards_alone_and_in_a_batch(model):
    ids_BT = ids_of(4, max(PROMPTS), seed=4)
    wanted = [by_hand(model, ids_BT[row, :length], NEW) for row, length in enumerate(PROMPTS)]
    assert len({tuple(w.tolist()) for w in wanted}) == 4, "the test model says the same to everyone"
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    padded, mask = ragged(ids_BT, PROMPTS)
    together = model.generate(padded, attention_mask=mask, **options)[:, padded.shape[1] :]
    for row, length in enumerate(PROMPTS):
        alone = model.generate(ids_BT[row : row + 1, :length], **options)[0, length:]
        assert torch.equal(alone, wanted[row]) and torch.equal(together[row], wanted[row])


def test_the_end_of_a_prompt_is_read_before_the_answer(model):
    """Without the boundary at its end a short prompt would never reach the slots."""
    ids_BT = ids_of(1, 5)
    cache = WorkspaceCache()
    first = model(ids_BT, past_key_values=cache, use_cache=True, trace=True).trace.slots[-1]
    new = torch.tensor([[3]])
    inside = model(new, past_key_values=cache.fork(), use_cache=True, trace=True).trace.slots[-1]
    starts = torch.ones_like(new, dtype=torch.bool)
    after = model(new, past_key_values=cache.fork(), use_cache=True, starts=starts, trace=True).trace
    assert torch.equal(first, inside) and not torch.allclose(first, after.slots[-1])
    assert after.open_valid[0].sum() == 5 and cache.get_seq_length() == 5


def beams_by_hand(model, prompt_P, beams, new):
    """Plain beam search without an end: the most likely text, every score from a full forward."""
    kept = [(0.0, prompt_P)]
    for _ in range(new):
        found = []
        for score, ids in kept:
            starts = torch.zeros(1, len(ids), dtype=torch.bool)
            starts[:, len(prompt_P) :][:, :1] = True
            log_p = model(ids[None], starts=starts, use_cache=False).logits[0, -1].log_softmax(-1)
            found += [(score + float(log_p[v]), torch.cat([ids, torch.tensor([v])])) for v in range(VOCAB)]
        kept = sorted(found, key=lambda item: -item[0])[:beams]
    return kept[0][1][len(prompt_P) :]


def test_beams_carry_slots_plan_and_states_along(model):
    lengths = [CHUNK + 3, 4]
    ids_BT = ids_of(2, max(lengths), seed=5)
    padded, mask = ragged(ids_BT, lengths)
    new = CHUNK + 1
    options = {"max_new_tokens": new, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    together = model.generate(padded, attention_mask=mask, **options)[:, padded.shape[1] :]
    greedy = model.generate(padded, attention_mask=mask, **(options | {"num_beams": 1}))[:, padded.shape[1] :]
    assert not torch.equal(together, greedy), "choose prompts whose beams cross"
    for row, length in enumerate(lengths):
        assert torch.equal(together[row], beams_by_hand(model, ids_BT[row, :length], 3, new))


def test_a_cache_reorders_repeats_and_selects_all_state(model):
    ids_BT, mask_BT = ragged(ids_of(3, 19, seed=6), [19, 6, 12])
    more = ids_of(1, 2 * CHUNK, seed=7)

    def read(change, rows):
        cache = WorkspaceCache()
        model(ids_BT, mask_BT, past_key_values=cache, use_cache=True)
        change(cache)
        logits = model(more.expand(rows, -1), past_key_values=cache, use_cache=True).logits
        return logits

    plain = read(lambda cache: None, 3)
    for order in ([2, 0, 1], [1, 1, 0]):
        close(read(lambda cache, o=order: cache.reorder_cache(torch.tensor(o)), 3), plain[order])
    close(read(lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), 2), plain[[2, 0]])
    close(read(lambda cache: cache.batch_repeat_interleave(2), 6), plain.repeat_interleave(2, 0))


@pytest.mark.parametrize("kind", [DynamicCache, partial(CompressedCache, KVCacheSettings())])
def test_a_cache_of_another_kind_is_refused_by_its_name(model, kind):
    cache = kind(config=model.config)
    says = f"past_key_values={type(cache).__name__}: .*WorkspaceCache"
    with pytest.raises(UserError, match=says):
        model.generate(ids_of(1, 5), past_key_values=cache, max_new_tokens=1)
    with pytest.raises(UserError, match=says):
        model(ids_of(1, 5), past_key_values=cache)


def test_forks_of_a_cache_do_not_meet(model):
    ids_BT = ids_of(2, 11, seed=8)
    cache = WorkspaceCache()
    model(ids_BT, past_key_values=cache, use_cache=True)
    ends = [ids_of(2, n, seed=n) for n in (9, 3)]
    forks = [cache.fork() for _ in ends]
    for fork, end in zip(forks, ends, strict=True):
        for t in range(end.shape[1]):
            last = model(end[:, t : t + 1], past_key_values=fork, use_cache=True).logits
        close(last[:, 0], model(torch.cat([ids_BT, end], 1), use_cache=False).logits[:, -1])
    assert cache.get_seq_length() == 11
