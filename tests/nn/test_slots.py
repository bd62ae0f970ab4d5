"""Slots: against a loop over steps and tokens, blind to padding and order, halting as it says, apart."""

import pytest
import torch
from torch.nn import functional as F

from quietreasoning.losses import latent
from quietreasoning.losses.halting import halting_kl, rate_for_mean
from quietreasoning.nn.slots import SlotUpdate, stop_distribution, truncate

R, N, K, D, W, H, T = 5, 7, 4, 8, 6, 2, 3


def made(seed=0, steps=T, stop=2.0, **options):
    """An update whose rows halt apart."""
    torch.manual_seed(seed)
    module = SlotUpdate(K, D, W, H, steps, **options)
    with torch.no_grad():
        module.stop.weight.normal_(std=stop)
    return module


def given(rows=R, seed=1):
    draw = torch.Generator().manual_seed(seed)
    valid = torch.arange(N) < torch.randint(1, N + 1, (rows, 1), generator=draw)
    return torch.randn(rows, K, D, generator=draw), torch.randn(rows, N, W, generator=draw), valid


def naive_step(module, slots_KD, tokens_NW):
    """One row, one token at a time, the formulas of the docstring; tokens are normalised."""
    g = module.grn
    e1 = g.mid(F.elu(g.inner(slots_KD) + g.context(tokens_NW[-1])))
    gate, value = g.gate_value(e1).chunk(2, -1)
    slots_KD = g.norm(slots_KD + torch.sigmoid(gate) * value)
    keys, values = module.keys_values(tokens_NW).chunk(2, -1)
    query, head = module.query(module.slot_norm(slots_KD)), D // H
    update = torch.zeros(K, D)
    for h in range(H):
        at = slice(h * head, (h + 1) * head)
        logits_NK = keys[:, at] @ query[:, at].T / head**0.5
        claims_NK = logits_NK.softmax(1)  # the slots compete for a token
        weight_NK = claims_NK * logits_NK.exp()
        update[:, at] = (weight_NK / weight_NK.sum(0)).T @ values[:, at]
    c = module.cell
    reset_i, keep_i, new_i = c.input(update).chunk(3, -1)
    reset_s, keep_s, new_s = c.state(slots_KD).chunk(3, -1)
    keep = torch.sigmoid(keep_i + keep_s)
    new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_s) * new_s)
    return (1 - keep) * new + keep * slots_KD


def naive(module, slots_RKD, tokens_RNW, valid_RN):
    """Slots, executed steps and calls of a row-by-row loop that stops by itself."""
    out, executed = [], []
    for slots_KD, tokens_NW, valid_N in zip(slots_RKD, tokens_RNW, valid_RN, strict=True):
        tokens_NW = module.token_norm(tokens_NW[valid_N])
        left, mixed = 1.0, torch.zeros(K, D)
        for t in range(1, module.steps + 1):
            new_KD = naive_step(module, slots_KD, tokens_NW)
            p = left * float(torch.sigmoid(module.stop(new_KD.mean(0))))
            moved = float((new_KD - slots_KD).norm() / slots_KD.norm())
            slots_KD = new_KD
            if 1 - (left - p) > module.threshold or moved < module.epsilon or t == module.steps:
                break
            mixed, left = mixed + p * new_KD, left - p
        out.append(mixed + left * new_KD)
        executed.append(t)
    return torch.stack(out), torch.tensor(executed)


def test_both_paths_equal_a_loop_over_rows():
    module, args = made(), given()
    with torch.no_grad():
        slots, executed = naive(module, *args)
        served, traced = module(*args), module(*args, True)
    trained = module(*args)
    assert set(executed.tolist()) == {1, 2, 3}, "choose a seed whose rows halt apart"
    for done in (served, traced, trained):
        torch.testing.assert_close(done.slots_RKD, slots, rtol=1e-5, atol=1e-5)
        assert torch.equal(done.executed_R, executed)
        torch.testing.assert_close(done.halting_RT.sum(1), torch.ones(R))
        assert (done.halting_RT >= 0).all()
    assert torch.equal(traced.slots_RKD, trained.slots_RKD) and trained.states_RTKD.shape == (R, T, K, D)
    assert served.states_RTKD is None


def test_serving_computes_the_steps_it_reports():
    module, args, rows = made(), given(), []
    module.cell.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with torch.no_grad():
        done = module(*args)
        assert sum(rows) == int(done.executed_R.sum()) < R * T
        rows.clear()
        module(*(a[done.executed_R == 1] for a in args))
        assert rows == [int((done.executed_R == 1).sum())], "nobody goes on: nothing more is computed"
    rows.clear()
    module(*args)
    assert rows == [R] * T, "with gradients every step is there to learn from"


def test_one_step_needs_no_halting():
    module, args = made(steps=1), given()
    done = module(*args)
    with torch.no_grad():
        torch.testing.assert_close(module(*args).slots_RKD, done.slots_RKD)
    assert done.executed_R.tolist() == [1] * R and torch.equal(done.halting_RT, torch.ones(R, 1))


@pytest.mark.parametrize("stop", [-20.0, 0.0, 20.0])
def test_the_stop_unit_decides_how_long_is_thought(stop):
    module, args = made(stop=0.0), given()
    torch.nn.init.constant_(module.stop.bias, stop)
    done = module(*args)
    want = {-20.0: [0, 0, 1], 0.0: [0.5, 0.25, 0.25], 20.0: [1, 0, 0]}[stop]
    torch.testing.assert_close(done.halting_RT, torch.tensor(want).float().expand(R, T))
    assert done.executed_R.tolist() == [{-20.0: 3, 0.0: 3, 20.0: 1}[stop]] * R


