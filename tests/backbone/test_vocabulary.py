"""Rows for another vocabulary: those that stay are copied, others start as asked, twice the same."""

import pytest
import torch
from small_models import SHAPE, VOCAB
from transformers import PhiConfig, PhiForCausalLM

from quietreasoning.backbone.vocabulary import WAYS, NewRows, renumber, replace_rows
from quietreasoning.config import UserError

OLD_N = torch.tensor([*range(40, 50), -1, -1, 3, *[-1] * 30, -1])
PIECES = {10: (5, 9)}  # the other made ones have none
LAST = len(OLD_N) - 1  # no token's
TOKENS_M = torch.arange(VOCAB - 5)


def model():
    """With a bias in its head."""
    torch.manual_seed(0)
    made = PhiForCausalLM(PhiConfig(**SHAPE | {"num_hidden_layers": 1}))
    torch.nn.init.normal_(made.lm_head.bias)
    return made


@pytest.mark.parametrize("how", WAYS)
def test_rows_and_bias_start_as_asked(how):
    before, after, again = model(), model(), model()
    rows = NewRows(OLD_N, how, PIECES if how == "pieces" else {}, frozenset({LAST}), TOKENS_M)
    for each in (after, again):
        replace_rows(each, rows, pad_id=1)
    kept_N = OLD_N >= 0
    pairs = [
        (before.get_input_embeddings().weight, after.get_input_embeddings().weight),
        (before.lm_head.weight, after.lm_head.weight),
        (before.lm_head.bias[:, None], after.lm_head.bias[:, None]),
    ]
    for old_VD, new_ND in pairs:
        assert torch.equal(new_ND[kept_N], old_VD[OLD_N[kept_N]])
        made_RD, mean_D = new_ND[~kept_N].detach()[:-1], old_VD[TOKENS_M].detach().mean(0)
        torch.testing.assert_close(new_ND[LAST], mean_D)
        if how == "zeros":
            assert not made_RD.any()
        elif how == "pieces":
            torch.testing.assert_close(made_RD[0], old_VD[[5, 9]].mean(0))
            torch.testing.assert_close(made_RD[1:], mean_D.expand_as(made_RD[1:]))
        elif how == "mean" or old_VD.shape[1] == 1:
            torch.testing.assert_close(made_RD, mean_D.expand_as(made_RD), atol=1e-3, rtol=0)
            assert old_VD.shape[1] == 1 or made_RD.std(0).min() > 0, "drawn, not copied"
        else:
            assert 0.9 < made_RD.std() / {"normal": SHAPE["initializer_range"], "small": 0.01}[how] < 1.1
    assert all(torch.equal(a, b) for a, b in zip(after.parameters(), again.parameters(), strict=True))
    ids_BT = torch.tensor([[0, 11, LAST]])
    assert after(input_ids=ids_BT).logits.shape[-1] == len(OLD_N) == after.config.vocab_size


def test_the_draw_of_the_mean_has_the_covariance_of_the_rows():
    changed = model()
    weight_VD = changed.lm_head.weight.detach().clone()
    weight_VD[:, 0] *= 30
    changed.lm_head.weight = torch.nn.Parameter(weight_VD)
    old_N = torch.tensor([*range(VOCAB), *[-1] * 4000])
    replace_rows(changed, NewRows(old_N, "mean", {}, frozenset(), torch.arange(VOCAB)), pad_id=None)
    drawn_RD = (changed.lm_head.weight[VOCAB:] - weight_VD.mean(0)).detach().double() / 1e-9**0.5
    wanted_DD = torch.cov(weight_VD.double().T, correction=0)
    scale_D = wanted_DD.diagonal().sqrt()
    apart_DD = (torch.cov(drawn_RD.T, correction=0) - wanted_DD) / (scale_D[:, None] * scale_D)
    assert apart_DD.abs().max() < 0.15


def test_ids_in_the_configurations_move_and_those_of_dropped_tokens_go():
    moved = model()
    moved.config.eos_token_id, moved.config.pad_token_id = [4, 7], 5
    moved.generation_config.eos_token_id = 9
    renumber(moved, {0: 0, 7: 2}, eos=1)
    assert moved.config.eos_token_id == [2] and moved.config.bos_token_id == 0
    assert moved.config.pad_token_id is None and moved.generation_config.eos_token_id == 1


def test_an_unknown_kind_of_head_is_refused():
    changed = model()
    changed.set_output_embeddings(torch.nn.Bilinear(2, 2, 2))
    with pytest.raises(UserError, match="head are Embedding and Bilinear"):
        replace_rows(changed, NewRows(OLD_N, "mean", {}, frozenset(), TOKENS_M), pad_id=None)
