"""Heads beside a model: which position they read, and that the trunk learns nothing from them."""

import pytest
import torch

from quietreasoning.nn.side_heads import HaltHead, SelfEvaluationHead, pooled

REAL_BT = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])


def states():
    return torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0))


def test_the_last_real_position_or_the_mean_of_the_real_ones():
    hidden_BTD = states()
    dirty_BTD = hidden_BTD.masked_fill(~REAL_BT[..., None], float("nan"))
    zeros_D = torch.zeros(8)
    last_BD = torch.stack([hidden_BTD[0, 1], hidden_BTD[1, 2], zeros_D])
    torch.testing.assert_close(pooled(dirty_BTD, REAL_BT), last_BD)
    mean_BD = torch.stack([hidden_BTD[0, :2].mean(0), hidden_BTD[1, 1:].mean(0), zeros_D])
    torch.testing.assert_close(pooled(dirty_BTD, REAL_BT, "mean"), mean_BD)
    with pytest.raises(ValueError, match="last, mean"):
        pooled(hidden_BTD, REAL_BT, "first")


@pytest.mark.parametrize("kind", [HaltHead, SelfEvaluationHead])
def test_the_trunk_is_left_alone_unless_asked(kind):
    for detach in (True, False):
        head, hidden_BTD = kind(8, detach=detach), states().requires_grad_()
        logits_B = head(hidden_BTD, REAL_BT)
        assert logits_B.shape == (3,) and head(hidden_BTD).shape == (3, 3)
        logits_B.sum().backward()
        assert (hidden_BTD.grad is None) == detach
        assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_sizes_and_precision():
    assert sum(p.numel() for p in HaltHead(8).parameters()) == 9
    assert [p.shape for p in HaltHead(8, hidden=3).parameters()] == [(3, 8), (3,), (1, 3), (1,)]
    assert [p.shape for p in SelfEvaluationHead(8).parameters()] == [(4, 8), (4,), (1, 4), (1,)]
    assert SelfEvaluationHead(8)(states().bfloat16()).dtype == torch.float32
