"""Banks: identity when fresh, chosen adapters alone, merged equals unmerged, fusion as it is written."""

import pytest
import torch

from quietreasoning.nn.adapters import AdapterBank, AdapterFusion, Choice, IA3Bank

R, T, I, O, E, K, P = 3, 5, 7, 6, 8, 2, 4  # noqa: E741


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def choice(rows=R, chosen=K, seed=0):
    draw = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(E, generator=draw)[:chosen] for _ in range(rows)])
    return Choice(indices, torch.rand(rows, chosen, generator=draw))


def trained(module, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return module


@pytest.fixture(params=[0, 64], autouse=True, ids=["gathered", "all at once"])
def _small(request, monkeypatch):
    """Both ways a bank computes."""
    monkeypatch.setattr(AdapterBank, "small", request.param)


def bank(fresh=False):
    torch.manual_seed(0)
    made = AdapterBank(I, O, E, P, alpha=2 * P)
    return made if fresh else trained(made)


def naive(module, x, picked):
    out = torch.zeros(*x.shape[:2], module.out_features)
    for row in range(len(x)):
        for e, w in zip(picked.indices_RK[row].tolist(), picked.weights_RK[row], strict=True):
            out[row] += w * 2.0 * (x[row] @ module.down_EPI[e].T) @ module.up_EOP[e].T
    return out


@pytest.mark.parametrize("tokens", [1, T])
@pytest.mark.parametrize("chosen", [1, K, E])
def test_bank_equals_a_loop(tokens, chosen):
    module, x, picked = bank(), random(R, tokens, I), choice(chosen=chosen)
    torch.testing.assert_close(module(x, picked), naive(module, x, picked))
    each = module.each(x, picked)
    assert each.shape == (R, tokens, chosen, O)
    torch.testing.assert_close(
        torch.einsum("rtko,rk->rto", each, picked.weights_RK), naive(module, x, picked)
    )


def test_a_fresh_bank_is_the_identity_and_can_learn():
    module, x = bank(fresh=True), random(R, T, I)
    assert not module(x, choice()).any() and not module.each(x, choice()).any()
    assert not module.merged(torch.ones(E)).any()
    assert len({tuple(a.flatten().tolist()) for a in module.down_EPI}) == E, "all adapters differ"
    module(x, choice()).sum().backward()
    assert module.up_EOP.grad.any()


def test_only_chosen_adapters_speak_and_get_a_gradient():
    module, x, picked = bank(), random(R, T, I), choice()
    used = sorted(set(picked.indices_RK.flatten().tolist()))
    others = [e for e in range(E) if e not in used]
    assert others
    want = module(x, picked)
    with torch.no_grad():
        other = float("nan") if module.small == 0 else 7.0  # gathered ones alone are computed
        module.down_EPI[others] = other
        module.up_EOP[others] = other
    got = module(x, picked)
    assert torch.equal(got, want)
    got.square().sum().backward()
    for p in module.parameters():
        assert not p.grad[others].any() and p.grad[used].flatten(1).any(1).all()


@pytest.mark.parametrize("small", [0, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_the_delta_is_added_to_what_the_layer_says(bias, small):
    module, x, picked, linear = bank(), random(R, T, I), choice(), torch.nn.Linear(I, O, bias)
    module.small = small
    torch.testing.assert_close(module(x, picked, linear=linear), linear(x) + module(x, picked))
    fusion = AdapterFusion(I, O, 3)
    torch.testing.assert_close(module(x, picked, fusion, linear), linear(x) + module(x, picked, fusion))


def test_the_routers_weights_get_a_gradient():
    module, x, picked = bank(), random(R, T, I), choice()
    weights = picked.weights_RK.clone().requires_grad_()
    ia3 = trained(IA3Bank(O, E))
    (module(x, Choice(picked.indices_RK, weights)).sum()).backward()
    assert (weights.grad != 0).all()
    weights.grad = None
    ia3(Choice(picked.indices_RK, weights)).sum().backward()
    assert (weights.grad != 0).all()


def test_merged_equals_unmerged():
    module, ia3, x = bank(), trained(IA3Bank(O, E)), random(R, T, I)
    weights_E = torch.rand(E, generator=torch.Generator().manual_seed(1))
    fixed = Choice(torch.arange(E).expand(R, E), weights_E.expand(R, E))
    torch.testing.assert_close(module(x, fixed), x @ module.merged(weights_E).T)
    torch.testing.assert_close(ia3(fixed), ia3.merged(weights_E).expand(R, 1, O))


def test_a_row_does_not_depend_on_its_company_nor_on_later_tokens():
    module, fusion, x, picked = bank(), trained(AdapterFusion(I, O, 3)), random(R, T, I), choice()
    whole = module(x, picked, fusion)
    for row in range(R):
        alone = Choice(picked.indices_RK[row : row + 1], picked.weights_RK[row : row + 1])
        torch.testing.assert_close(module(x[row : row + 1], alone, fusion)[0], whole[row])
    torch.testing.assert_close(module(x[:, :2], picked, fusion), whole[:, :2])


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_in_double_precision(fused):
    module, x = bank().double(), random(2, 2, I).double().requires_grad_()
    fusion = trained(AdapterFusion(I, O, 3)).double() if fused else None
    extra = fusion.parameters() if fused else ()
    picked = choice(rows=2)
    weights = picked.weights_RK.double().requires_grad_()

    def run(x, weights, *_):
        return module(x, Choice(picked.indices_RK, weights), fusion)

    assert torch.autograd.gradcheck(run, (x, weights, *module.parameters(), *extra))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_result_has_the_inputs_dtype(dtype, autocast):
    module, fusion, x, picked = bank(), AdapterFusion(I, O, 3), random(R, T, I).to(dtype), choice()
    want = naive(module, random(R, T, I), picked)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for out in (module(x, picked), module(x, picked, fusion)):
            assert out.dtype == dtype
            assert (out.float() - want).norm() < 0.03 * want.norm()
        assert module.each(x, picked).dtype == fusion(x, module.each(x, picked)).dtype == dtype
        assert IA3Bank(O, E)(picked, dtype).dtype == dtype


def test_ia3_starts_at_one_and_equals_its_formula():
    assert torch.equal(IA3Bank(O, E)(choice()), torch.ones(R, 1, O))
    module, picked = trained(IA3Bank(O, E)), choice()
    for row in range(R):
        want = torch.ones(O)
        for e, w in zip(picked.indices_RK[row].tolist(), picked.weights_RK[row], strict=True):
            want = want + w * (module.scale_EW[e] - 1)
        torch.testing.assert_close(module(picked)[row, 0], want)


def test_fusion_of_a_fresh_bank_is_zero():
    module, x, picked = bank(fresh=True), random(R, T, I), choice()
    fusion = trained(AdapterFusion(I, O, 3))
    assert not module(x, picked, fusion).any()
    assert not fusion(x, module.each(x, picked)).any()


def test_a_fresh_fusion_is_the_banks_weighted_sum():
    module, x, picked = bank(), random(R, T, I), choice()
    torch.testing.assert_close(module(x, picked, AdapterFusion(I, O, 3)), module(x, picked))
    each = module.each(x, picked)
    torch.testing.assert_close(AdapterFusion(I, O, 3)(x, each), each.mean(2))


def test_fusion_equals_its_formula_with_and_without_the_wide_outputs():
    module, x, picked = bank(), random(R, T, I), choice(chosen=3)
    fusion = trained(AdapterFusion(I, O, 3))
    each = module.each(x, picked)
    want, plain = torch.zeros(R, T, O), torch.zeros(R, T, O)
    for r in range(R):
        w = picked.weights_RK[r]
        for t in range(T):
            score = (each[r, t] @ fusion.key.weight.T) @ (fusion.query.weight @ x[r, t]) / 3**0.5
            share = (score + w.log()).softmax(0) * w.sum()
            want[r, t] = (share[:, None] * each[r, t]).sum(0) * fusion.diagonal_O
            plain[r, t] = (score.softmax(0)[:, None] * each[r, t]).sum(0) * fusion.diagonal_O
    torch.testing.assert_close(fusion(x, each, picked.weights_RK), want)
    torch.testing.assert_close(module(x, picked, fusion), want)
    torch.testing.assert_close(fusion(x, each), plain)


def test_fusion_learns_key_first_then_query():
    module, x, picked = bank(), random(R, T, I), choice()
    fusion = AdapterFusion(I, O, 3)
    module(x, picked, fusion).square().sum().backward()
    assert fusion.key.weight.grad.any() and fusion.diagonal_O.grad.any()
    assert not fusion.query.weight.grad.any()
    with torch.no_grad():
        fusion.key.weight -= 0.1 * fusion.key.weight.grad
    module(x, picked, fusion).square().sum().backward()
    assert fusion.query.weight.grad.any()


def test_an_empty_bank_is_refused():
    for bad in ({"adapters": 0, "rank": P}, {"adapters": E, "rank": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            AdapterBank(I, O, alpha=8, **bad)
    with pytest.raises(ValueError, match="adapters=0"):
        IA3Bank(O, 0)
    with pytest.raises(ValueError, match="dim=0"):
        AdapterFusion(I, O, 0)
