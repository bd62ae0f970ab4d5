"""Boundaries fall where surprise rises above the past of its stream, and nowhere because of the future."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quietreasoning.config import UserError
from quietreasoning.memory.surprise import (
    SurpriseBoundaries,
    SurpriseSettings,
    bayesian_surprise,
    boundaries_numpy,
    token_surprise,
)

KINDS = [("window", 32), ("window", None), ("ema", 20), ("welford", None)]


def streams(count=3, tokens=300):
    surprise_RT = np.random.default_rng(0).gamma(2.0, 1.5, size=(count, tokens))
    surprise_RT[0, 90], surprise_RT[1, 95], surprise_RT[1, 0] = math.nan, math.inf, math.nan
    return torch.tensor(surprise_RT)


@pytest.mark.parametrize(("statistics", "span"), KINDS)
@pytest.mark.parametrize("cooldown", [0, 7, 64])
def test_the_batched_boundaries_equal_the_definitions(statistics, span, cooldown):
    settings, surprise_RT = SurpriseSettings(statistics=statistics, span=span, cooldown=cooldown), streams()
    wanted = np.stack([boundaries_numpy(row, settings) for row in surprise_RT.numpy()])
    assert wanted.any()
    assert (SurpriseBoundaries(3, settings).observe(surprise_RT).numpy() == wanted).all()


@pytest.mark.parametrize(("statistics", "span"), KINDS)
def test_chunks_padding_and_a_restored_state_change_nothing(statistics, span):
    settings = SurpriseSettings(statistics=statistics, span=span, cooldown=5)
    surprise_RT = streams()
    whole = SurpriseBoundaries(3, settings).observe(surprise_RT)
    parts, found = SurpriseBoundaries(3, settings), []
    for part in surprise_RT.split([1, 70, 0, 229], 1):
        found.append(parts.observe(part))
        state, parts = parts.state_dict(), SurpriseBoundaries(3, settings)
        parts.load_state_dict(state)
    assert torch.equal(torch.cat(found, 1), whole)
    valid = torch.rand(3, 600, generator=torch.Generator().manual_seed(0)).argsort(1) < 300  # 300 in each row
    padded = torch.full((3, 600), 1e9, dtype=torch.float64).masked_scatter(valid, surprise_RT)
    apart = SurpriseBoundaries(3, settings).observe(padded, valid)
    assert torch.equal(apart[valid].view(3, 300), whole) and not apart[~valid].any()
    with pytest.raises(UserError, match="surprise state"):
        SurpriseBoundaries(2, settings).load_state_dict(state)


@pytest.mark.parametrize(("statistics", "span"), KINDS)
def test_a_planted_spike_is_found_by_the_past_alone(statistics, span):
    calm = 2 + 0.1 * torch.sin(torch.arange(400.0))[None]
    planted = calm.clone()
    planted[0, 150], planted[0, 213], planted[0, 214] = 6.0, 7.0, 60.0
    settings = SurpriseSettings(statistics=statistics, span=span, gamma=3.0)
    found = SurpriseBoundaries(1, settings).observe(planted)[0]
    # 213 falls into the cooldown of 64 tokens from 150 on, 214 does not
    assert found.nonzero()[:, 0].tolist() == [150, 214]
    later = planted.clone()
    later[0, 215:] = 500.0
    assert torch.equal(SurpriseBoundaries(1, settings).observe(later)[0, :215], found[:215])


def test_streams_keep_to_themselves_and_begin_anew():
    surprise_RT = streams()
    boundaries = SurpriseBoundaries(3)
    whole = boundaries.observe(surprise_RT)
    alone = torch.cat([SurpriseBoundaries(1).observe(row[None]) for row in surprise_RT])
    assert torch.equal(whole, alone)
    boundaries.reset(slice(1, 2))
    again = boundaries.observe(surprise_RT)
    assert torch.equal(again[1], whole[1]) and not torch.equal(again, whole)


def test_surprise_is_what_its_formula_says():
    logits_RTV = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens_RT = torch.randint(9, (2, 6), generator=torch.Generator().manual_seed(1))
    token, bayes = token_surprise(logits_RTV, tokens_RT), bayesian_surprise(logits_RTV)
    assert token[:, 0].isnan().all() and bayes[:, 0].isnan().all()
    for row in range(2):
        wanted = F.cross_entropy(logits_RTV[row, :-1], tokens_RT[row, 1:], reduction="none")
        assert torch.allclose(token[row, 1:], wanted.float())
        log_p = logits_RTV[row].log_softmax(-1)
        wanted = F.kl_div(log_p[:-1], log_p[1:], log_target=True, reduction="none").sum(-1)
        assert torch.allclose(bayes[row, 1:], wanted.float())
    before, rest = logits_RTV[:, 2], logits_RTV[:, 3:]
    assert torch.equal(token_surprise(rest, tokens_RT[:, 3:], before), token[:, 3:])
    assert torch.equal(bayesian_surprise(rest, before), bayes[:, 3:])
    forbidden = torch.tensor([[[0.0, -math.inf], [0.0, -math.inf]]])
    assert (
        bayesian_surprise(forbidden)[0, 1] == 0
        and token_surprise(forbidden, torch.ones(1, 2).long())[0, 1] == math.inf
    )


def test_a_span_that_would_be_ignored_is_refused():
    with pytest.raises(ValueError, match="span=9 has no meaning with statistics=welford"):
        SurpriseSettings(statistics="welford", span=9)
