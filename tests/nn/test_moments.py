"""Moments are those of the counted states, however they were cut, merged, resumed, shifted or rounded."""

import socket

import pytest
import torch
import torch.distributed as dist

from quietreasoning.nn.moments import CHUNK, Moments, without_first

WIDTH = 12


def states(seed=0, count=900, offset=3.0):
    """Correlated states whose mean is larger than most of their spread."""
    mix_DD = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7))
    noise_ND = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return noise_ND @ mix_DD + offset * torch.arange(WIDTH)


def moments_of(*parts, **options):
    found = Moments(WIDTH, **options)
    for part in parts:
        found.update(part)
    return found


def direct(states_ND):
    """Mean, covariance and second moment by definition, in float64."""
    exact_ND = states_ND.double()
    centred_ND = exact_ND - exact_ND.mean(0)
    count = len(exact_ND)
    return exact_ND.mean(0), centred_ND.T @ centred_ND / count, exact_ND.T @ exact_ND / count


def same(one, two, tolerance=1e-6):
    close = {"rtol": tolerance, "atol": tolerance}
    assert float(one.count) == pytest.approx(float(two.count))
    torch.testing.assert_close(one.mean_D(), two.mean_D(), **close)
    torch.testing.assert_close(one.covariance_DD(), two.covariance_DD(), **close)
    torch.testing.assert_close(one.second_DD(), two.second_DD(), **close)


def test_they_equal_the_definition():
    found, states_ND = moments_of(states()), states()
    for got, wanted in zip(
        (found.mean_D(), found.covariance_DD(), found.second_DD()), direct(states_ND), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-5)
    assert found.count == len(states_ND) and found.covariance_DD().dtype == torch.float64
    assert torch.equal(found.covariance_DD(), found.covariance_DD().T)


def test_a_mean_ten_thousand_times_the_spread_cancels_nothing():
    states_ND = states() + 1e5
    wanted_DD = direct(states_ND)[1]
    error = (moments_of(states_ND).covariance_DD() - wanted_DD).norm() / wanted_DD.norm()
    naive_DD = states_ND.T @ states_ND / len(states_ND) - torch.outer(states_ND.mean(0), states_ND.mean(0))
    assert error < 1e-5
    assert (naive_DD - wanted_DD).norm() > 100 * error * wanted_DD.norm(), "the trap this test guards is gone"


def test_chunks_shards_and_their_order_do_not_matter():
    whole, parts = moments_of(states()), states().split(100)
    same(moments_of(*parts), whole)
    same(moments_of(*reversed(parts)), whole)
    shards = [moments_of(part) for part in parts]  # each with its own reference
    same(sum(shards[1:], shards[0]), whole)
    same(sum(reversed(shards[1:]), Moments(WIDTH)) + shards[0], whole)
    same(shards[0] + (shards[1] + shards[2]), (shards[2] + shards[0]) + shards[1], 1e-9)
    assert not torch.equal(shards[0].reference_D, shards[1].reference_D)
    assert shards[0].count == 100, "a sum leaves its operands alone"


def test_more_states_than_one_product_takes():
    states_ND = states(count=2 * CHUNK + 5)
    torch.testing.assert_close(
        moments_of(states_ND).covariance_DD(), direct(states_ND)[1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("content", [1e9, float("nan")])
def test_padding_is_never_read(content):
    states_BTD = states(count=40).view(4, 10, WIDTH)
    valid_BT = torch.arange(10)[None] >= torch.tensor([0, 3, 9, 10])[:, None]  # the last row is all padding
    spoilt_BTD = states_BTD.masked_fill(~valid_BT[..., None], content)
    clean, spoilt = Moments(WIDTH), Moments(WIDTH)
    clean.update(states_BTD, valid_BT)
    spoilt.update(spoilt_BTD, valid_BT)
    for name, wanted in clean.state_dict().items():
        assert torch.equal(spoilt.state_dict()[name], wanted)
    torch.testing.assert_close(clean.mean_D(), direct(states_BTD[valid_BT])[0], rtol=1e-6, atol=1e-6)


def test_the_first_real_positions_are_left_out_wherever_padding_stands():
    valid_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    kept = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert torch.equal(without_first(valid_BT), kept)
    assert torch.equal(without_first(valid_BT, 0), valid_BT)


def test_states_that_are_not_finite_are_refused_and_change_nothing():
    found = moments_of(states())
    before = found.state_dict()
    broken = states(1)
    broken[3, 2] = float("inf")
    with pytest.raises(ValueError, match="not finite; mask padding"):
        found.update(broken)
    assert all(torch.equal(found.state_dict()[name], value) for name, value in before.items())


def test_interrupted_and_resumed_is_the_same_to_the_bit():
    first, second = states().split(500)
    whole = moments_of(first, second)
    running = moments_of(first)
    half = running.state_dict()
    running.update(second)  # must not reach what was saved
    resumed = Moments.load(half)
    resumed.update(second)
    for name, wanted in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], wanted), name


