"""Slot losses: values by hand, the order of good and collapsed slots, rows that stay alone."""

import math

import pytest
import torch

from quietreasoning.losses.latent import (
    chance_level,
    info_nce,
    next_latent,
    orthogonality,
    read_entropy,
    slot_health,
    spread,
)

R, K, D = 4, 6, 24
EVERY = torch.ones(R, dtype=torch.bool)
SOME = torch.tensor([True, False, True, False])


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slots(kind):
    if kind == "zero":
        return torch.zeros(R, K, D)
    if kind == "equal":
        return random(R, 1, D).expand(R, K, D)
    return torch.linalg.qr(random(R, D, K))[0].mT * D**0.5  # each channel has unit scale


def per_row(loss):
    """The losses whose first arguments are rows and whose last is the mask, as functions of one input."""
    return {
        "next_latent": lambda x, rows: next_latent(x, random(len(x), K, D, seed=1), rows),
        "spread": spread,
        "orthogonality": orthogonality,
        "info_nce": lambda x, rows: info_nce(
            x[:, 0], x[:, 1] + 1, random(1, 5, D, seed=2).expand(len(x), 5, D), rows, 0.1
        ),
    }[loss]


@pytest.mark.parametrize("loss", ["spread", "orthogonality", "info_nce"])
def test_halves_add_up_and_masked_rows_do_not_matter(loss):
    run, x = per_row(loss), random(R, K, D)
    whole = run(x, EVERY)
    halves = [run(x[s], EVERY[s]) for s in (slice(0, 1), slice(1, 4))]
    for i in range(len(whole)):
        torch.testing.assert_close(whole[i], halves[0][i] + halves[1][i])
    broken = x.clone()
    broken[~SOME] = float("nan")
    masked, chosen = run(broken, SOME), run(x[SOME], EVERY[:2])
    for i in range(len(whole)):
        torch.testing.assert_close(masked[i], chosen[i])


@pytest.mark.parametrize("loss", ["next_latent", "spread", "orthogonality", "info_nce"])
def test_gradients_in_double_precision(loss):
    x = random(2, K, D, dtype=torch.float64).mul(0.3).requires_grad_()
    if loss == "info_nce":
        fixed = x.detach().clone()
        negatives = random(2, 5, D, seed=2, dtype=torch.float64)
        run = lambda q: info_nce(q[:, 0], fixed[:, 1], negatives, EVERY[:2], 0.1)[0]  # noqa: E731
    else:
        run = lambda q: per_row(loss)(q, EVERY[:2])[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, x)


@pytest.mark.parametrize("loss", ["next_latent", "spread", "orthogonality"])
def test_zero_slots_have_a_finite_gradient(loss):
    x = torch.zeros(R, K, D, requires_grad=True)
    total, _ = per_row(loss)(x, EVERY)
    total.backward()
    assert total.isfinite() and x.grad.isfinite().all()


def test_next_latent_is_0_for_the_same_direction_2_for_none_4_for_the_opposite():
    x = random(R, K, D)
    for factor, wanted in ((3.0, 0.0), (-0.5, 4.0), (0.0, 2.0)):
        total, count = next_latent(factor * x, x, EVERY)
        assert total.item() / int(count) == pytest.approx(wanted, abs=1e-4)
    total, count = next_latent(x, random(R, K, D, seed=1), SOME)
    cosine = torch.nn.functional.cosine_similarity(x, random(R, K, D, seed=1), dim=-1)
    assert total.item() == pytest.approx((2 - 2 * cosine[SOME]).mean(1).sum().item(), rel=1e-4)
    assert count == 2


def test_next_latent_compares_the_same_slot_and_leaves_the_target_alone():
    x = slots("orthonormal")
    assert next_latent(x, x, EVERY)[0] < 1e-3 < next_latent(x, x.roll(1, 1), EVERY)[0]
    pred, target = random(R, K, D).requires_grad_(), random(R, K, D, seed=1).requires_grad_()
    next_latent(pred, target, SOME)[0].backward()
    assert target.grad is None and pred.grad[SOME].any() and not pred.grad[~SOME].any()


def test_good_slots_cost_less_than_collapsed_ones():
    score = {
        kind: {name: per_row(name)(slots(kind), EVERY)[0].item() / R for name in ("spread", "orthogonality")}
        for kind in ("zero", "equal", "orthonormal")
    }
    assert score["orthonormal"]["orthogonality"] == pytest.approx(0, abs=1e-6)
    assert score["zero"]["orthogonality"] == pytest.approx(1 / (K - 1))
    assert score["equal"]["orthogonality"] == pytest.approx(1, abs=1e-4)
    assert score["zero"]["spread"] == score["equal"]["spread"] == pytest.approx(0.99)
    assert score["orthonormal"]["spread"] < 0.3
    mixed = {kind: s["spread"] + 0.05 * s["orthogonality"] for kind, s in score.items()}
    assert mixed["orthonormal"] < mixed["zero"] < mixed["equal"]


def test_orthogonality_is_blind_to_length_and_finite_for_one_slot():
    x = random(R, K, D)
    torch.testing.assert_close(orthogonality(5 * x, EVERY), orthogonality(x, EVERY), rtol=1e-4, atol=1e-5)
    assert orthogonality(x[:, :1], EVERY)[0].item() == pytest.approx(0, abs=1e-6)


