"""Router terms: values by hand, a row judged by its own chunks alone, chunks that do not exist."""

import math

import pytest
import torch

from quietreasoning.losses.routing import (
    balance,
    budget,
    entropy_floor,
    expected_cost,
    gate_target,
    router_z,
)

R, C, E = 5, 6, 4
LENGTHS = torch.tensor([6, 3, 1, 0, 2])
CHUNKS = torch.arange(C)[None] < LENGTHS[:, None]
COST = torch.tensor([1.0, 2.0, 0.5, 4.0])


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LOSSES = {
    "router_z": router_z,
    "router_z binary": lambda x, chunks: router_z(x, chunks, binary=True),
    "balance": lambda x, chunks: balance(x.softmax(-1), chunks),
    "entropy_floor": lambda x, chunks: entropy_floor(x.softmax(-1), chunks, 1.3),
    "entropy_floor binary": lambda x, chunks: entropy_floor(x.sigmoid(), chunks, 0.68, binary=True),
    "budget": lambda x, chunks: budget(expected_cost(x.sigmoid(), COST.to(x), chunks), chunks.any(1), 3.0),
    "gate_target": lambda x, chunks: gate_target(x.sigmoid(), chunks),
    "gate_target narrow": lambda x, chunks: gate_target((0.1 * x[..., 0]).sigmoid(), chunks),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_halves_add_up_and_a_row_is_judged_alone(loss):
    run, x = LOSSES[loss], random(R, C, E)
    whole = run(x, CHUNKS)
    assert whole[1] == 4, "the row without chunks does not count"
    assert whole[0] > 0
    alone = [run(x[r : r + 1], CHUNKS[r : r + 1]) for r in range(R)]
    for i in range(2):
        torch.testing.assert_close(whole[i], sum(a[i] for a in alone))
    assert alone[3][0] == 0
    for r, length in enumerate(LENGTHS.tolist()):
        if length:
            trimmed = run(x[r : r + 1, :length], CHUNKS[r : r + 1, :length])
            torch.testing.assert_close(alone[r], trimmed)


@pytest.mark.parametrize("loss", LOSSES)
def test_missing_chunks_may_hold_anything(loss):
    x = random(R, C, E)
    broken = x.masked_fill(~CHUNKS[..., None], float("nan")).requires_grad_()
    total, count = LOSSES[loss](broken, CHUNKS)
    torch.testing.assert_close((total, count), LOSSES[loss](x, CHUNKS))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_in_double_precision(loss):
    x = random(R, C, E, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: LOSSES[loss](q, CHUNKS)[0], x)
    LOSSES[loss](x, CHUNKS)[0].backward()
    assert x.grad.any() and not x.grad[~CHUNKS].any()


def one_row(*chunks):
    return torch.tensor([chunks]), torch.ones(1, len(chunks), dtype=torch.bool)


def test_z_by_hand():
    logits, chunks = one_row([0.0, 0.0], [math.log(3.0), 0.0])
    total, _ = router_z(logits, chunks)
    assert total.item() == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)
    total, _ = router_z(logits, chunks, binary=True)
    half = math.log(2) ** 2
    assert total.item() == pytest.approx((half + half + math.log(4) ** 2 + half) / 4)


def test_balance_is_1_when_balanced_and_the_number_of_experts_at_worst():
    assert balance(torch.eye(4)[None], CHUNKS[:1, :4])[0].item() == pytest.approx(1)
    assert balance(torch.eye(4)[:1].repeat(1, 4, 1), CHUNKS[:1, :4])[0].item() == pytest.approx(4)
    p, chunks = one_row([0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1])  # f = 3/4, 1/4; P = 0.6, 0.4
    assert balance(p, chunks)[0].item() == pytest.approx(2 * (0.75 * 0.6 + 0.25 * 0.4))
    chosen = torch.ones(1, 4, 2, dtype=torch.bool)
    assert balance(p, chunks, chosen)[0].item() == pytest.approx(1)


def test_one_chunk_is_not_punished_for_deciding():
    p = torch.tensor([[[0.97, 0.03]]], requires_grad=True)
    total, count = balance(p, torch.ones(1, 1, dtype=torch.bool))
    total.backward()
    assert (total.item(), int(count)) == (1, 1) and not p.grad.any()


def test_floor_lets_single_decisions_be_confident():
    sure, chunks = one_row([1.0, 0.0], [0.0, 1.0])
    assert entropy_floor(sure, chunks, 0.6)[0] == 0
    stuck, chunks = one_row([1.0, 0.0], [1.0, 0.0])
    assert entropy_floor(stuck, chunks, 0.6)[0].item() == pytest.approx(0.36)
    gates, chunks = one_row([1.0, 0.5], [0.0, 0.5])
    assert entropy_floor(gates, chunks, 0.6, binary=True)[0].item() == pytest.approx(0, abs=1e-9)
    gates, chunks = one_row([1.0, 0.5], [1.0, 0.5])
    assert entropy_floor(gates, chunks, 0.6, binary=True)[0].item() == pytest.approx(0.18)
    start, chunks = one_row([0.5], [0.5])
    assert entropy_floor(start, chunks, 0.1, binary=True)[0] == 0, "slack at the start"


@pytest.mark.parametrize("binary", [False, True])
def test_floor_at_certainty_has_a_finite_slope_back(binary):
    p = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    entropy_floor(p, torch.ones(1, 1, dtype=torch.bool), 0.1, binary=binary)[0].backward()
    assert p.grad.isfinite().all() and p.grad[0, 0, 1] < 0


def test_budget_binds_only_what_is_over_it():
    p = torch.tensor([[[1.0, 0.5], [1.0, 0.5]], [[0.5, 0.0], [1.0, 1.0]]])
    chunks = torch.tensor([[True, True], [True, False]])
    cost_R = expected_cost(p, torch.tensor([1.0, 4.0]), chunks)
    assert cost_R.tolist() == [6.0, 0.5]
    assert [x.item() for x in budget(cost_R, chunks.any(1), 2.0)] == [4.0, 2]
    assert budget(cost_R, chunks.any(1), 2.5 * chunks.sum(1))[0].item() == 1.0
    assert budget(cost_R, torch.tensor([False, True]), 2.0)[0].item() == 0


def test_gate_target_by_hand():
    gate, chunks = one_row(0.3, 0.5)  # mean 0.4, std 0.1
    assert gate_target(gate, chunks)[0].item() == pytest.approx(0, abs=1e-8)
    gate, chunks = one_row(0.4, 0.4)
    assert gate_target(gate, chunks)[0].item() == pytest.approx(0.01, rel=1e-2)
    gate, chunks = one_row(1.0, 0.0, 1.0, 0.0)
    assert gate_target(gate, chunks)[0].item() == pytest.approx(0.01, rel=1e-5)
    gate, chunks = one_row(0.9)
    assert gate_target(gate, chunks)[0].item() == pytest.approx(0.25), "one chunk has no spread"
    both, chunks = one_row([0.3, 0.9], [0.5, 0.9])
    assert gate_target(both, chunks)[0].item() == pytest.approx((0.25 + 0.01) / 2, rel=1e-2)


def test_equal_gates_have_a_finite_gradient():
    gate = torch.full((1, 3), 0.9, requires_grad=True)
    gate_target(gate, torch.ones(1, 3, dtype=torch.bool))[0].backward()
    assert gate.grad.isfinite().all() and (gate.grad > 0).all()