def test_another_reference_changes_nothing_but_rounding():
    found = moments_of(states())
    same(found.about(torch.full((WIDTH,), -7.0)), found, 1e-9)
    same(moments_of(states(), reference_D=torch.zeros(WIDTH)), found, 1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_weighted_merge_mixes_the_means_whatever_the_counts(weight):
    text, chains = moments_of(states(0, 900)), moments_of(states(1, 50, offset=-2.0))
    mixed = text.blend(chains, weight)
    for name in ("mean_D", "second_DD"):
        wanted = (1 - weight) * getattr(text, name)() + weight * getattr(chains, name)()
        torch.testing.assert_close(getattr(mixed, name)(), wanted, rtol=1e-9, atol=1e-9)
    assert mixed.count == 950
    if weight == 0.3:
        within_DD = 0.7 * text.covariance_DD() + 0.3 * chains.covariance_DD()
        between_D = text.mean_D() - chains.mean_D()
        wanted_DD = within_DD + 0.21 * torch.outer(between_D, between_D)
        torch.testing.assert_close(mixed.covariance_DD(), wanted_DD, rtol=1e-9, atol=1e-9)


def test_reduced_precision_elsewhere_in_the_process_does_not_reach_the_sums():
    states_ND = states()
    wanted = moments_of(states_ND)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = moments_of(states_ND)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    same(found, wanted, 1e-9)


def test_states_in_bfloat16_count_as_what_they_hold():
    short_ND = states().bfloat16()
    torch.testing.assert_close(
        moments_of(short_ND).covariance_DD(), direct(short_ND.float())[1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda m: m.update(torch.zeros(3, WIDTH + 1)), "width 13, moments of width 12"),
        (lambda m: m.update(torch.zeros(3, WIDTH), torch.ones(2, dtype=torch.bool)), r"bool of shape \(3,\)"),
        (lambda m: m.update(torch.zeros(3, WIDTH), torch.ones(3)), "got torch.float32"),
        (lambda m: m + Moments(WIDTH + 1), "same layer of the same model"),
        (lambda m: m.blend(m, 1.5), "weight=1.5 is no share"),
        (lambda m: m.blend(m, 0.5), "the first set has seen no states"),
        (lambda m: m.mean_D(), "no states were seen"),
        (lambda m: Moments(0), "width=0"),
    ],
)
def test_misuse_is_told_with_its_cure(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong(Moments(WIDTH))


def _rank_states(rank):
    return states(rank, 30 * rank)  # the first rank has seen none


def _rank(rank, world, port, answers):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    mine = Moments(WIDTH)
    mine.update(_rank_states(rank))
    total = mine.over_ranks()
    answers.put((rank, float(mine.count), {name: v.tolist() for name, v in total.state_dict().items()}))
    dist.destroy_process_group()


def test_ranks_add_up_though_one_has_seen_nothing():
    context, world = torch.multiprocessing.get_context("spawn"), 3
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = context.Queue()
    children = [
        context.Process(target=_rank, args=(r, world, port, answers), daemon=True) for r in range(world)
    ]
    for child in children:
        child.start()
    found = sorted(answers.get(timeout=90) for _ in children)
    for child in children:
        child.join(30)
    alone = moments_of(*(_rank_states(rank) for rank in range(world)))
    for rank, own, state in found:
        total = Moments.load({name: torch.tensor(v, dtype=torch.float64) for name, v in state.items()})
        same(total, alone)
        assert own == 30 * rank, "what a rank holds itself stays its own"
        assert state == found[0][2], "every rank has the same total"


def test_one_process_needs_no_group():
    found = moments_of(states())
    same(found.over_ranks(), found, 1e-12)
