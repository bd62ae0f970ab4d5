"""Muon equals torch's, whatever is batched with what; zero stays zero."""

import pytest
import torch
from torch import nn

from quietreasoning.optim.muon import SCALES, Muon, batches, orthogonal

SHAPES = [(16, 16), (32, 12), (16, 16), (12, 32), (6, 9), (1, 8), (8, 1), (12, 32)]


def pair(shapes):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(*shape)) for shape in shapes]
    return ours, [nn.Parameter(p.detach().clone()) for p in ours]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_equals_torch_over_steps_of_falling_gradients(scale, nesterov):
    ours, theirs = pair(SHAPES)
    shared = {"lr": 0.01, "momentum": 0.95, "weight_decay": 0.1, "nesterov": nesterov}
    mine, reference = (
        Muon(ours, scale=scale, **shared),
        torch.optim.Muon(theirs, adjust_lr_fn=scale, **shared),
    )
    for step in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p) * 0.1**step
            q.grad = p.grad.clone()
        mine.step()
        reference.step()
    plain = not torch.cpu._is_avx512_bf16_supported()  # other kernels may add up in another order for a batch
    for p, q in zip(ours, theirs, strict=True):
        if plain:
            assert torch.equal(p, q)
        torch.testing.assert_close(p, q, rtol=0, atol=2e-3)
        assert torch.equal(mine.state[p]["momentum_buffer"], reference.state[q]["momentum_buffer"])


def test_a_zero_gradient_moves_nothing_and_poisons_no_neighbour():
    ours, _ = pair([(8, 8), (8, 8)])
    before = [p.detach().clone() for p in ours]
    optimizer = Muon(ours, lr=0.1)
    for _ in range(2):
        ours[0].grad, ours[1].grad = torch.zeros(8, 8), torch.randn(8, 8)
        optimizer.step()
    assert torch.equal(ours[0], before[0])
    assert torch.isfinite(ours[1]).all() and not torch.equal(ours[1], before[1])


def test_singular_values_come_close_to_one_whatever_they_were():
    matrix_MN = torch.randn(12, 40, generator=torch.Generator().manual_seed(1)) * 1e-4
    found = torch.linalg.svdvals(orthogonal([matrix_MN])[0])
    assert 0.6 < found.min() and found.max() < 1.2
    rough = orthogonal([matrix_MN.bfloat16()])[0].float()
    assert (rough - orthogonal([matrix_MN])[0]).norm() < 0.05 * rough.norm()


def test_equal_shapes_and_their_transposes_share_a_batch(monkeypatch):
    assert list(batches(SHAPES)) == [[0, 2], [1, 3, 7], [4], [5, 6]]
    monkeypatch.setattr("quietreasoning.optim.muon.LARGEST_BATCH", 2 * 12 * 32)
    assert list(batches(SHAPES)) == [[0, 2], [1, 3], [7], [4], [5, 6]]


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()])
def test_only_matrices_are_taken(shape):
    with pytest.raises(ValueError, match="matrices alone"):
        Muon([nn.Parameter(torch.zeros(shape))], lr=0.1)
