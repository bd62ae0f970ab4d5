"""Teachers that know part of p: the whole divergence where they know it all, their formula where not."""

import itertools
import math

import pytest
import torch

from quietreasoning.losses.kd import Divergence, divergence
from quietreasoning.losses.kd_sparse import TAILS, SampledTeacher, SparseTeacher

N, V = 5, 11
FAMILY = [
    Divergence(),
    Divergence(beta=1.0),
    Divergence(beta=0.4),
    Divergence(beta=0.4, scaled=True),
    Divergence("skew", skew=0.3),
    Divergence("tv"),
]


def logits(seed: int, rows: int = N, ids: int = V) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, ids, generator=draw, dtype=torch.float64)).requires_grad_()


def slope(value_N, leaf):
    return torch.autograd.grad(value_N.sum(), leaf)[0]


def takes(tail, choice):
    return not ((tail == "zero" and not choice.forward) or (tail == "renorm" and choice.reverse))


@pytest.mark.parametrize("choice", FAMILY, ids=str)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_ids_kept_is_the_whole_in_value_and_gradient(choice, tail, temperature):
    choice = Divergence(choice.kind, choice.beta, choice.skew, choice.scaled, temperature)
    teacher_NV, student_NV = logits(0), logits(1)
    sparse = SparseTeacher.of(teacher_NV, V, tail, (temperature,))
    if not takes(tail, choice):
        with pytest.raises(ValueError, match=f"tail='{tail}'"):
            sparse.against(student_NV, choice)
        return
    found, wanted = sparse.against(student_NV, choice), divergence(teacher_NV, student_NV, choice)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(slope(found, student_NV), slope(wanted, student_NV), rtol=0, atol=1e-10)


def test_the_gradient_of_every_tail_is_its_formula():
    teacher_NV, student_NV = logits(0), logits(1)
    p, q = teacher_NV.detach().softmax(-1), student_NV.detach().softmax(-1)
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(1, p.topk(4).indices, True)
    p_R, q_R = ((x * ~kept).sum(-1, keepdim=True) for x in (p, q))
    wanted = {
        "bucket": torch.where(kept, q - p, q * (1 - p_R / q_R)),
        "zero": (1 - p_R) * q - p * kept,
        "renorm": q - p * kept / (1 - p_R),
        "uniform": q - torch.where(kept, p, p_R / (V - 4)),
    }
    for tail in TAILS:
        found = slope(SparseTeacher.of(teacher_NV, 4, tail).against(student_NV, Divergence()), student_NV)
        torch.testing.assert_close(found, wanted[tail], rtol=0, atol=1e-12)


@pytest.mark.parametrize("choice", FAMILY, ids=str)
def test_the_bucket_is_a_lower_bound_that_rises_with_what_is_kept(choice):
    teacher_NV, student_NV = logits(0), logits(1)
    kept = [SparseTeacher.of(teacher_NV, k).against(student_NV, choice) for k in (1, 3, 6, 10)]
    for less, more in itertools.pairwise([*kept, divergence(teacher_NV, student_NV, choice)]):
        assert (less <= more + 1e-12).all()
    assert (kept[0] < kept[-1] - 1e-3).any()


def test_only_stored_temperatures_are_known():
    teacher_NV, student_NV = logits(0), logits(1)
    sparse = SparseTeacher.of(teacher_NV, 4, temperatures=(2.0,))
    p = (teacher_NV.detach() / 2).softmax(-1)
    ids = sparse.ids_NK
    q = (student_NV / 2).softmax(-1)
    pairs = [(x.gather(1, ids), 1 - x.gather(1, ids).sum(-1)) for x in (p, q)]
    (p_S, p_R), (q_S, q_R) = pairs
    wanted = 4 * ((p_S * (p_S / q_S).log()).sum(-1) + p_R * (p_R / q_R).log())
    torch.testing.assert_close(sparse.against(student_NV, Divergence(temperature=2.0)), wanted)
    with pytest.raises(
        ValueError, match=r"temperature=3\.0, and this sparse teacher was stored for \(1\.0, 2\.0\)"
    ):
        sparse.against(student_NV, Divergence(temperature=3.0))
    warm = SparseTeacher(ids, p_S.log(), temperature=2.0)  # the same, stored as it is at 2
    torch.testing.assert_close(warm.against(student_NV, Divergence(temperature=2.0)), wanted)
    with pytest.raises(ValueError, match=r"stored for \(2\.0,\)"):
        warm.against(student_NV, Divergence())
    with pytest.raises(ValueError, match="no temperature for each position"):
        sparse.against(student_NV, Divergence(), torch.ones(N))


