"""Whitened queries spread over the slots, and no batch has a say in how it is read itself."""

import pytest
import torch

from quietreasoning.nn.product_key_memory import ProductKeyTable
from quietreasoning.nn.whitening import Whitening

HEADS, WIDTH, TOKENS = 3, 8, 4000


def skewed(seed=0, tokens=TOKENS):
    """Queries of which two directions and a mean say nearly everything, as those of a young trunk."""
    draw = torch.Generator().manual_seed(7)
    mix_HQQ = torch.linalg.qr(torch.randn(HEADS, WIDTH, WIDTH, generator=draw))[0] * torch.logspace(
        0, -2, WIDTH
    )
    mean_HQ = torch.randn(HEADS, WIDTH, generator=draw)
    noise_NHQ = torch.randn(tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return mean_HQ + torch.einsum("nhp,hqp->nhq", noise_NHQ, mix_HQQ)


def settled(query_NHQ, pieces=1, **settings):
    whiten = Whitening(HEADS, WIDTH, **settings)
    for part_NHQ in query_NHQ.chunk(pieces):
        whiten.observe(part_NHQ, torch.ones(len(part_NHQ), dtype=torch.bool))
    whiten.settle()
    return whiten


def test_it_changes_nothing_before_something_was_seen_nor_within_a_step():
    whiten, query_NHQ = Whitening(HEADS, WIDTH), skewed()
    before = whiten(query_NHQ[None])
    torch.testing.assert_close(before[0], query_NHQ)
    whiten.settle()
    whiten.observe(query_NHQ, torch.ones(TOKENS, dtype=torch.bool))
    assert torch.equal(whiten(query_NHQ[None]), before)


def test_all_directions_vary_alike_and_none_with_another():
    query_NHQ = skewed()
    white_NHQ = settled(query_NHQ, floor=1e-6)(query_NHQ[None])[0]
    for head in range(HEADS):
        torch.testing.assert_close(torch.cov(white_NHQ[:, head].T), torch.eye(WIDTH), atol=0.05, rtol=0)
    torch.testing.assert_close(white_NHQ.mean(0), torch.zeros(HEADS, WIDTH), atol=0.02, rtol=0)


def test_it_does_not_matter_how_a_step_is_cut_into_pieces():
    one, many = settled(skewed()), settled(skewed(), pieces=8)
    # a direction of little variance is blown up, and the rounding of its fp32 moments with it
    torch.testing.assert_close(one.matrix_HQQ, many.matrix_HQQ, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(one.mean_HQ, many.mean_HQ)


def test_tokens_that_do_not_count_leave_no_trace():
    query_NHQ, counted_N = skewed(), torch.arange(TOKENS) % 3 > 0
    spoilt_NHQ = query_NHQ.clone()
    spoilt_NHQ[~counted_N] = 50.0
    one, two = Whitening(HEADS, WIDTH), Whitening(HEADS, WIDTH)
    one.observe(spoilt_NHQ, counted_N)
    two.observe(query_NHQ[counted_N], torch.ones(int(counted_N.sum()), dtype=torch.bool))
    one.settle(), two.settle()
    torch.testing.assert_close(one.matrix_HQQ, two.matrix_HQQ, rtol=1e-3, atol=1e-3)


def test_the_moments_follow_queries_that_move():
    whiten = Whitening(HEADS, WIDTH, rate=0.2)
    for step in range(60):
        query_NHQ = skewed(step, 500) + (5.0 if step >= 20 else 0.0)
        whiten.observe(query_NHQ, torch.ones(500, dtype=torch.bool))
        whiten.settle()
    torch.testing.assert_close(whiten.mean_HQ, skewed(99).mean(0) + 5.0, atol=0.1, rtol=0)
    assert int(whiten.settled) == 60 and whiten.count == 0 and (whiten.square_HQQ == 0).all()


@pytest.mark.parametrize("zero", [False, True])
def test_a_direction_without_variance_stays_finite(zero):
    query_NHQ = torch.zeros_like(skewed()) if zero else skewed()
    query_NHQ[:, :, 3] = 0.0
    white = settled(query_NHQ)(query_NHQ[None])
    assert white.isfinite().all()


def test_whitened_queries_read_many_times_as_many_slots():
    torch.manual_seed(0)
    table, query_NHQ = ProductKeyTable(64**2, 4, HEADS, WIDTH, 1), skewed()
    used = []
    for query in (query_NHQ, settled(query_NHQ)(query_NHQ[None])[0]):
        unit = torch.nn.functional.normalize(query, dim=-1) * WIDTH**0.5
        share = (
            torch.bincount(table.select(unit[None], 1.0)[0].flatten(), minlength=64**2).double()
            / unit[..., 0].numel()
        )
        used.append(1 / share.square().sum())
    assert used[1] > 5 * used[0]


def test_saved_moments_read_as_before():
    one, two = settled(skewed()), Whitening(HEADS, WIDTH)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(skewed(3)[None]), two(skewed(3)[None]))
