"""Votes, choice, codes and stores of the compressed cache, each against a naive twin."""

import pytest
import torch

from quietreasoning.config import UserError
from quietreasoning.memory.kv_cache import snapkv
from quietreasoning.memory.kv_cache.byte_stores import Bytes, Mixed
from quietreasoning.memory.kv_cache.codecs import Grouped, Int8
from quietreasoning.memory.kv_cache.packing import pack, unpack_into
from quietreasoning.memory.kv_cache.pq import KeyIndex
from quietreasoning.memory.kv_cache.settings import KVCacheSettings, PQSettings
from quietreasoning.memory.kv_cache.stores import Plain, Scratch

WIDTH, GROUP = 8, 8


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lengths_to_valid(lengths, total):
    return torch.arange(total) >= total - torch.tensor(lengths)[:, None]


def naive_choice(query, keys, length, keep, window, kernel, sinks):
    """One row [H, W, C], [G, S, C]: kept positions of each head, counted from the row's first real token."""
    heads, groups, total = len(query), len(query) // len(keys), keys.shape[1]
    first = total - length
    if length <= window + sinks:
        return [list(range(length))] * len(keys)
    mass = torch.zeros(heads, length, dtype=query.dtype)
    for h in range(heads):
        for i in range(window):
            sees = length - window + i + 1
            scores = keys[h // groups, first : first + sees] @ query[h, i] * 0.3
            mass[h, :sees] += scores.softmax(0) / window
    kept = []
    for g in range(len(keys)):
        score = torch.zeros(length - window, dtype=query.dtype)
        for h in range(g * groups, (g + 1) * groups):
            for j in range(length - window):
                near = mass[h, max(0, j - kernel // 2) : min(length - window, j + kernel // 2 + 1)]
                score[j] += near.sum() / kernel / groups
        count = max(int(length * keep + 1e-6), sinks)
        others = sorted(range(sinks, length - window), key=lambda j: (-float(score[j]), j))
        best = [*range(min(sinks, length - window)), *others][:count]
        kept.append(sorted([*best, *range(length - window, length)]))
    return kept


@pytest.mark.parametrize(("keep", "kernel", "kv_heads"), [(0.3, 5, 2), (0.1, 7, 4), (1.0, 5, 1)])
def test_votes_and_choice_are_those_of_a_naive_count_row_by_row(keep, kernel, kv_heads):
    lengths, total, window, sinks = [40, 23, 9, 31], 40, 6, 3
    query, keys = draw(4, 4, window, WIDTH) * 2, draw(4, kv_heads, total, WIDTH, seed=1)
    valid = lengths_to_valid(lengths, total)
    votes = snapkv.votes(query, keys, valid, 0.3)
    torch.testing.assert_close(votes.sum(-1), torch.ones(4, 4).double())
    assert not votes.masked_select(~valid[:, None].expand_as(votes)).any()
    scores = snapkv.pool(votes, window, kernel, kv_heads)
    index, real = snapkv.choose(scores, valid, snapkv.counts(valid, keep, window, sinks), sinks)
    for row, length in enumerate(lengths):
        wanted = naive_choice(query[row], keys[row], length, keep, window, kernel, sinks)
        for head in range(kv_heads):
            kept = index[row, head] if real is None else index[row, head][real[row]]
            assert (kept - (total - length)).tolist() == wanted[head]


@pytest.mark.parametrize("depth", [0, 17, 50, 89])
def test_a_planted_needle_is_kept_in_every_head_that_looks_for_it(depth):
    query, keys = draw(1, 4, 6, WIDTH), draw(1, 2, 96, WIDTH, seed=1)
    keys[:, 1, depth] = 6 * query[0, 2:].mean((0, 1)) / query[0, 2:].mean((0, 1)).norm()
    query[:, 2:] = query[:, 2:].mean((1, 2), keepdim=True) * 3
    valid = torch.ones(1, 96, dtype=torch.bool)
    scores = snapkv.pool(snapkv.votes(query, keys, valid, 1.0), 6, 5, 2)
    index, _ = snapkv.choose(scores, valid, torch.tensor([9]), 0)
    assert depth in index[0, 1]


def test_equal_votes_keep_the_earlier_position_and_sinks_count():
    scores, valid = torch.zeros(1, 1, 20), torch.ones(1, 24, dtype=torch.bool)
    index, _ = snapkv.choose(scores, valid, torch.tensor([5]), 2)
    assert index.tolist() == [[[0, 1, 2, 3, 4, 20, 21, 22, 23]]]


def test_salience_is_attention_over_the_queries_that_could_see_it():
    query, keys = draw(1, 2, 4, WIDTH), draw(1, 1, 12, WIDTH, seed=1)
    valid = torch.ones(1, 12, dtype=torch.bool)
    found = snapkv.salience(snapkv.votes(query, keys, valid, 1.0), valid, 4, 1)
    mass = torch.zeros(12).double()
    for h in range(2):
        for i in range(4):
            mass[: 9 + i] += (keys[0, 0, : 9 + i] @ query[0, h, i]).softmax(0) / 2
    torch.testing.assert_close(found[0, 0], mass / torch.tensor([4] * 8 + [4, 3, 2, 1]))


@pytest.mark.parametrize("bits", [2, 4])
def test_packing_is_exact_and_as_small_as_it_claims(bits):
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(3, 16)[:, torch.randperm(2**bits * 16)]
    packed, out = pack(codes, bits), torch.empty(codes.shape)
    unpack_into(packed, bits, out)
    assert packed.nbytes * 8 == codes.numel() * bits and torch.equal(out, codes.float())


@pytest.mark.parametrize("count", [5, 16, 27])
@pytest.mark.parametrize(
    "codec", [Int8(), Grouped(4, GROUP, WIDTH), Grouped(2, GROUP, WIDTH)], ids=["8", "4", "2"]
)
def test_a_round_trip_stays_within_half_a_step_of_the_true_range(codec, count):
    keys, values = draw(2, 3, count, WIDTH), draw(2, 3, count, WIDTH, seed=1)
    valid = torch.arange(count) < torch.tensor([count, count - 3])[:, None]
    keys[1, :, count - 3 :] = 1e6  # padding shapes no scale
    out = torch.empty_like(keys), torch.empty_like(values)
    parts = codec.encode(keys, values, valid)
    codec.decode(parts, *out)
    if codec.bits == 8:
        steps = [x.abs().amax(-1, keepdim=True).expand_as(x) / 127 for x in (keys, values)]
    else:
        top = 2**codec.bits - 1
        steps = [
            torch.empty_like(keys),
            (values.amax(-1, True) - values.amin(-1, True)).expand_as(values) / top,
        ]
        for row, n in enumerate((count, count - 3)):
            for at in range(0, n, GROUP):
                run = keys[row, :, at : min(at + GROUP, n)]
                steps[0][row, :, at : at + GROUP] = (run.amax(1, True) - run.amin(1, True)) / top
    for x, back, step in zip((keys, values), out, steps, strict=True):
        error = ((x - back).abs() - step / 2).movedim(2, 1)[valid]
        assert error.max() < 1e-9
    index = torch.randint(0, count - 3, (2, 3, 4), generator=torch.Generator().manual_seed(2))
    for taken, whole in zip(codec.take(parts, index, keys), out, strict=True):
        assert torch.equal(taken, snapkv.gather(whole, index))


@pytest.mark.parametrize("kind", ["full", 8, 4, "mixed"])
def test_what_is_written_never_changes_and_old_decoded_groups_leave(kind):
    scratch = Scratch()
    store = {
        "full": Plain(),
        8: Bytes(Int8(), GROUP, scratch),
        4: Bytes(Grouped(4, GROUP, WIDTH), GROUP, scratch),
        "mixed": Mixed(WIDTH, GROUP, 0.4, scratch),
    }[kind]
    closed, decoded = draw(2, 3, 21, WIDTH), draw(2, 3, 40, WIDTH, seed=1)
    store.close(closed, closed + 1, None, draw(2, 3, 21, seed=2) if kind == "mixed" else None)
    first = [t.clone() for t in store.read()]
    for at in range(40):
        store.append(decoded[:, :, at : at + 1], decoded[:, :, at : at + 1] - 1)
        keys, values = store.read()
        assert torch.equal(keys[:, :, :21], first[0]) and torch.equal(values[:, :, :21], first[1])
        assert torch.equal(keys[:, :, -1], decoded[:, :, at]) or ((at + 1) % GROUP == 0 and kind != "full")
        if at == GROUP:
            group = keys[:, :, 21 : 21 + GROUP].clone()
        if at > GROUP:
            assert torch.equal(keys[:, :, 21 : 21 + GROUP], group)
    second = store.read()[0][:, :, 21 + GROUP : 21 + 2 * GROUP].clone()
    store.evict(GROUP)
    assert len(store) == 21 + 32 and torch.equal(store.read()[0][:, :, :21], first[0])
    assert torch.equal(store.read()[0][:, :, 21 : 21 + GROUP], second)
    later = draw(2, 3, 5, WIDTH, seed=3)
    store.close(later, later, torch.tensor([[True] * 5, [True] * 4 + [False]]))
    assert len(store) == 21 + 5 + 32 and store.valid().sum(1).tolist() == [58, 57]
    torch.testing.assert_close(store.read()[0][:, :, 21:25], later[:, :, :4], atol=0.3, rtol=0)
    assert torch.equal(store.read()[0][:, :, 26 : 26 + GROUP], second)
    picked = store.read()[0][torch.tensor([1, 1, 0])].clone()
    store.rows(lambda t: t[torch.tensor([1, 1, 0])])
    assert torch.equal(store.read()[0], picked) and store.valid().sum(1).tolist() == [57, 57, 58]


def test_mixed_gives_the_salient_tokens_the_finer_codes():
    keys, salience = draw(1, 2, 40, WIDTH), draw(1, 2, 40, seed=1).abs()
    store = Mixed(WIDTH, GROUP, 0.4, Scratch())
    store.close(keys, keys, None, salience)
    order = salience.sort(-1, descending=True).indices
    parts = [order[..., :16].sort(-1).values, order[..., 16:].sort(-1).values]
    back = store.read()[1]
    fine = (back[:, :, :16] - snapkv.gather(keys, parts[0])).abs().mean()
    coarse = (back[:, :, 16:] - snapkv.gather(keys, parts[1])).abs().mean()
    assert coarse > 3 * fine and [run.codec.bits for run in store._runs] == [4, 2]


def test_codes_propose_and_exact_scores_choose():
    """As many centroids as tokens: the codes are exact, so the choice is that of brute force."""
    keys, values, query = draw(2, 2, 24, WIDTH), draw(2, 2, 24, WIDTH, seed=1), draw(2, 4, WIDTH, seed=2)
    valid, store = torch.arange(24) < torch.tensor([24, 14])[:, None], Plain()
    store.close(keys, values, valid)
    forced = torch.zeros_like(valid).index_fill(1, torch.tensor([0, 13]), True)
    index = KeyIndex(PQSettings(parts=2, centroids=24, top=5, candidates=1.5), keys, valid, forced)
    picked, picked_values = index.pick(query, store, 0.5)
    scores = torch.einsum("bgrc,bgnc->bgrn", query.unflatten(1, (2, 2)), keys) * 0.5
    share = scores.masked_fill(~valid[:, None, None], -torch.inf).softmax(-1).sum(2)
    best = share.masked_fill(forced[:, None], 9).topk(7).indices
    assert index.read == 7 and index.proposed == 9
    for found, wanted in ((picked, snapkv.gather(keys, best)), (picked_values, snapkv.gather(values, best))):
        assert torch.equal(found.sort(2).values, wanted.sort(2).values)  # forced ones come in any order
    with pytest.raises(UserError, match=r"pq.parts=3"):
        KeyIndex(PQSettings(parts=3), keys, valid, forced)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep_frac": 0.05}, "keep_floor=0.1"),
        ({"kernel": 4}, "odd"),
        ({"streaming_window": 16}, "shorter than a group"),
        ({"bits": "mixed", "pq": {}}, "use 8 or 4"),
        ({"int8_layers": (0,)}, "leave it out"),
        ({"bits": "full", "int8_layers": (0,)}, "leave it out"),
    ],
)
def test_settings_that_could_not_be_obeyed_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        KVCacheSettings.model_validate(wrong)
    with pytest.raises(UserError, match="use bits=8"):
        Grouped(4, 8, 7)
