"""Figures by hand, in any cut; the baselines do what their names say and score what they must."""

import math

import pytest
import torch

from quietreasoning.nn.compressor import pca
from quietreasoning.nn.moments import Moments
from quietreasoning.nn.round_trip import MeanVector, NearestNeighbour, ridge, round_trip

WIDTH = 16


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments_of(states_ND):
    found = Moments(states_ND.shape[1])
    found.update(states_ND)
    return found


def test_figures_by_hand():
    states = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    told = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    found = round_trip(states, told, torch.tensor([1.0, 1.0])).figures()
    centred = (2 * 2 - 3) / math.sqrt(13 * 5), (0 - 1) / math.sqrt(1 * 2)
    assert found["cosine"] == pytest.approx((0.6 + 0) / 2)
    assert found["centred_cosine"] == pytest.approx(sum(centred) / 2)
    assert found["relative_error"] == pytest.approx((4 / 5 + math.sqrt(5)) / 2)
    assert found["norm_ratio"] == pytest.approx((3 / 5 + 2) / 2)
    assert found["centred_r2"] == pytest.approx(1 - (16 + 5) / (13 + 1))


def test_a_perfect_copy_and_a_wrong_length():
    states, mean_D = draw(30, WIDTH) + 2, torch.full((WIDTH,), 2.0)
    copy = round_trip(states, states, mean_D).figures()
    wanted = {"cosine": 1, "centred_cosine": 1, "centred_r2": 1, "relative_error": 0, "norm_ratio": 1}
    assert copy == pytest.approx(wanted, abs=1e-9)
    longer = round_trip(states, 1.122 * states, mean_D).figures()
    assert longer["cosine"] == pytest.approx(1), "a cosine sees no length"
    assert longer["norm_ratio"] == pytest.approx(1.122) and longer["relative_error"] == pytest.approx(0.122)
    assert longer["centred_r2"] < 0.95


def test_batches_add_up_and_padding_is_never_read():
    states, told, mean_D = draw(6, 5, WIDTH), draw(6, 5, WIDTH, seed=1), draw(WIDTH, seed=2)
    counted = draw(6, 5, seed=3) > -0.5
    spoilt = [part.masked_fill(~counted[..., None], float("nan")) for part in (states, told)]
    whole = round_trip(states[counted], told[counted], mean_D).figures()
    parts = [round_trip(*(s[row] for s in spoilt), mean_D, counted[row]) for row in range(6)]
    assert sum(parts[1:], parts[0]).figures() == pytest.approx(whole)
    assert round_trip(*spoilt, mean_D, counted).figures() == pytest.approx(whole)
    assert round_trip(states, told, mean_D).figures() != pytest.approx(whole)


def test_pairs_divide_to_the_figures_and_nothing_counted_is_no_number():
    found = round_trip(draw(9, WIDTH), draw(9, WIDTH, seed=1), torch.zeros(WIDTH))
    ratio = {name: float(total / count) for name, (total, count) in found.pairs().items()}
    figures = found.figures()
    assert 1 - ratio.pop("unexplained") == pytest.approx(figures.pop("centred_r2")) and ratio == figures
    none = round_trip(draw(9, WIDTH), draw(9, WIDTH), torch.zeros(WIDTH), torch.zeros(9, dtype=torch.bool))
    assert all(math.isnan(value) for value in none.figures().values())


def test_a_state_of_length_nothing_is_no_fault():
    found = round_trip(torch.zeros(2, WIDTH), torch.zeros(2, WIDTH), torch.ones(WIDTH)).figures()
    assert found["cosine"] == 0 and found["relative_error"] == 0 and found["centred_r2"] == 1


def test_shapes_that_do_not_fit_are_refused():
    for states, told, mean_D in (
        (draw(3, 4), draw(3, 5), draw(4)),
        (draw(3, 4), draw(2, 4), draw(4)),
        (draw(3, 4), draw(3, 4), draw(5)),
    ):
        with pytest.raises(ValueError, match="do not fit; all must be of one width"):
            round_trip(states, told, mean_D)