def test_spread_by_hand():
    x = torch.tensor([[[0.5, 3.0], [-0.5, -3.0]]])  # std 0.5 and 3
    assert spread(x, EVERY[:1])[0].item() == pytest.approx((1 - math.sqrt(0.25 + 1e-4)) / 2)


def test_sparsity_is_the_entropy_of_reads():
    one, alike = torch.eye(4)[None], torch.full((1, 4, 4), 0.25)
    valid_RT = torch.tensor([[True, True, False, False]])
    assert read_entropy(one, valid_RT)[0].item() == pytest.approx(0, abs=1e-6)
    assert read_entropy(alike, valid_RT)[0].item() == pytest.approx(1)
    half = torch.cat([one[:, :1], alike[:, :3]], 1)
    assert read_entropy(half, valid_RT)[0].item() == pytest.approx(0.5)
    total, count = read_entropy(alike, torch.zeros(1, 4, dtype=torch.bool))
    assert (total.item(), int(count)) == (0, 0)


def test_the_slope_of_the_entropy_sharpens_reads():
    logits = random(R, 3, K).requires_grad_()
    entropy = read_entropy(logits.softmax(-1), torch.ones(R, 3, dtype=torch.bool))[0]
    slope = torch.autograd.grad(entropy, logits)[0]
    sharper = read_entropy((logits - slope).softmax(-1), torch.ones(R, 3, dtype=torch.bool))[0]
    assert sharper < entropy


def test_health_tells_good_slots_from_collapsed_ones():
    for kind, cosine, rank in (("zero", 0, 0), ("equal", 1, 1), ("orthonormal", 0, K)):
        found_cosine, found_rank = slot_health(slots(kind))
        torch.testing.assert_close(found_cosine, torch.full((R,), float(cosine)), rtol=0, atol=1e-4)
        torch.testing.assert_close(found_rank, torch.full((R,), float(rank)), rtol=1e-3, atol=1e-3)
    two = torch.cat([slots("orthonormal")[:, :1]] * 3 + [slots("orthonormal")[:, 1:2]] * 3, 1)
    torch.testing.assert_close(slot_health(two)[1], torch.full((R,), 2.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("negatives", [1, 7, 63])
def test_info_nce_without_knowledge_costs_the_log_of_the_candidates(negatives):
    counted_RM = torch.ones(R, negatives, dtype=torch.bool)
    chance, rows = chance_level(counted_RM, EVERY)
    assert chance.item() == pytest.approx(R * math.log(1 + negatives)) and rows == R
    nothing = info_nce(torch.zeros(R, D), random(R, D), random(R, negatives, D, seed=1), EVERY, 0.1)
    assert nothing[0].item() == pytest.approx(chance.item(), rel=1e-5) and nothing[1] == 0
    collapsed = random(1, 1, D)
    same = info_nce(collapsed[0].expand(R, D), collapsed[0], collapsed.expand(R, negatives, D), EVERY, 0.1)
    assert same[0].item() == pytest.approx(chance.item(), rel=1e-5) and same[1] == 0


def test_info_nce_at_random_is_near_chance():
    rows, width, negatives = 256, 512, 31
    many = torch.ones(rows, dtype=torch.bool)
    total, hits, count = info_nce(
        random(rows, width), random(rows, width, seed=1), random(rows, negatives, width, seed=2), many, 0.5
    )
    assert total.item() / int(count) == pytest.approx(math.log(32), rel=0.02)
    assert int(hits) < 30


def test_info_nce_equals_its_formula_and_knows_the_answer():
    query, key, negatives = random(R, D), random(R, D, seed=1), random(R, 5, D, seed=2)
    total, _, count = info_nce(query, key, negatives, SOME, 0.2)
    wanted = 0.0
    for row in (0, 2):
        others = [torch.cosine_similarity(query[row], x, dim=0) for x in (key[row], *negatives[row])]
        logits = torch.stack(others) / 0.2
        wanted += (logits.logsumexp(0) - logits[0]).item()
    assert total.item() == pytest.approx(wanted, rel=1e-4) and count == 2
    total, hits, _ = info_nce(key, key, negatives, EVERY, 0.05)
    assert total < 0.1 and hits == R


def test_info_nce_leaves_duplicates_out_and_key_and_negatives_alone():
    query, key, negatives = (random(R, D).requires_grad_() for _ in range(3))
    negatives = torch.cat([key[:, None], random(R, 3, D, seed=2)], 1).detach().requires_grad_()
    counted_RM = torch.tensor([[False, True, True, True]]).repeat(R, 1)
    got = info_nce(query, key, negatives, EVERY, 0.1, counted_RM)
    torch.testing.assert_close(got, info_nce(query, key, negatives[:, 1:], EVERY, 0.1))
    got[0].backward()
    assert query.grad.any() and key.grad is None and negatives.grad is None
    counted_RM[0] = False  # nobody to tell the key from
    total, _, count = info_nce(query, key, negatives, EVERY, 0.1, counted_RM)
    assert count == R - 1 and total.isfinite()
    assert chance_level(counted_RM, EVERY)[1] == R - 1


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"tau=0.*above 0"):
        info_nce(random(R, D), random(R, D), random(R, 2, D), EVERY, 0)


@pytest.mark.parametrize("loss", ["spread", "orthogonality"])
def test_bf16_slots_are_measured_in_fp32(loss):
    low = random(R, K, D).bfloat16()
    total, _ = per_row(loss)(low, EVERY)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, per_row(loss)(low.float(), EVERY)[0])
