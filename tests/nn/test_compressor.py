"""Closed-form compressors are optimal, nested, deterministic, invertible; metric and target are honoured."""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, Qwen3Config

from quietreasoning.nn.compressor import Compressor, TiedLinear, fisher_metric, metric_pca, pca, regression
from quietreasoning.nn.moments import Moments

WIDTH, COUNT = 24, 3000


def states(seed=0, count=COUNT, width=WIDTH, offset=2.0):
    """Directions of standard deviation 3 down to 0.03, correlated, around a mean."""
    mix_DD = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(7)))[0]
    noise_ND = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return noise_ND * torch.logspace(0.5, -1.5, width) @ mix_DD + offset * mix_DD[5] * width**0.5


def moments_of(states_ND):
    found = Moments(states_ND.shape[1])
    found.update(states_ND)
    return found


def error(compressor, states_ND):
    return float((compressor(states_ND).double() - states_ND.double()).square().sum(1).mean())


def random_metric(seed=3):
    root_DD = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root_DD.T * torch.logspace(1, -2, WIDTH, dtype=torch.float64) @ root_DD


@pytest.fixture(scope="module")
def moments():
    return moments_of(states())


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("width", [1, 5, 23, 24])
def test_the_error_is_the_sum_of_the_eigenvalues_left_out(moments, width, centred):
    matrix_DD = moments.covariance_DD() if centred else moments.second_DD()
    dropped = float(torch.linalg.eigvalsh(matrix_DD).flip(0)[width:].sum())
    found = pca(moments, width, centred=centred)
    assert error(found, states()) == pytest.approx(dropped, rel=1e-4, abs=1e-6 * float(matrix_DD.trace()))
    explained = 1 - dropped / float(matrix_DD.trace())
    assert float(found.explained_K()[-1]) == pytest.approx(explained, rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_no_gradient_run_on_the_same_states_goes_below(moments, tied):
    states_ND, best = states(), error(pca(moments, 4, centred=False), states())
    torch.manual_seed(0)
    trained = TiedLinear(WIDTH, 4)
    decoder_KD = torch.nn.Parameter(trained.weight_KD.detach().clone())
    optimizer = torch.optim.Adam([trained.weight_KD, decoder_KD], 2e-2)
    for _ in range(400):
        code_NK = trained.compress(states_ND)
        loss = F.mse_loss(trained.decompress(code_NK) if tied else code_NK @ decoder_KD, states_ND) * WIDTH
        assert loss.item() >= best * (1 - 1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.05 * best, "the run must have come near, or the test says little"


def test_a_mean_is_worth_having_but_never_more_than_one_direction(moments):
    for width in range(1, 12):
        centred = error(pca(moments, width), states())
        assert centred <= error(pca(moments, width, centred=False), states()) * (1 + 1e-5)
        assert centred >= error(pca(moments, width + 1, centred=False), states()) * (1 - 1e-5)


@pytest.mark.parametrize("whiten", [True, False])
def test_one_solve_serves_every_width(moments, whiten):
    for solve in (pca, lambda m, k=None, **o: metric_pca(m, random_metric(), k, **o)):
        whole = solve(moments, whiten=whiten)
        for width in (1, 7, 24):
            alone = solve(moments, width, whiten=whiten)
            for name, wanted in alone.state_dict().items():
                assert torch.equal(whole.sliced(width).state_dict()[name], wanted), name
            assert torch.equal(whole.explained_K()[:width], alone.explained_K())
    assert bool((whole.explained_K().diff() >= 0).all())
    assert float(whole.explained_K()[-1]) == pytest.approx(1)


def test_rows_are_orthonormal_and_signs_fixed(moments):
    rows_KD = pca(moments).encoder_KD
    torch.testing.assert_close(rows_KD @ rows_KD.T, torch.eye(WIDTH), atol=1e-5, rtol=0)
    assert bool((rows_KD.gather(1, rows_KD.abs().argmax(1, keepdim=True)) > 0).all())
    turned = moments_of(torch.cat([states()[1000:], states()[:1000]]))  # other rounding, other chunks
    torch.testing.assert_close(pca(turned).encoder_KD, rows_KD, atol=1e-3, rtol=0)


@pytest.mark.parametrize("solved", ["pca", "uncentred", "metric", "regression"])
def test_whitened_codes_vary_alike_and_not_together(moments, solved):
    states_ND = states()
    compressor = {
        "pca": lambda: pca(moments),
        "uncentred": lambda: pca(moments, centred=False),
        "metric": lambda: metric_pca(moments, random_metric()),
        "regression": lambda: regression(moments, 14),
    }[solved]()
    code_NK = compressor.compress(states_ND[:, : compressor.hidden_size]).double()
    wanted_K = compressor.values_K.double() / compressor.scale_K.double().square()  # 1 up to eps
    torch.testing.assert_close(code_NK.T @ code_NK / COUNT, wanted_K.diag(), atol=2e-3, rtol=0)
    assert float(wanted_K[:8].min()) > 0.999
    if solved != "uncentred":
        assert float(code_NK.mean(0).abs().max()) < 1e-3


def test_all_directions_give_the_states_back_and_codes_survive_the_way_round(moments):
    for compressor in (pca(moments), metric_pca(moments, random_metric())):
        torch.testing.assert_close(compressor(states()), states(), atol=2e-3, rtol=1e-3)
    code_NK = torch.randn(50, 6)
    for compressor in (pca(moments, 6), metric_pca(moments, random_metric(), 6)):
        torch.testing.assert_close(
            compressor.compress(compressor.decompress(code_NK)), code_NK, atol=1e-3, rtol=1e-3
        )


def test_whitening_changes_codes_but_not_the_round_trip(moments):
    white, plain = pca(moments, 6), pca(moments, 6, whiten=False)
    torch.testing.assert_close(white(states()), plain(states()), atol=1e-4, rtol=1e-4)
    distance_NK = (white.compress(states()) - white.compress(states(1))).square() * white.scale_K.square()
    wanted_NK = (plain.compress(states()) - plain.compress(states(1))).square()
    torch.testing.assert_close(distance_NK, wanted_NK, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("case", ["constant", "one direction", "fewer states than width"])
def test_directions_without_variance_stay_finite(case):
    states_ND = {
        "constant": torch.ones(50, WIDTH),
        "one direction": torch.ones(50, WIDTH) + torch.randn(50, 1) * torch.ones(WIDTH),
        "fewer states than width": states(count=5),
    }[case]
    compressor = pca(moments_of(states_ND))
    assert bool(compressor.compress(states_ND).isfinite().all()) and float(compressor.values_K.min()) >= 0
    torch.testing.assert_close(compressor(states_ND), states_ND, atol=1e-3, rtol=1e-3)
    assert float(compressor.explained_K()[-1]) <= 1 + 1e-6


def test_the_identity_as_metric_is_pca(moments):
    plain, weighted = pca(moments, 6), metric_pca(moments, torch.eye(WIDTH) * 5)
    torch.testing.assert_close(weighted.sliced(6)(states()), plain(states()), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(weighted.sliced(6).explained_K(), plain.explained_K(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        weighted.sliced(6).compress(states()), plain.compress(states()), atol=1e-3, rtol=1e-3
    )


def test_on_its_own_metric_the_weighted_code_is_never_worse_and_reaches_its_bound(moments):
    metric_DD, states_ND = random_metric(), states().double()
    floored_DD = metric_DD + 1e-3 * metric_DD.diagonal().mean() * torch.eye(WIDTH)

    def weighted(compressor):
        missed_ND = compressor(states()).double() - states_ND
        return float(((missed_ND @ floored_DD) * missed_ND).sum(1).mean())

    total, gained = float((floored_DD @ moments.covariance_DD()).trace()), []
    for width in (1, 3, 8, 16):
        mine, plain = weighted(metric_pca(moments, metric_DD, width)), weighted(pca(moments, width))
        explained = float(metric_pca(moments, metric_DD, width).explained_K()[-1])
        assert mine == pytest.approx(total * (1 - explained), rel=1e-3)
        assert mine <= plain * (1 + 1e-5)
        gained.append(plain / mine)
    assert max(gained) > 1.5, "the metric must matter, or the test says little"


def test_the_fisher_metric_tells_how_far_next_token_probabilities_move():
    torch.manual_seed(0)
    head_VD, states_ND = torch.randn(40, 8, dtype=torch.float64), torch.randn(60, 8, dtype=torch.float64)
    logits_NV = states_ND @ head_VD.T * 0.3
    metric_DD = fisher_metric(head_VD * 0.3, logits_NV.softmax(-1))
    assert float(torch.linalg.eigvalsh(metric_DD).min()) > 0
    for direction_D in torch.randn(5, 8, dtype=torch.float64) * 1e-3:
        moved_NV = ((states_ND + direction_D) @ head_VD.T * 0.3).log_softmax(-1)
        moved = F.kl_div(moved_NV, logits_NV.log_softmax(-1), log_target=True, reduction="batchmean")
        assert float(moved) == pytest.approx(float(direction_D @ metric_DD @ direction_D) / 2, rel=0.05)


def told(count=COUNT, seed=0):
    """Inputs [N, 14] of which three faint directions tell a target [N, 10]."""
    inputs_ND = states(seed, count, 14)
    map_DE = torch.randn(14, 3, generator=torch.Generator().manual_seed(1)) / inputs_ND.std(0)[:, None]
    back_KE = torch.randn(3, 10, generator=torch.Generator().manual_seed(2))
    noise_NE = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed + 50))
    return inputs_ND, (inputs_ND - inputs_ND.mean(0)) @ map_DE @ back_KE + 0.1 * noise_NE + 4.0


def test_a_regression_at_full_width_is_ridge_regression_and_below_it_the_best_of_its_rank():
    inputs_ND, target_NE = told()
    joint = moments_of(torch.cat([inputs_ND, target_NE], 1))
    centred_ND, off_NE = (inputs_ND - inputs_ND.mean(0)).double(), (target_NE - target_NE.mean(0)).double()
    map_DE = torch.linalg.lstsq(centred_ND, off_NE).solution
    whole = regression(joint, 14, ridge=1e-9)
    assert whole.width == 10
    wanted_NE = centred_ND @ map_DE + target_NE.mean(0)
    torch.testing.assert_close(whole(inputs_ND).double(), wanted_NE, atol=1e-2, rtol=1e-3)
    for rank in (1, 2, 3):
        missed = (whole.sliced(rank)(inputs_ND) - target_NE).double().square().sum()
        assert 1 - float(missed / off_NE.square().sum()) == pytest.approx(
            float(whole.explained_K()[rank - 1]), abs=1e-4
        )
        u, s, v = torch.linalg.svd(centred_ND @ map_DE, full_matrices=False)  # Eckart-Young on the fitted
        best = (off_NE - (u[:, :rank] * s[:rank]) @ v[:rank]).square().sum()
        assert float(missed) == pytest.approx(float(best), rel=1e-3)
    through_pca = pca(moments_of(inputs_ND), 3)
    code_NK = through_pca.compress(inputs_ND).double()
    blind = (off_NE - code_NK @ torch.linalg.lstsq(code_NK, off_NE).solution).square().sum()
    assert float(missed) < 0.5 * float(blind), "the target, not the variance, must choose the directions"


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_share_a_ridge_explains_is_the_one_it_has(ridge):
    inputs_ND, target_NE = told()
    found = regression(moments_of(torch.cat([inputs_ND, target_NE], 1)), 14, ridge=ridge)
    for rank in (1, 4, 10):
        missed = (found.sliced(rank)(inputs_ND) - target_NE).square().sum()
        share = 1 - missed / (target_NE - target_NE.mean(0)).square().sum()
        assert float(found.explained_K()[rank - 1]) == pytest.approx(float(share), abs=1e-3)


@pytest.mark.parametrize("family", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("hidden", [2048, 3072])
def test_ratios_and_counts_follow_the_width_of_the_model(family, hidden):
    width_of_model = family(hidden_size=hidden).hidden_size
    table = {
        2048: {64: (32, 131_072), 128: (16, 262_144), 256: (8, 524_288), 512: (4, 1_048_576)},
        3072: {64: (48, 196_608), 128: (24, 393_216), 256: (12, 786_432), 512: (6, 1_572_864)},
    }[width_of_model]
    rows_KD, none_D = torch.zeros(512, width_of_model), torch.zeros(width_of_model)
    whole = Compressor(rows_KD, rows_KD, none_D, none_D, *torch.zeros(3, 512))
    for width, (ratio, numbers) in table.items():
        assert whole.sliced(width).ratio == ratio and whole.sliced(width).matrix_parameters == numbers


def test_a_trained_matrix_settles_into_the_same_round_trip(moments):
    torch.manual_seed(0)
    tied = TiedLinear(WIDTH, 5, torch.full((WIDTH,), 0.3))
    with torch.no_grad():
        tied.weight_KD.add_(0.1 * torch.randn(5, WIDTH))  # no longer orthonormal
    settled = tied.settled(moments)
    torch.testing.assert_close(settled(states()), tied(states()).detach(), atol=1e-4, rtol=1e-4)
    code_NK = settled.compress(states())
    torch.testing.assert_close(code_NK.T @ code_NK / COUNT, torch.eye(5), atol=1e-3, rtol=0)
    total = float((states() - 0.3).square().sum(1).mean())
    for width in (2, 5):
        assert 1 - error(settled.sliced(width), states()) / total == pytest.approx(
            float(settled.explained_K()[width - 1]), abs=1e-4
        )


def test_a_trained_matrix_may_start_from_the_solution_and_stay_there(moments):
    best = pca(moments, 5)
    tied = TiedLinear.start(best)
    torch.testing.assert_close(tied(states()), best(states()), atol=1e-4, rtol=1e-4)
    F.mse_loss(tied(states()), states()).backward()
    assert float(tied.weight_KD.grad.norm()) < 1e-4 * float(tied.weight_KD.detach().norm())
    settled = tied.settled(moments)
    torch.testing.assert_close(settled.explained_K(), best.explained_K(), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="start from pca"):
        TiedLinear.start(metric_pca(moments, random_metric(), 5))


def test_autocast_and_bfloat16_states_do_not_reach_the_arithmetic(moments):
    compressor, states_ND = pca(moments, 12), states()
    wanted_NK = compressor.compress(states_ND)
    wanted_ND = compressor.decompress(wanted_NK)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compressor.compress(states_ND), wanted_NK)
        assert torch.equal(compressor.decompress(wanted_NK), wanted_ND)
        assert compressor(states_ND.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(
        compressor.compress(states_ND.bfloat16()), compressor.compress(states_ND.bfloat16().float())
    )


def test_gradients_pass_through_and_nothing_in_it_learns(moments):
    compressor, states_ND = pca(moments, 4), states(count=6).requires_grad_()
    compressor(states_ND).sum().backward()
    assert states_ND.grad.abs().sum() > 0 and not list(compressor.parameters())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda m: pca(m, 0), "width=0 of the code must lie between 1 and 24"),
        (lambda m: pca(m, 25), "between 1 and 24"),
        (lambda m: pca(m, 5).sliced(6), "between 1 and 5"),
        (lambda m: pca(m, 5).compress(torch.zeros(2, 23)), "states of width 23, this compressor takes 24"),
        (lambda m: pca(m, 5).decompress(torch.zeros(2, 24)), "codes of width 24, this compressor takes 5"),
        (lambda m: metric_pca(m, torch.eye(23)), "symmetric, 24 x 24"),
        (lambda m: metric_pca(m, torch.randn(24, 24)), "symmetric"),
        (lambda m: metric_pca(m, -torch.eye(24)), "positive definite"),
        (lambda m: metric_pca(m, torch.eye(24), ridge=0.0), "a ridge above 0"),
        (lambda m: regression(m, 24), "inputs=24 must leave a target: 1 to 23"),
        (lambda m: pca(Moments(24)), "no states were seen"),
        (lambda m: TiedLinear(24, 25), "between 1 and 24"),
    ],
)
def test_misuse_is_told_with_its_cure(moments, wrong, words):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=words):
        wrong(moments)


def test_dependent_inputs_without_a_ridge_are_refused():
    inputs_ND = states(count=100)[:, :3]
    twice = moments_of(torch.cat([inputs_ND, inputs_ND, inputs_ND[:, :2]], 1))
    with pytest.raises(ValueError, match="depend on each other; give a ridge above 0"):
        regression(twice, 6, ridge=0.0)
    assert bool(regression(twice, 6)(torch.zeros(1, 6)).isfinite().all())
