"""Controls do to thoughts what they say, to each row by itself."""

import pytest
import torch

from quietreasoning.contract import CONTROLS
from quietreasoning.nn.corrupt import corrupt

WIDTHS = [5, 16, 24, 33]


def thoughts(rows=4, count=3, width=24, seed=100):
    return torch.randn(rows, count, width, generator=torch.Generator().manual_seed(seed)) * 3


def run(control, thoughts_BKD, seeds=None, real=None):
    filler_D = torch.arange(thoughts_BKD.shape[2]).float()
    before = thoughts_BKD.clone()
    found = corrupt(thoughts_BKD, control, filler_D, seeds or list(range(len(thoughts_BKD))), real)
    assert torch.equal(thoughts_BKD, before), "the thoughts given stay as they are"
    assert found.shape == thoughts_BKD.shape and found.dtype == thoughts_BKD.dtype
    return found


def test_zero_and_filler():
    assert not run("zero", thoughts()).any()
    assert (run("filler", thoughts()) == torch.arange(24).float()).all()


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_shuffle_gives_every_row_another_rows_thoughts(rows):
    own = thoughts(rows)
    moved = run("shuffle", own)
    for row in range(rows):
        assert torch.equal(moved[row], own[row - 1])
    with pytest.raises(ValueError, match="at least 2 prompts"):
        run("shuffle", thoughts(1))


def test_mean_is_one_thought_for_all():
    own = thoughts()
    mean = run("mean", own)
    for row in range(4):
        torch.testing.assert_close(mean[row], sum(own[i] for i in range(4)) / 4)


def test_mean_counts_only_what_is_real():
    own = thoughts(rows=3, count=4)
    lengths = [1, 3, 2]
    real = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    own[~real] = 1e6
    mean = run("mean", own, real=real)
    for k in range(3):
        members = [own[row, k] for row in range(3) if k < lengths[row]]
        torch.testing.assert_close(mean[0, k], sum(members) / len(members))
    assert torch.isfinite(mean[:, 3]).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_noise_keeps_each_norm_and_nothing_else(width):
    own = thoughts(width=width)
    noise = run("noise", own)
    torch.testing.assert_close(noise.norm(dim=-1), own.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(noise, own, dim=-1)
    assert (cosine.abs() < 0.95).all()
    assert not torch.equal(noise[0] / noise[0].norm(), noise[1] / noise[1].norm())


@pytest.mark.parametrize("width", WIDTHS)
def test_noise_of_a_row_depends_on_its_seed_alone(width):
    own = thoughts(rows=3, count=5, width=width)
    together = run("noise", own, seeds=[7, 8, 9])
    for row, seed in enumerate([7, 8, 9]):
        torch.testing.assert_close(run("noise", own[row : row + 1], seeds=[seed])[0], together[row])
        for count in range(1, 5):  # a shorter chain has the first part of the same noise
            short = run("noise", own[row : row + 1, :count], seeds=[seed])[0]
            torch.testing.assert_close(short, together[row, :count])
    state = torch.get_rng_state()
    run("noise", own)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("control", CONTROLS)
def test_no_thoughts_stay_no_thoughts(control):
    assert run(control, thoughts(count=0)).shape == (4, 0, 24)


def test_an_unknown_control_names_the_choices():
    with pytest.raises(ValueError, match=r"'sleep' is unknown.*zero, shuffle, mean, noise, filler"):
        run("sleep", thoughts())
