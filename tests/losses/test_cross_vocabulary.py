"""Divergences across vocabularies: the same as within one where they are one, by hand where they are not."""

import math

import pytest
import torch
from torch.nn import functional as F

from quietreasoning.losses.cross_vocabulary import Chunks, SharedIds, as_event, by_ids, cross_vocabulary
from quietreasoning.losses.kd import Divergence, divergence

FAMILY = [
    Divergence(temperature=1.7),
    Divergence(beta=1.0),
    Divergence(beta=0.3, scaled=True, temperature=2.0),
    Divergence("skew", skew=0.2),
    Divergence("tv", temperature=3.0),
]
V, U = 7, 9


def logits(seed: int, rows: int = 5, ids: int = V, scale: float = 2.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, ids, generator=draw, dtype=torch.float64)).requires_grad_()


def slope(value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value.sum(), leaf)[0]


def one_by_one(ids_N: torch.Tensor) -> Chunks:
    rows_N1 = torch.arange(len(ids_N))[:, None]
    return Chunks(rows_N1, rows_N1, ids_N, ids_N)


@pytest.mark.parametrize("choice", FAMILY, ids=str)
@pytest.mark.parametrize("padded", [0, 2])
def test_one_vocabulary_gives_the_divergence_of_one_vocabulary(choice, padded):
    """Also where the tables are longer than the vocabulary, by different lengths."""
    teacher_NV, student_NU = logits(0, ids=V + padded), logits(1, ids=V + 2 * padded)
    weight_N = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    shared = SharedIds(torch.arange(V), V)
    found = cross_vocabulary(
        teacher_NV, student_NU, one_by_one(torch.tensor([3, 1, 4, 1, 5])), shared, choice, weight_N
    )
    wanted = (divergence(teacher_NV[:, :V], student_NU[:, :V], choice) * weight_N).sum()
    torch.testing.assert_close(found.exact, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(slope(found.exact, student_NU), slope(wanted, student_NU), rtol=0, atol=1e-10)
    assert found.rest == found.chunk == 0 and (found.exact_count, found.chunk_count) == (4, 0)
    assert not cross_vocabulary(
        teacher_NV, student_NU.detach(), one_by_one(torch.arange(5)), shared, choice
    ).exact.requires_grad, "the teacher has no gradient"


@pytest.mark.parametrize("choice", FAMILY, ids=str)
def test_shared_ids_keep_their_probability_and_the_others_are_one_bin(choice):
    map_V = torch.tensor([4, -1, 0, 8, -1, -1, 2])
    teacher_NV, student_NU = logits(0), logits(1, ids=U)
    found_N, rest_N = by_ids(teacher_NV, student_NU, SharedIds(map_V, U), choice)
    t = choice.temperature
    p_NV, q_NU = (teacher_NV.detach() / t).softmax(-1), (student_NU / t).softmax(-1)
    p_NB = torch.cat([p_NV[:, [0, 2, 3, 6]], p_NV[:, [1, 4, 5]].sum(-1, keepdim=True)], 1)
    q_NB = torch.cat([q_NU[:, [4, 0, 8, 2]], q_NU[:, [1, 3, 5, 6, 7]].sum(-1, keepdim=True)], 1)
    torch.testing.assert_close(p_NB.sum(-1), torch.ones(5, dtype=torch.float64))
    plain = Divergence(choice.kind, choice.beta, choice.skew, choice.scaled)
    wanted_N = divergence(p_NB.log(), q_NB.log(), plain) * (t if choice.kind == "tv" else t**2)
    torch.testing.assert_close(found_N, wanted_N)
    torch.testing.assert_close(slope(found_N, student_NU), slope(wanted_N, student_NU))
    p_NR = F.pad(p_NV[:, [1, 4, 5]].sort(-1, descending=True).values, (0, 2))
    q_NR = q_NU[:, [1, 3, 5, 6, 7]].sort(-1, descending=True).values
    torch.testing.assert_close(rest_N, t * (p_NR - q_NR).abs().sum(-1))


@pytest.mark.parametrize("choice", [c for c in FAMILY if not c.scaled], ids=str)
def test_fewer_shared_ids_never_tell_more(choice):
    teacher_NV, student_NV, last_N = logits(0), logits(1), None
    for hidden in range(V - 1):
        map_V = torch.arange(V).masked_fill(torch.arange(V) < hidden, -1)
        found_N, _ = by_ids(teacher_NV, student_NV, SharedIds(map_V, V), choice)
        assert last_N is None or (found_N <= last_N + 1e-12).all()
        last_N = found_N


def test_a_chunk_is_the_product_of_its_tokens_and_all_else_is_the_rest():
    logits_NV, next_N = logits(2, rows=4), torch.tensor([2, 0, 6, 3])
    rows_CK = torch.tensor([[0, 1, 2], [3, -1, -1]])
    found_C2 = as_event(logits_NV, rows_CK, next_N, temperature=1.5)
    own_N = (logits_NV / 1.5).log_softmax(-1).gather(1, next_N[:, None])[:, 0]
    wanted_C = torch.stack([own_N[:3].sum(), own_N[3]])
    torch.testing.assert_close(found_C2, torch.stack([wanted_C, torch.log1p(-wanted_C.exp())], 1))
    wanted = slope(torch.log1p(-wanted_C.exp()), logits_NV)
    torch.testing.assert_close(slope(found_C2[:, 1], logits_NV), wanted)
    torch.testing.assert_close(found_C2.logsumexp(1), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("choice", FAMILY, ids=str)
def test_chunks_of_several_tokens_are_two_outcomes(choice):
    """Two tokens of the teacher against one of the student; and one against one that is another token."""
    teacher_NV, student_MU = logits(0, rows=3), logits(1, rows=2, ids=U)
    chunks = Chunks(
        torch.tensor([[0, 1], [2, -1]]),
        torch.tensor([[0], [1]]),
        torch.tensor([5, 1, 2]),
        torch.tensor([8, 3]),
    )
    shared = SharedIds(torch.tensor([0, 1, 2, -1, -1, -1, -1]), U)
    weight_M = torch.tensor([0.5, 2.0], dtype=torch.float64)
    found = cross_vocabulary(teacher_NV, student_MU, chunks, shared, choice, weight_M)
    t = choice.temperature
    p_NV, q_MU = (teacher_NV.detach() / t).softmax(-1), (student_MU / t).softmax(-1)
    p_C = torch.stack([p_NV[0, 5] * p_NV[1, 1], p_NV[2, 2]])
    q_C = torch.stack([q_MU[0, 8], q_MU[1, 3]])
    plain = Divergence(choice.kind, choice.beta, choice.skew, choice.scaled)
    apart_C = divergence(torch.stack([p_C, 1 - p_C], 1).log(), torch.stack([q_C, 1 - q_C], 1).log(), plain)
    wanted = (apart_C * weight_M).sum() * (t if choice.kind == "tv" else t**2)
    torch.testing.assert_close(found.chunk, wanted)
    torch.testing.assert_close(slope(found.chunk, student_MU), slope(wanted, student_MU))
    assert found.exact == found.rest == 0 and (found.exact_count, found.chunk_count) == (0, 2)


def test_a_chunk_knows_its_own_rows_alone_and_weighs_their_mean():
    teacher_NV, student_MU = logits(0, rows=4), logits(1, rows=4, ids=U)
    chunks = Chunks(
        torch.tensor([[0, -1], [1, 2]]),
        torch.tensor([[0, -1], [2, 3]]),
        torch.zeros(4).long(),
        torch.zeros(4).long(),
    )
    shared = SharedIds(torch.tensor([0, 1, -1, -1, -1, -1, -1]), U)
    choice = Divergence()
    whole = cross_vocabulary(teacher_NV, student_MU, chunks, shared, choice)
    assert not slope(whole.exact + whole.rest + whole.chunk, student_MU)[1].any()
    broken_MU = student_MU.detach().clone()
    broken_MU[0] = math.nan
    broken_MU.requires_grad_()
    half = cross_vocabulary(
        teacher_NV, broken_MU, chunks, shared, choice, torch.tensor([0.0, 9.0, 1.0, 0.0], dtype=torch.float64)
    )
    torch.testing.assert_close(half.chunk, whole.chunk / 2)
    assert half.exact == 0 and slope(half.exact + half.chunk, broken_MU).isfinite().all()
    nothing = cross_vocabulary(teacher_NV, broken_MU, chunks, shared, choice, torch.zeros(4))
    assert not any(nothing) and not slope(nothing.chunk + nothing.exact + nothing.rest, broken_MU).any()


@pytest.mark.parametrize("choice", FAMILY, ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_certain_and_impossible_tokens_stay_finite(choice, kind):
    teacher_NV = torch.tensor([[80.0, 0, -math.inf], [-3e4, 3e4, 0]], dtype=kind)
    student_NU = torch.tensor([[90.0, 0, 0], [3e4, -3e4, -math.inf]], dtype=kind, requires_grad=True)
    shared = SharedIds(torch.tensor([0, -1, 2]), 3)
    rows_CK = torch.tensor([[0, -1], [1, -1], [0, 1]])
    chunks = Chunks(rows_CK, rows_CK, torch.tensor([0, 1]), torch.tensor([0, 1]))
    found = cross_vocabulary(teacher_NV, student_NU, chunks, shared, choice)
    total = found.exact + found.rest + found.chunk
    assert total.dtype == torch.float32 and total.isfinite() and total > -1e-5
    assert slope(total, student_NU).isfinite().all()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="no id stands for the same"):
        SharedIds(torch.full((3,), -1), 3)
    with pytest.raises(ValueError, match="two ids to one"):
        SharedIds(torch.tensor([1, 1]), 3)
    with pytest.raises(ValueError, match="ids beyond 3"):
        SharedIds(torch.tensor([3, 1]), 3)
    ids_N = torch.zeros(5).long()
    with pytest.raises(ValueError, match=r"have \(7, 7\) logits, their tokenizers \(8, 7\)"):
        cross_vocabulary(
            logits(0), logits(1), one_by_one(ids_N), SharedIds(torch.arange(8) - 1, 7), FAMILY[0]
        )
    with pytest.raises(ValueError, match=r"student: logits \(4, 7\)"):
        cross_vocabulary(
            logits(0), logits(1, rows=4), one_by_one(ids_N), SharedIds(torch.arange(V), V), FAMILY[0]
        )
