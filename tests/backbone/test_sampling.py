"""Drawn tokens follow the softmax, and no row's neighbours change what it draws."""

import pytest
import torch
from small_models import SHAPE, VOCAB
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, LlamaConfig

from quietreasoning.backbone import Backbone, BackboneConfig, last_hidden, role_of
from quietreasoning.backbone.sampling import draw, sample
from quietreasoning.contract import IGNORE, Role

LENGTHS = (7, 3, 5, 1)
LIMIT = 12


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)), BackboneConfig(), {}).eval()


@pytest.fixture(scope="module")
def prompts():
    source = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (length,), generator=source) for length in LENGTHS]


UNIFORMS = torch.rand(len(LENGTHS), LIMIT, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def write(backbone, prompts, uniforms_BN=None, limit=LIMIT, **options):
    longest = max(map(len, prompts))
    ids_BP = torch.stack([pad(ids, (longest - len(ids), 0), value=IGNORE) for ids in prompts])
    states = backbone(ids_BP, role_of(ids_BP, Role.PROMPT), keep=True)
    options = {"eos": -1, "max_new_tokens": limit, "uniforms_BN": uniforms_BN, **options}
    return sample(backbone, states.past, last_hidden(states), **options)


def test_a_row_draws_the_same_alone_and_among_others(backbone, prompts):
    together = write(backbone, prompts, UNIFORMS, temperature=0.9)
    assert len({tuple(row) for row in together}) == len(prompts)
    for row, prompt in enumerate(prompts):
        assert write(backbone, [prompt], UNIFORMS[row : row + 1], temperature=0.9) == [together[row]]


def test_an_end_of_sequence_and_a_stop_stay_and_end_their_row_alone(backbone, prompts):
    whole = write(backbone, prompts, UNIFORMS, temperature=0.9)
    eos = whole[0][4]
    for row, full in zip(write(backbone, prompts, UNIFORMS, temperature=0.9, eos=eos), whole, strict=True):
        assert row == (full[: full.index(eos) + 1] if eos in full else full)
    stop = tuple(whole[2][3:5])
    cut = write(backbone, prompts, UNIFORMS, temperature=0.9, stop=stop)
    assert cut[2] == whole[2][:5]
    assert cut[0] == whole[0] or tuple(cut[0][-2:]) == stop


def test_the_shares_of_drawn_tokens_are_those_of_the_softmax():
    logits_V = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0])
    uniform_B = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    tokens = draw(logits_V.expand(len(uniform_B), -1), 0.7, uniform_B)
    found = torch.bincount(tokens, minlength=5) / len(tokens)
    torch.testing.assert_close(found.float(), (logits_V / 0.7).softmax(-1), atol=2e-5, rtol=0)


def test_the_ends_of_the_interval_are_tokens_of_some_share():
    logits_BV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    ends_B = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits_BV, 1.0, ends_B).tolist() == [1, 3]


def test_without_temperature_it_takes_the_most_likely(backbone, prompts):
    cold = write(backbone, prompts)
    assert cold == write(backbone, prompts, UNIFORMS, temperature=1e-6)
    assert cold != write(backbone, prompts, UNIFORMS, temperature=1.5)


def test_missing_numbers_are_refused(backbone, prompts):
    with pytest.raises(ValueError, match="needs uniforms_BN with 12 numbers a row"):
        write(backbone, prompts, temperature=1.0)
    with pytest.raises(ValueError, match="needs uniforms_BN"):
        write(backbone, prompts, UNIFORMS[:, :3], temperature=1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        write(backbone, prompts, temperature=-1.0)


def test_a_permit_decides_what_is_drawn_and_touches_no_other_row(backbone, prompts):
    free = write(backbone, prompts, UNIFORMS, temperature=1.5)

    def permit(row, tokens, logits_V):
        if row != 1:
            return None
        return torch.isin(torch.arange(VOCAB), torch.tensor([5, 7])) & (len(tokens) < 6)

    for options in ({}, {"temperature": 1.5}):
        held = write(backbone, prompts, UNIFORMS, permit=permit, eos=9, **options)
        assert set(held[1][:6]) <= {5, 7} and held[1][6:] == [9]
        if options:
            assert set(held[1][:6]) == {5, 7}
            whole = [row[: row.index(9) + 1] if 9 in row else row for row in free]
            assert [held[0], *held[2:]] == [whole[0], *whole[2:]]
    with pytest.raises(ValueError, match=r"a permit for \(3,\) tokens does not fit"):
        write(backbone, prompts, permit=lambda row, tokens, logits_V: torch.ones(3, dtype=torch.bool))