def test_slots_that_have_settled_halt():
    module, args = made(stop=0.0, epsilon=10.0), given()
    torch.nn.init.constant_(module.stop.bias, -20.0)
    with torch.no_grad():
        assert module(*args).executed_R.tolist() == module(*args, True).executed_R.tolist() == [1] * R


def test_truncation_gives_the_rest_to_the_last_executed_step():
    halting = stop_distribution(torch.tensor([[0.9, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.9, 0.1]]))
    torch.testing.assert_close(halting[1], torch.tensor([0.5, 0.25, 0.25]))
    weights, executed = truncate(halting, torch.zeros(3, 3, dtype=torch.bool), 0.8)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0, 0], [0.5, 0.25, 0.25], [0.5, 0.5, 0]]))
    assert executed.tolist() == [1, 3, 2]


def test_gradients_reach_the_stop_unit_and_steps_that_were_not_executed():
    module, args = made(stop=0.0), given()
    torch.nn.init.constant_(module.stop.bias, 3.0)
    done = module(*args)
    assert done.executed_R.tolist() == [1] * R
    done.slots_RKD.square().sum().backward()
    assert module.stop.weight.grad.any() and module.stop.bias.grad.any()
    assert all(p.grad.any() for name, p in module.named_parameters() if name != "initial")
    done = module(*args)
    (slope_RT,) = torch.autograd.grad(done.slots_RKD.sum(), done.halting_RT)
    torch.testing.assert_close(slope_RT, done.states_RTKD.sum((2, 3)))


def test_padding_order_and_company_do_not_matter():
    module, (slots, tokens, valid) = made(), given()
    with torch.no_grad():
        base = module(slots, tokens, valid).slots_RKD
        noisy = torch.where(valid[..., None], tokens, torch.full_like(tokens, 1e3))
        wide = torch.cat([noisy, torch.randn(R, 2, W)], 1)
        far = module(slots, wide, torch.cat([valid, torch.zeros(R, 2, dtype=torch.bool)], 1))
        torch.testing.assert_close(far.slots_RKD, base)
        gap_valid = torch.cat([torch.zeros(R, 1, dtype=torch.bool), valid], 1)
        torch.testing.assert_close(
            module(slots, torch.cat([tokens[:, :1], tokens], 1), gap_valid).slots_RKD, base
        )
        for row in range(R):
            alone = module(slots[row : row + 1], tokens[row : row + 1], valid[row : row + 1])
            torch.testing.assert_close(alone.slots_RKD[0], base[row])


def test_permuted_slots_give_permuted_slots():
    module, (slots, tokens, valid) = made(), given()
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        base, moved = module(slots, tokens, valid), module(slots[:, order], tokens, valid)
    torch.testing.assert_close(moved.slots_RKD, base.slots_RKD[:, order])
    torch.testing.assert_close(moved.reads_RNK, base.reads_RNK[..., order])
    assert torch.equal(moved.executed_R, base.executed_R)


def test_slots_compete_for_tokens():
    module, args = made(), given()
    reads = module(*args).reads_RNK
    assert reads.shape == (R, N, K)
    torch.testing.assert_close(reads.sum(-1), torch.ones(R, N))


def test_the_first_slots_are_distinct_and_the_same_for_all_rows():
    module = made()
    start = module.start(3)
    assert torch.equal(start[0], start[2]) and start.shape == (3, K, D)
    cosine, rank = latent.slot_health(SlotUpdate(16, 64, W, H, T).start(1))
    assert cosine.abs() < 0.1 and rank > 0.7 * 16
    start.sum().square().backward()
    torch.testing.assert_close(start.mean(-1), torch.zeros(3, K), atol=1e-6, rtol=0)


def think(prior_mean, weight, hard_share=0.5, steps=150):
    """Train when to stop: easy rows find what is asked after one step, hard rows after three.

    What is asked is the update's own state there; the last token says which. Returns mean executed
    steps of easy and of hard rows when serving.
    """
    module = made(stop=0.0, first_stop=0.5)
    rate, every = rate_for_mean(prior_mean, T), torch.ones(64, dtype=torch.bool)
    optimizer = torch.optim.Adam(module.stop.parameters(), lr=0.1)
    valid = torch.ones(64, N, dtype=torch.bool)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(64, N, W, generator=generator)
        hard = torch.rand(64, generator=generator) < hard_share
        tokens[:, -1] = 0
        tokens[:, -1, 0] = torch.where(hard, 3.0, -3.0)
        return tokens, hard

    for seed in range(steps):
        tokens, hard = draw(seed)
        done = module(module.start(64), tokens, valid)
        asked = torch.where(hard[:, None, None], done.states_RTKD[:, 2], done.states_RTKD[:, 0]).detach()
        kl, rows = halting_kl(done.halting_RT, rate, every)
        loss = (done.slots_RKD - asked).square().sum((1, 2)).mean() + weight * kl / rows
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, hard = draw(-1)
    with torch.no_grad():
        steps_R = module(module.start(64), tokens, valid).executed_R.float()
    return float(steps_R[~hard].mean()), float(steps_R[hard].mean())


def test_hard_rows_think_longer_than_easy_ones():
    easy, hard = think(1.5, 0.01)
    assert easy < 2.1 and hard > 2.9


def test_steps_move_with_the_task_and_with_the_prior():
    """The same rows, all easy: one step. A strong prior for few or many steps has the last word."""
    assert think(1.5, 0.01, hard_share=0.02)[0] < 1.1
    short, long = think(1.05, 100.0, steps=60), think(2.9, 100.0, steps=60)
    assert max(short) < 1.2 and min(long) > 2.8
