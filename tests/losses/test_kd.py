"""The divergence family against torch's KL, its limits and its scale; entropies and what follows them."""

import math

import pytest
import torch
from torch.nn import functional as F

from quietreasoning.losses.kd import Divergence, divergence, entropy
from quietreasoning.losses.kd_schedules import EntropySchedule, adaptive_temperature, teacher_entropy
from quietreasoning.losses.kd_sparse import SampledTeacher, SparseTeacher
from quietreasoning.losses.kd_targets import DenseTeacher, StateTeacher

FAMILY = [
    Divergence(),
    Divergence(beta=1.0),
    Divergence(beta=0.3),
    Divergence(beta=0.7, scaled=True),
    Divergence("skew", skew=0.2),
    Divergence("tv"),
]


def logits(seed: int, rows: int = 6, ids: int = 9, scale: float = 2.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    made = scale * torch.randn(rows, ids, generator=draw, dtype=torch.float64)
    return made.requires_grad_()


def slope(value_N: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value_N.sum(), leaf)[0]


def by_hand(teacher_NV, student_NV, choice):
    p, q = (x.softmax(-1) for x in (teacher_NV.detach(), student_NV))

    def kl(a, b):
        return F.kl_div(b.log(), a.log(), log_target=True, reduction="none").sum(-1)

    if choice.kind == "tv":
        return (p - q).abs().sum(-1) / 2
    if choice.kind == "skew":
        return kl(p, choice.skew * p + (1 - choice.skew) * q)
    b = choice.beta
    if b in (0, 1):
        return kl(q, p) if b else kl(p, q)
    m = b * p + (1 - b) * q
    return (b * kl(p, m) + (1 - b) * kl(q, m)) / (b * (1 - b) if choice.scaled else 1)


@pytest.mark.parametrize("choice", FAMILY, ids=str)
def test_each_is_its_formula_in_value_and_gradient(choice):
    teacher_NV, student_NV = logits(0), logits(1)
    found, wanted = divergence(teacher_NV, student_NV, choice), by_hand(teacher_NV, student_NV, choice)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(slope(found, student_NV), slope(wanted, student_NV), rtol=0, atol=1e-10)
    assert divergence(teacher_NV, teacher_NV, choice).abs().max() < 1e-12
    assert not divergence(teacher_NV, logits(1).detach(), choice).requires_grad, "the teacher has no gradient"


@pytest.mark.parametrize(("near", "end"), [(1e-5, 0.0), (1 - 1e-5, 1.0)])
def test_the_scaled_form_tends_to_both_kls_and_the_published_one_to_zero(near, end):
    teacher_NV, student_NV = logits(0), logits(1)
    whole = divergence(teacher_NV, student_NV, Divergence(beta=end, scaled=True))
    scaled = divergence(teacher_NV, student_NV, Divergence(beta=near, scaled=True))
    torch.testing.assert_close(scaled, whole, rtol=2e-3, atol=0)
    assert divergence(teacher_NV, student_NV, Divergence(beta=near)).max() < 1e-3 < whole.min()
    low = divergence(teacher_NV.float(), student_NV.float(), Divergence(beta=near, scaled=True))
    torch.testing.assert_close(low.double(), scaled, rtol=0.02, atol=0)


@pytest.mark.parametrize("choice", FAMILY, ids=str)
def test_the_gradient_keeps_its_scale_as_the_temperature_grows(choice):
    def size(temperature):
        student_NV = logits(1, ids=40)
        here = Divergence(choice.kind, choice.beta, choice.skew, choice.scaled, temperature)
        return slope(divergence(logits(0, ids=40), student_NV, here), student_NV).norm()

    assert 0.8 < size(32.0) / size(8.0) < 1.25  # 16 times less without T^2


def test_a_temperature_for_each_position_is_that_of_the_position():
    teacher_NV, student_NV = logits(0), logits(1)
    own_N = torch.tensor([1.0, 2.0, 1.5, 3.0, 1.0, 2.5])
    found = divergence(teacher_NV, student_NV, Divergence(beta=0.3), own_N)
    for row, own in enumerate(own_N.tolist()):
        here = Divergence(beta=0.3, temperature=own)
        torch.testing.assert_close(found[row], divergence(teacher_NV, student_NV, here)[row])
    with pytest.raises(ValueError, match=r"temperature=2\.0 and one for each position"):
        divergence(teacher_NV, student_NV, Divergence(temperature=2.0), own_N)


@pytest.mark.parametrize("choice", FAMILY, ids=str)
@pytest.mark.parametrize("longer", ["teacher", "student"])
def test_a_longer_table_is_as_if_it_ended_in_minus_infinity(choice, longer):
    long_NV, short_NV = logits(0, ids=12), logits(1, ids=9)
    pair = (long_NV, short_NV) if longer == "teacher" else (short_NV, long_NV)
    beyond = torch.arange(12) >= 9
    padded = [F.pad(x, (0, 12 - x.shape[1])).masked_fill(beyond, -math.inf) for x in pair]
    found, wanted = divergence(*pair, choice), divergence(*padded, choice)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(slope(found, pair[1]), slope(wanted, pair[1]))
    assert wanted.isfinite().all()


@pytest.mark.parametrize("choice", FAMILY, ids=str)
def test_extreme_logits_stay_finite_in_fp32_and_bf16(choice):
    for kind in (torch.float32, torch.bfloat16):
        teacher_NV = torch.tensor([[3e4, 0, -3e4], [0.0, 0, -math.inf], [80, -80, 0]], dtype=kind)
        student_NV = torch.tensor([[-3e4, 0, 3e4], [1.0, 9e3, -math.inf], [-80, 80, 0]], dtype=kind)
        found = divergence(teacher_NV, student_NV.requires_grad_(), choice)
        assert found.dtype == torch.float32 and found.isfinite().all() and (found > -1e-6).all()
        assert slope(found, student_NV).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "kl"}, "kind='kl'"),
        ({"beta": 1.1}, r"beta=1\.1"),
        ({"beta": math.nan}, "beta=nan"),
        ({"kind": "tv", "beta": 0.5}, r"beta=0\.5, scaled=False mean nothing to kind='tv'"),
        ({"kind": "skew"}, r"skew=0\.0"),
        ({"skew": 0.1}, r"skew=0\.1 means nothing"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
    ],
)
def test_what_is_out_of_range_or_unused_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Divergence(**settings)


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no ids in common"):
        divergence(logits(0), logits(1)[:, :0], Divergence())
    with pytest.raises(ValueError, match="differ in positions"):
        divergence(logits(0), logits(1, rows=5), Divergence())


