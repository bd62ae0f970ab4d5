"""Every address counts, rows stay apart, dead keys come back, int8 rows answer like those they came from."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from quietreasoning.nn.product_key_memory import ProductKeyReader, ProductKeyTable, pairs, relative_rms, usage
from quietreasoning.nn.row_gather import quantise_rows, weighted_rows

SIDE, VALUE, HEADS, QUERY, WIDTH = 12, 6, 3, 8, 10


def table(topk=5, seed=0, **settings):
    """A table in which something was written."""
    torch.manual_seed(seed)
    memory = ProductKeyTable(SIDE**2, VALUE, HEADS, QUERY, topk, **settings)
    if memory.values is not None:
        torch.nn.init.normal_(memory.values)
    return memory


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_scores(memory, query_RTHQ):
    """The scores of all addresses with their full keys, one by one: [R, T, H, S]."""
    keys = memory.keys / memory.keys.norm(dim=-1, keepdim=True)
    full_HSQ = torch.stack(
        [torch.cat([keys[:, 0, i], keys[:, 1, j]], -1) for i in range(SIDE) for j in range(SIDE)],
        1,
    )
    return torch.einsum("rthq,hsq->rths", query_RTHQ, full_HSQ)


@pytest.mark.parametrize("topk", [1, 2, 5, SIDE])
def test_the_best_slots_are_those_of_brute_force(topk):
    memory, query_RTHQ = table(topk), draw(4, 30, HEADS, QUERY)
    indices, weights = memory.select(query_RTHQ, 0.7)
    scores_RTHS = all_scores(memory, query_RTHQ)
    best, at = scores_RTHS.topk(topk)
    assert torch.equal(indices.sort(-1).values, at.sort(-1).values)
    torch.testing.assert_close(weights, (best / 0.7).softmax(-1))
    torch.testing.assert_close(scores_RTHS.gather(-1, indices), best)


@pytest.mark.parametrize("topk", [1, 3, 8, 32])
def test_no_pair_that_could_win_is_left_out(topk):
    first, second = pairs(topk, torch.device("cpu"))
    kept = set(zip(first.tolist(), second.tolist(), strict=True))
    for a in range(topk):
        for b in range(topk):
            beaten_by = (a + 1) * (b + 1) - 1  # all pairs that stand before it in both lists
            assert ((a, b) in kept) == (beaten_by < topk)


def test_every_address_can_be_reached_and_reads_its_own_row():
    memory = table(1)
    with torch.no_grad():  # orthogonal sub-keys need as many channels as there are
        memory.keys = torch.nn.Parameter(torch.eye(SIDE).expand(HEADS, 2, SIDE, SIDE).clone())
    i, j = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    query_SQ = torch.cat([F.one_hot(i.flatten(), SIDE), F.one_hot(j.flatten(), SIDE)], -1).float()
    indices, weights = memory.select(query_SQ[None, :, None].expand(1, -1, HEADS, -1), 1.0)
    assert torch.equal(indices[0, :, :, 0], torch.arange(SIDE**2)[:, None].expand(-1, HEADS))
    torch.testing.assert_close(memory.gather(indices, weights)[0], HEADS * memory.values)


def test_a_read_is_the_weighted_sum_of_its_rows_with_the_gradients_of_one():
    memory = table()
    indices = torch.randint(0, SIDE**2, (2, 3, HEADS, 5), generator=torch.Generator().manual_seed(3))
    weights = draw(2, 3, HEADS, 5).requires_grad_()
    expected = (weights[..., None] * memory.values[indices]).sum((2, 3))
    out = memory.gather(indices, weights)
    torch.testing.assert_close(out, expected)
    wanted = torch.autograd.grad(expected.square().sum(), [memory.values, weights])
    found = torch.autograd.grad(out.square().sum(), [memory.values, weights])
    assert found[0].is_sparse and found[0].is_coalesced()
    assert found[0].indices()[0].tolist() == indices.unique().tolist()
    torch.testing.assert_close(found[0].to_dense(), wanted[0])
    torch.testing.assert_close(found[1], wanted[1])


def test_dense_and_sparse_gradients_are_equal_to_the_bit_also_without_a_read():
    indices, weights = torch.randint(0, 20, (700, 4)), torch.rand(700, 4)
    for count in (700, 0):
        grads = []
        for sparse in (True, False):
            rows = draw(20, 3).requires_grad_()
            share = weights[:count].clone().requires_grad_()
            weighted_rows(rows, indices[:count], share, sparse=sparse).square().sum().backward()
            assert share.grad.shape == (count, 4)
            grads.append(rows.grad)
        assert torch.equal(grads[0].to_dense(), grads[1])


def test_what_a_row_reads_does_not_depend_on_the_others_or_on_later_tokens():
    memory, reader = table(), ProductKeyReader(WIDTH, HEADS, QUERY, VALUE)
    x_RTD, other = draw(3, 7, WIDTH), draw(3, 7, WIDTH, seed=2)
    other[1, :4] = x_RTD[1, :4]
    valid_RT = torch.ones(3, 7, dtype=torch.bool)
    less_RT = valid_RT.clone()
    less_RT[1, 4:] = False
    one, two = reader(x_RTD, memory, 0.9, valid_RT), reader(other, memory, 0.9, less_RT)
    assert torch.equal(one.out_RTD[1, :4], two.out_RTD[1, :4])
    assert torch.equal(one.indices_RTHK[1, :4], two.indices_RTHK[1, :4])
    assert (two.out_RTD[1, 4:] == 0).all() and (two.out_RTD[0] != 0).all()


def test_tokens_that_are_not_valid_give_no_gradient():
    memory, reader = table(), ProductKeyReader(WIDTH, HEADS, QUERY, VALUE)
    valid_RT = torch.tensor([[True, True, False, False]])
    x_RTD = draw(1, 4, WIDTH)
    reader(x_RTD, memory, 1.0, valid_RT).out_RTD.square().sum().backward()
    long = {n: p.grad for n, p in [*reader.named_parameters(), *memory.named_parameters()]}
    for module in (reader, memory):
        module.zero_grad()
    reader(x_RTD[:, :2], memory, 1.0).out_RTD.square().sum().backward()
    for name, p in [*reader.named_parameters(), *memory.named_parameters()]:
        grad, before = (g.to_dense() if g.is_sparse else g for g in (p.grad, long[name]))
        torch.testing.assert_close(grad, before)
        assert (grad != 0).any(), name


def test_temperature_sharpens_row_by_row():
    memory, query_RTHQ = table(), draw(2, 9, HEADS, QUERY)
    hot, cold = (memory.select(query_RTHQ, t) for t in (2.0, 0.7))
    assert torch.equal(hot[0], cold[0])
    assert (cold[1].amax(-1) > hot[1].amax(-1)).all()
    each = memory.select(query_RTHQ, torch.tensor([2.0, 0.7]).view(2, 1, 1, 1))[1]
    assert torch.equal(each[0], hot[1][0]) and torch.equal(each[1], cold[1][1])


def test_bf16_autocast_selects_the_same_slots():
    memory, query_RTHQ = table(), draw(4, 20, HEADS, QUERY)
    plain = memory.select(query_RTHQ, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = memory.select(query_RTHQ, 1.0)
        out = ProductKeyReader(WIDTH, HEADS, QUERY, VALUE)(draw(2, 3, WIDTH), memory).out_RTD
    assert torch.equal(low[0], plain[0]) and torch.equal(low[1], plain[1])
    out.float().sum().backward()
    assert memory.values.grad.dtype == torch.float32


def test_a_long_key_is_not_asked_for_more_often():
    memory, query_RTHQ = table(1), draw(4, 200, HEADS, QUERY)
    before = memory.select(query_RTHQ, 1.0)[0]
    with torch.no_grad():
        memory.keys[:, :, 0] *= 10
    assert torch.equal(memory.select(query_RTHQ, 1.0)[0], before)


def test_a_fresh_memory_is_silent_and_what_is_written_first_is_heard():
    torch.manual_seed(0)
    memory, reader = (
        ProductKeyTable(SIDE**2, VALUE, HEADS, QUERY, 4),
        ProductKeyReader(WIDTH, HEADS, QUERY, VALUE),
    )
    x_RTD, wanted_RTD = draw(1, 1, WIDTH), draw(1, 1, WIDTH, seed=2)
    out_RTD = reader(x_RTD, memory).out_RTD
    assert (out_RTD == 0).all()
    (out_RTD * wanted_RTD).sum().backward()
    with torch.no_grad():
        memory.values -= memory.values.grad.to_dense()
    assert (reader(x_RTD, memory).out_RTD * wanted_RTD).sum() < 0
    total, count = relative_rms(
        draw(2, 3, WIDTH), draw(2, 3, WIDTH, seed=3), torch.ones(2, 3, dtype=torch.bool)
    )
    assert count == 6 and 0 < total / count < 3


@pytest.mark.parametrize(("slots", "words"), [(4_000_001, "4000000 or 4004001"), (3, "1 or 4"), (0, "1")])
def test_a_number_of_slots_that_is_no_square_is_refused_with_the_nearest(slots, words):
    with pytest.raises(ValueError, match=words):
        ProductKeyTable(slots, 4, 1, 4, 1)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="key_dim=5"):
        ProductKeyTable(9, 4, 1, 5, 1)
    with pytest.raises(ValueError, match="topk=4"):
        ProductKeyTable(9, 4, 1, 4, 4)


def with_dead_keys(seed=0):
    """A trained table of which three sub-keys of one half point where no query looks."""
    memory = table(4, seed)
    with torch.no_grad():
        memory.keys[0, 1, :3] = 0
        memory.keys[0, 1, :3, 0] = -50.0
        memory.keys[0, 1, 3:, 0] = 0.0
    return memory


def queries(seed=1):
    query_RTHQ = draw(2, 200, HEADS, QUERY, seed=seed)
    query_RTHQ[..., QUERY // 2] = query_RTHQ[..., QUERY // 2].abs() + 0.5  # dead keys score far below zero
    return query_RTHQ


def count(memory, seed=1):
    memory.count(memory.select(queries(seed), 1.0)[0])


def test_hits_count_valid_reads_in_training_alone():
    memory = table()
    indices = torch.tensor([[[[0, 13, 25]] * HEADS, [[1, 2, 3]] * HEADS]])
    memory.eval().count(indices)
    assert memory.hits.sum() == 0
    memory.train().count(indices, torch.tensor([[True, False]]))
    memory.count(indices, torch.tensor([[True, False]]))
    assert memory.hits[:, 0, :4].tolist() == [[2, 2, 2, 0]] * HEADS
    assert memory.hits[:, 1, :4].tolist() == [[2, 4, 0, 0]] * HEADS
    assert memory.hits.sum() == 2 * 2 * 3 * HEADS


def test_reseeding_revives_dead_keys_and_moves_no_other():
    memory = with_dead_keys()
    count(memory)
    dead_HCn = memory.hits == 0
    assert dead_HCn[0, 1, :3].all()
    before = memory.keys.detach().clone()
    assert memory.reseed(7) == dead_HCn.sum()
    moved_HCn = (memory.keys != before).any(-1)
    assert torch.equal(moved_HCn, dead_HCn)
    assert memory.hits.sum() == 0
    count(memory)
    assert (memory.hits[0, 1, :3] > 0).all()


def test_reseeding_is_deterministic_and_needs_a_count():
    one, two, other = with_dead_keys(), with_dead_keys(), with_dead_keys()
    before = one.keys.detach().clone()
    assert one.reseed(7) == 0 and torch.equal(one.keys, before)
    for memory, seed in ((one, 7), (two, 7), (other, 8)):
        count(memory)
        torch.rand(seed)  # the global generator has no say
        memory.reseed(seed)
    assert torch.equal(one.keys, two.keys) and not torch.equal(one.keys, other.keys)


def test_usage_of_even_and_of_single_reads():
    even = torch.arange(36).view(3, 4, 1, 3)
    share, entropy, kl = usage(even, 36)
    assert share == 1 and entropy == pytest.approx(math.log(36)) and kl == pytest.approx(0, abs=1e-6)
    share, entropy, kl = usage(torch.full((2, 5, 2, 3), 7), 36)
    assert share == pytest.approx(1 / 36) and entropy == 0 and kl == pytest.approx(math.log(36))


def test_usage_equals_a_count_of_the_valid_reads():
    indices = torch.randint(0, 49, (3, 6, 2, 4), generator=torch.Generator().manual_seed(0)) // 2
    valid_RT = torch.arange(6) < torch.tensor([[6], [2], [0]])
    counts_S = torch.bincount(indices[valid_RT].flatten(), minlength=49).double()
    p = counts_S[counts_S > 0] / counts_S.sum()
    share, entropy, kl = usage(indices, 49, valid_RT)
    assert share == pytest.approx((counts_S > 0).sum() / 49)
    assert entropy == pytest.approx(-(p * p.log()).sum())
    assert kl == pytest.approx((p * (p * 49).log()).sum())


def test_int8_rounding_stays_within_half_a_scale():
    values = draw(70_000, 3) * 10 ** draw(70_000, 1, seed=2)
    values[5] = 0
    rows, scale = quantise_rows(values)
    assert rows.dtype == torch.int8 and scale.shape == (70_000, 1) and scale[5] == 0
    torch.testing.assert_close(scale[:, 0], values.abs().amax(1) / 127)
    assert ((scale * rows.float() - values).abs() <= scale * 0.5001).all()
    assert (rows.abs().amax(1) == 127).sum() == 69_999


def test_a_quantised_read_is_within_its_bound():
    memory = table()
    serving = copy.deepcopy(memory)
    serving.quantize_()
    indices, weights = memory.select(draw(4, 200, HEADS, QUERY), 0.7)
    gap = (serving.gather(indices, weights) - memory.gather(indices, weights)).abs().amax(-1)
    bound_RT = (weights * serving.scale[indices][..., 0]).sum((2, 3)) / 2  # half a scale in each row read
    assert (gap <= bound_RT + 1e-6).all() and gap.max() > 0
    assert not any(name.endswith("values") for name, _ in serving.named_parameters())


def test_a_quantised_table_saves_loads_and_still_lets_its_reader_learn():
    memory, reader = table(), ProductKeyReader(WIDTH, HEADS, QUERY, VALUE)
    memory.quantize_()
    memory.quantize_()  # twice is once
    assert set(memory.state_dict()) == {"keys", "values_int8", "scale", "hits"}
    assert set(table().state_dict()) == {"keys", "values", "hits"}
    other = table(seed=5, int8=True)
    other.load_state_dict(memory.state_dict())
    x_RTD = draw(2, 3, WIDTH)
    out_RTD = reader(x_RTD, other).out_RTD
    assert torch.equal(out_RTD, reader(x_RTD, memory).out_RTD)
    out_RTD.square().sum().backward()
    assert (other.keys.grad != 0).any() and (reader.query.weight.grad != 0).any()
    assert sum(t.nbytes for t in (other.values_int8, other.scale)) == SIDE**2 * (VALUE + 4)


def test_it_can_be_built_on_the_meta_device_and_asked_for_shapes():
    with torch.device("meta"):
        memory, reader = ProductKeyTable(2000**2, 256, 4, 256, 32), ProductKeyReader(2304, 4, 256, 256)
        read = reader(torch.empty(1, 6, 2304), memory)
    assert read.out_RTD.shape == (1, 6, 2304) and read.indices_RTHK.shape == (1, 6, 4, 32)
    assert memory.values.numel() == 1_024_000_000