@pytest.mark.parametrize("tail", TAILS)
def test_padding_and_foreign_ids_are_as_if_they_were_not_there(tail):
    teacher_NV, student_NV = logits(0), logits(1)
    few = SparseTeacher.of(teacher_NV, 3, tail)
    rubbish = torch.full((N, 2), math.nan, dtype=torch.float64)
    padded = SparseTeacher(
        torch.cat([torch.full((N, 2), -1), few.ids_NK], 1), torch.cat([rubbish, few.logp_NK], 1), tail
    )
    pair = [each.against(student_NV, Divergence()) for each in (few, padded)]
    torch.testing.assert_close(*pair)
    torch.testing.assert_close(*(slope(each, student_NV) for each in pair))
    # a student with fewer ids than the teacher, and one with more
    for ids in (8, 14):
        other_NV = logits(2, ids=ids)
        found = SparseTeacher.of(teacher_NV, V, tail).against(other_NV, Divergence())
        wanted = divergence(teacher_NV, other_NV, Divergence())
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(slope(found, other_NV), slope(wanted, other_NV))


@pytest.mark.parametrize("tail", TAILS)
def test_half_precision_and_extremes_stay_finite(tail):
    teacher_NV = torch.tensor([[90.0, 0, -90, -90], [1, 1, 1, 1], [3e4, 0, 0, -math.inf]])
    student_NV = torch.tensor([[-3e4, 3e4, 0, 0], [500.0, -500, 0, 0], [-100, 0, 100, -math.inf]])
    stored = SparseTeacher.of(teacher_NV, 2, tail)
    stored = SparseTeacher(stored.ids_NK.int(), stored.logp_NK.half(), tail)
    found = stored.against(student_NV.requires_grad_(), Divergence())
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert slope(found, student_NV).isfinite().all()


def test_drawn_ids_are_counts_and_unbiased_by_enumeration():
    teacher_1V, student_1V = logits(0, 1, 4), logits(1, 1, 4)
    p = teacher_1V.detach().softmax(-1)[0]
    whole = slope(divergence(teacher_1V, student_1V, Divergence(temperature=1.0)), student_1V)
    draws = torch.tensor(list(itertools.product(range(4), repeat=3)))  # all 64 ways of drawing three ids
    chance = p[draws].prod(-1)
    student_NV = student_1V.detach().expand(64, 4).clone().requires_grad_()
    found = SampledTeacher(draws).against(student_NV, Divergence())
    torch.testing.assert_close(
        (chance[:, None] * slope(found, student_NV)).sum(0), whole[0], rtol=0, atol=1e-12
    )
    counts = torch.nn.functional.one_hot(draws, 4).double().mean(1)
    torch.testing.assert_close(found, divergence((counts + 1e-300).log(), student_NV, Divergence()))
    kept = SparseTeacher.of(teacher_1V, 2, "renorm").against(student_1V, Divergence())
    assert (slope(kept, student_1V) - whole).abs().max() > 0.01, "top-k is biased, so this test can fail"


def test_what_drawn_ids_cannot_say_is_refused():
    drawn = SampledTeacher(torch.tensor([[1, 1, -1, 40], [2, 3, 3, 3]]), temperature=2.0)
    found = drawn.against(logits(0, 2), Divergence(temperature=2.0))
    short = SampledTeacher(torch.tensor([[1, 1]]), temperature=2.0)
    torch.testing.assert_close(found[:1], short.against(logits(0, 2)[:1], Divergence(temperature=2.0)))
    assert drawn.top().tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"drawn at temperature 2\.0"):
        drawn.against(logits(0, 2), Divergence())
    with pytest.raises(ValueError, match="forward KL alone"):
        drawn.against(logits(0, 2), Divergence(beta=0.5, temperature=2.0))


def test_tables_that_are_none_are_refused():
    ids, logp = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3)
    for made, message in [
        (lambda: SparseTeacher(ids, logp, "drop"), "tail='drop'"),
        (lambda: SparseTeacher(ids, logp[:, :2]), "do not fit"),
        (lambda: SparseTeacher(ids, logp, vocabulary=0), "no ids in common"),
        (lambda: SparseTeacher(ids, logp, temperature=2.0, log_z={3.0: logp[:, 0]}), "at temperature 1, not"),
        (lambda: SampledTeacher(ids[:, :0]), "at least one draw"),
    ]:
        with pytest.raises(ValueError, match=message):
            made()