def test_held_out_r2_of_a_compressor_is_what_its_training_curve_promised():
    mix_DD = draw(WIDTH, WIDTH, seed=9) * torch.logspace(1, -1, WIDTH)[:, None]
    train, held = draw(20000, WIDTH) @ mix_DD + 3, draw(5000, WIDTH, seed=1) @ mix_DD + 3
    moments = moments_of(train)
    for width in (2, 6, 12):
        compressor = pca(moments, width)
        found = round_trip(held, compressor(held), moments.mean_D()).figures()
        assert found["centred_r2"] == pytest.approx(float(compressor.explained_K()[-1]), abs=0.01)
        # an orthogonal projection: |P x|^2 = |x|^2 - |x - P x|^2, so the error follows from the cosine alone
        off, told = held - moments.mean_D().float(), compressor(held) - moments.mean_D().float()
        one = round_trip(off[:1], told[:1], torch.zeros(WIDTH)).figures()
        assert one["relative_error"] == pytest.approx(math.sqrt(1 - one["cosine"] ** 2), abs=1e-3)
        assert one["norm_ratio"] == pytest.approx(one["cosine"], abs=1e-3)


def test_the_mean_vector_has_a_high_cosine_and_explains_nothing():
    train, held = draw(4000, WIDTH) + 5, draw(4000, WIDTH, seed=1) + 5
    teller = MeanVector(moments_of(train))
    told = teller(draw(4000, 3))
    found = round_trip(held, told, teller.mean_D).figures()
    assert found["cosine"] > 0.97 and abs(found["centred_r2"]) < 1e-9 and found["centred_cosine"] == 0


def test_the_nearest_neighbour_remembers_and_is_the_same_in_any_chunk():
    contexts, states = draw(300, 4) + 1e4, draw(300, WIDTH, seed=1)
    asked = contexts[torch.randperm(300, generator=torch.Generator().manual_seed(2))] + 0.002
    by_hand = (asked.double()[:, None] - contexts.double()[None]).square().sum(2).argmin(1)
    for chunk in (7, 1000):
        assert torch.equal(NearestNeighbour(contexts, states, chunk)(asked), states[by_hand])
    batch = NearestNeighbour(contexts, states)(contexts.view(3, 100, 4))
    assert torch.equal(batch, states.view(3, 100, WIDTH))
    with pytest.raises(ValueError, match="at least one pair"):
        NearestNeighbour(contexts, states[:5])


def test_ridge_is_the_textbook_one():
    inputs, target = draw(400, 6) * torch.arange(1, 7) + 2, draw(400, WIDTH, seed=1)
    target = target + inputs @ draw(6, WIDTH, seed=2)
    off, mean = (inputs - inputs.mean(0)).double(), target.mean(0).double()
    added = 0.1 * off.square().mean() * len(off)
    weights = torch.linalg.solve(off.T @ off + added * torch.eye(6), off.T @ (target.double() - mean))
    told = ridge(moments_of(torch.cat([inputs, target], 1)), 6, 0.1)(inputs)
    torch.testing.assert_close(told.double(), off @ weights + mean, atol=1e-3, rtol=1e-3)


def test_on_targets_that_do_not_depend_on_the_context_nothing_beats_the_mean_vector():
    contexts, target = draw(600, 8), 4 + 0.5 * draw(600, WIDTH, seed=1)
    joint = moments_of(torch.cat([contexts[:300], target[:300]], 1))
    mean_D = moments_of(target[:300]).mean_D()
    tellers = {
        "mean": MeanVector(moments_of(target[:300])),
        "nearest": NearestNeighbour(contexts[:300], target[:300]),
        "ridge": ridge(joint, 8),
    }
    skill, cosine = {}, {}
    for name, teller in tellers.items():
        found = round_trip(target[300:], teller(contexts[300:]), mean_D).figures()
        skill[name], cosine[name] = found["centred_r2"], found["cosine"]
    assert skill["mean"] == pytest.approx(0, abs=1e-6) and skill["ridge"] < 0 and skill["nearest"] < -0.5
    assert min(cosine.values()) > 0.97, "and yet every cosine looks well"