def test_the_entropy_schedule_is_the_rule_position_by_position_and_turns_round():
    entropy_N = torch.tensor([0.0, 2.0, 5.0, 8.0, 11.0], requires_grad=True)
    shares = EntropySchedule()(entropy_N)
    assert shares.temperature_N.tolist() == [1.5, 1.5, 2.25, 3.0, 3.0]
    assert shares.kd_N.tolist() == shares.ce_teacher_N.tolist() == [0, 0, 0.25, 0.5, 0.5]
    assert shares.ce_truth_N.tolist() == [1, 1, 0.5, 0, 0]
    assert not any(each.requires_grad for each in shares)
    other = EntropySchedule(follow="certain")(entropy_N)
    assert other.kd_N.tolist() == [0.5, 0.5, 0.25, 0, 0] and other.temperature_N.tolist() == [
        3,
        3,
        2.25,
        1.5,
        1.5,
    ]
    assert [adaptive_temperature(x) for x in (0, 0.5, 1)] == [3.0, 2.25, 1.5]
    for settings in ({"follow": "both"}, {"min_entropy": 8.0}, {"min_temperature": 4.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            EntropySchedule(**settings)
    with pytest.raises(ValueError, match="progress=2"):
        adaptive_temperature(2)


def test_entropies_of_every_teacher_that_knows_one():
    teacher_NV = logits(0)
    wanted = torch.distributions.Categorical(logits=teacher_NV.detach()).entropy()
    torch.testing.assert_close(entropy(teacher_NV), wanted)
    assert not entropy(teacher_NV).requires_grad
    teachers = [
        DenseTeacher(teacher_NV),
        StateTeacher(teacher_NV, torch.nn.Identity()),
        SparseTeacher.of(teacher_NV, 9),
    ]
    for teacher in teachers:
        torch.testing.assert_close(teacher_entropy(teacher, chunk=4), wanted)
    assert (teacher_entropy(SparseTeacher.of(teacher_NV, 3)) < wanted).all()
    with pytest.raises(ValueError, match="a few draws"):
        teacher_entropy(SampledTeacher(torch.zeros(6, 2, dtype=torch.long)))
