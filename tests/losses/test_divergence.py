"""KL of next-token distributions: what it is, in value and gradient, whole and a chunk at a time."""

import pytest
import torch
from torch.nn.functional import kl_div

from quietreasoning.losses.divergence import forward_kl, forward_kl_of_states


def states(seed: int, rows: int = 7) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=draw, dtype=torch.float64, requires_grad=True)


def test_it_is_torchs_and_zero_where_equal():
    teacher_NV, student_NV = states(0), states(1)
    wanted = kl_div(student_NV.log_softmax(-1), teacher_NV.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(forward_kl(teacher_NV, student_NV), wanted.sum(-1))
    assert not forward_kl(teacher_NV, teacher_NV).any()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_neither_value_nor_gradient(chunk):
    taught_ND, hidden_ND = states(2), states(3)
    heads = [torch.nn.Linear(4, 9).double() for _ in range(2)]
    leaves = [hidden_ND, *heads[1].parameters()]

    def of(kl_N):
        return kl_N, torch.autograd.grad(kl_N.sum(), leaves)

    whole, grads = of(forward_kl(heads[0](taught_ND).detach(), heads[1](hidden_ND)))
    found, others = of(forward_kl_of_states(*heads, taught_ND, hidden_ND, chunk=chunk))
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-14)
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other)
    assert taught_ND.grad is None and all(p.grad is None for p in heads[0].parameters())


def test_states_that_do_not_fit_are_refused():
    heads = [torch.nn.Identity()] * 2
    with pytest.raises(ValueError, match="7 and 6 positions"):
        forward_kl_of_states(*heads, states(0), states(1, 6))
