"""Losses by what tokens are, against a twin that takes row by row and whole logits."""

import numpy as np
import pytest
import torch

from quietreasoning.losses.spans import span_sums, unpacked

N, D, V, K = 9, 5, 21, 4
SAYS = [0, 2, 3, 5, 8]  # rows of which the grammar says something


def packed(allowed_NV):
    return torch.from_numpy(np.packbits(allowed_NV.numpy(), axis=-1))


def rows(logits=V, bits=V):
    """hidden, weight, labels, classes, allowed; labels and bits of the first `bits` ids."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(logits, D, dtype=torch.float64, requires_grad=True)
    labels_N = torch.randint(0, bits, (N,))
    class_N = torch.tensor([1, 0, 1, 2, 2, 1, 0, 3, 3])
    allowed_NV = torch.rand(N, bits) < 0.3
    allowed_NV[range(N), labels_N] = True
    allowed_NV[[n for n in range(N) if n not in SAYS]] = False
    return hidden_ND, weight_VD, labels_N, class_N, allowed_NV


def naive(hidden_ND, weight_VD, labels_N, class_N, allowed_NV):
    ce_K, choice_K, grammar = [0.0] * K, [0.0] * K, 0.0
    for n in range(N):
        p_V = (weight_VD @ hidden_ND[n]).softmax(-1)
        ce_K[class_N[n]] = ce_K[class_N[n]] - p_V[labels_N[n]].log()
        if allowed_NV[n].any():
            mass = p_V[: allowed_NV.shape[1]][allowed_NV[n]].sum()
            grammar = grammar - mass.log()
            choice_K[class_N[n]] = choice_K[class_N[n]] - (p_V[labels_N[n]] / mass).log()
    return ce_K, grammar, choice_K


def all_of(found):
    """Every sum that has a gradient, by name."""
    named = {"grammar": found.grammar}
    named |= {f"ce{k}": found.ce_K[k] for k in range(K)}
    return named | {f"choice{k}": found.choice_K[k] for k in range(K)}


def gradients(total, leaves):
    return torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("logits", [V, V + 12], ids=["as many logits", "a padded table"])
def test_sums_gradients_and_chunks_are_those_of_the_twin(logits):
    hidden_ND, weight_VD, labels_N, class_N, allowed_NV = given = rows(logits)
    leaves, bits_NW = (hidden_ND, weight_VD), packed(allowed_NV)
    ce_K, grammar, choice_K = naive(*given)
    wanted = {"grammar": grammar} | {f"ce{k}": v for k, v in enumerate(ce_K)}
    wanted |= {f"choice{k}": v for k, v in enumerate(choice_K)}
    for chunk in (100, 4):
        whole = span_sums(hidden_ND, lambda h: h @ weight_VD.T, labels_N, class_N, K, bits_NW, chunk=chunk)
        for name, total in all_of(whole).items():
            if not isinstance(wanted[name], torch.Tensor):  # a class without a row that the grammar knows
                assert float(total.detach()) == 0
                continue
            torch.testing.assert_close(total, wanted[name], rtol=0, atol=1e-10, msg=name)
            both = gradients(total, leaves), gradients(wanted[name], leaves)
            for mine, theirs in zip(*both, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10, msg=name)
        hits_N = (hidden_ND @ weight_VD.T).argmax(-1) == labels_N
        assert whole.hits_K.tolist() == [int(hits_N[class_N == k].sum()) for k in range(K)]


def test_cross_entropy_is_grammar_and_choice_where_the_grammar_speaks():
    hidden_ND, weight_VD, labels_N, class_N, allowed_NV = rows()
    found = span_sums(
        hidden_ND[SAYS],
        lambda h: h @ weight_VD.T,
        labels_N[SAYS],
        class_N[SAYS],
        K,
        packed(allowed_NV)[SAYS],
    )
    assert float(found.grammar.detach()) > 0.1 < float(found.choice_K.sum().detach())
    torch.testing.assert_close(found.ce_K.sum(), found.grammar + found.choice_K.sum(), rtol=0, atol=1e-10)


def test_where_the_grammar_says_nothing_its_terms_and_their_gradients_are_exactly_zero():
    hidden_ND, weight_VD, labels_N, class_N, allowed_NV = rows()
    found = span_sums(hidden_ND, lambda h: h @ weight_VD.T, labels_N, class_N, K, packed(allowed_NV))
    silent = [n for n in range(N) if n not in SAYS]
    for total in (found.grammar, found.choice_K.sum()):
        (slope_ND,) = gradients(total, [hidden_ND])
        assert not slope_ND[silent].any() and slope_ND[SAYS].any(-1).all()
    for bits_NW in (packed(allowed_NV)[silent], None):
        alone = span_sums(
            hidden_ND[silent], lambda h: h @ weight_VD.T, labels_N[silent], class_N[silent], K, bits_NW
        )
        assert float(alone.grammar.detach()) == 0 and not alone.choice_K.detach().any()
        assert not gradients(alone.grammar, [hidden_ND])[0].any()


def test_a_gold_label_that_the_grammar_forbids_is_named():
    hidden_ND, weight_VD, labels_N, class_N, allowed_NV = rows(V + 12)
    allowed_NV[3] = torch.arange(V) == (labels_N[3] + 1) % V

    def ask(labels_N):
        span_sums(hidden_ND, lambda h: h @ weight_VD.T, labels_N, class_N, K, packed(allowed_NV))

    with pytest.raises(ValueError, match=rf"forbids label {int(labels_N[3])} at position 3"):
        ask(labels_N)
    allowed_NV[3, labels_N[3]] = True
    ask(labels_N.masked_fill(torch.arange(N) == 1, V + 11))  # nothing is said of it
    with pytest.raises(ValueError, match=rf"forbids label {V + 11} at position 5"):  # beyond the bits
        ask(labels_N.masked_fill(torch.arange(N) == 5, V + 11))


@pytest.mark.parametrize("away", [1e4, -1e4, -torch.inf])
def test_extreme_logits_give_finite_gradients(away):
    """The ids that are not allowed have all of the mass, or none of it."""
    hidden_ND, weight_VD, labels_N, class_N, allowed_NV = rows()
    shift_NV = torch.where(allowed_NV, 0.0, away).double().masked_fill(~allowed_NV.any(-1, keepdim=True), 0.0)

    def head(hidden_CD):
        return hidden_CD @ weight_VD.T + shift_NV

    found = span_sums(hidden_ND, head, labels_N, class_N, K, packed(allowed_NV))
    for name, total in all_of(found).items():
        assert total.isfinite(), name
        assert all(slope is None or slope.isfinite().all() for slope in gradients(total, [hidden_ND])), name
    assert float(found.grammar.detach()) == pytest.approx(len(SAYS) * 1e4 if away > 0 else 0, rel=1e-2)


def test_nothing_to_sum_is_zero_and_bits_come_back_as_they_went():
    hidden_0D = torch.zeros(0, D, requires_grad=True)
    none_0 = torch.zeros(0, dtype=torch.long)
    found = span_sums(hidden_0D, lambda h: h @ torch.zeros(D, V), none_0, none_0, K)
    assert float(found.grammar.detach()) == 0 == float(found.ce_K.sum().detach())
    found.grammar.backward()
    _, _, _, _, allowed_NV = rows()
    for size in (V - 4, V, V + 12):
        back_NV = unpacked(packed(allowed_NV), size)
        assert back_NV.shape == (N, size) and not back_NV[:, V:].any()
        assert torch.equal(back_NV[:, :V], allowed_NV[:, :size])
