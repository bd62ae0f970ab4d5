"""Preferences, spans and hazards equal naive formulas in fp64, and stay finite where those do not."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from quietreasoning.losses.early_tool import early_tool, opener_event, overlong, window
from quietreasoning.losses.odds import Event, all_of, any_of, log1mexp, said
from quietreasoning.losses.preference import dpo, likelihood, ramp, simpo, span_terms, unlikelihood

EXTREMES = (-1e4, -300.0, -30.0, 0.0, 30.0, 300.0, 1e4)


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dpo_and_simpo_equal_their_formulas_and_rows_stay_apart():
    c, r, rc, rr = (-draw(6, seed=s).abs() * 5 for s in range(4))
    found = dpo(c, r, rc, rr, 0.3)
    naive = -(1 / (1 + torch.exp(-0.3 * ((c - rc) - (r - rr))))).log()
    torch.testing.assert_close(found.total, naive.sum())
    assert found.ahead == ((c - rc) > (r - rr)).sum() and found.count == 6
    halves = [dpo(*(x[s] for x in (c, r, rc, rr)), 0.3).total for s in (slice(2), slice(2, 6))]
    torch.testing.assert_close(sum(halves), found.total)
    lengths = torch.tensor([3, 1, 7, 2, 5, 4]), torch.tensor([4, 2, 1, 9, 0, 4])
    found = simpo(c, r, *lengths, 2.0, 0.5)
    kept = [0, 1, 2, 3, 5]  # an empty answer would win: it does not count
    margin = 2.0 * (c / lengths[0] - r / lengths[1])[kept]
    torch.testing.assert_close(found.total, -(1 / (1 + torch.exp(0.5 - margin))).log().sum())
    assert found.count == 5


def test_gradients_of_preferences():
    pairs = [x.requires_grad_() for x in (-draw(4, seed=1).abs(), -draw(4, seed=2).abs())]
    reference = -draw(4, seed=3).abs(), -draw(4, seed=4).abs()
    assert gradcheck(lambda c, r: dpo(c, r, *reference).total, pairs)
    lengths = torch.tensor([3, 1, 7, 2]), torch.tensor([4, 2, 1, 9])
    assert gradcheck(lambda c, r: simpo(c, r, *lengths).total, pairs)
    fixed = reference[0].clone().requires_grad_()
    dpo(pairs[0], pairs[1], fixed, reference[1]).total.backward()
    assert fixed.grad is None
    far = torch.tensor([-1e6, 0.0, -math.inf], requires_grad=True)
    counted = torch.tensor([True, True, False])
    found = dpo(far, torch.tensor([0.0, -1e6, -math.inf]), *torch.zeros(2, 3), counted_P=counted)
    found.total.backward()
    assert found.total.isfinite() and found.count == 2
    torch.testing.assert_close(far.grad, torch.tensor([-0.1, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: dpo(*torch.zeros(4, 1), beta=0), "beta=0"),
        (lambda: simpo(*torch.zeros(4, 1), gamma=-1), "gamma=-1"),
        (lambda: ramp(-1, 0.3), "step=-1"),
        (lambda: span_terms(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1), (1,), (1,)), "class 1"),
        (lambda: overlong(*torch.zeros(4, 1, 1), hinge=-0.1), "hinge=-0.1"),
        (lambda: window(torch.zeros(1, 2), torch.ones(1), torch.ones(1), 0), "size=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(function, words):
    with pytest.raises(ValueError, match=words):
        function()


def test_the_ramp():
    assert [ramp(s, 0.3) for s in (0, 2500, 5000, 9999)] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert ramp(0, 0.05, 0, 0.1) == 0.05


def test_unlikelihood_equals_a_naive_twin_and_moves_the_chosen_token_alone():
    logits, ids = draw(5, 7).requires_grad_(), torch.tensor([0, 3, 6, -100, 2])
    counted = torch.tensor([True, True, False, True, True])
    total, count = unlikelihood(logits, ids, counted)
    q = logits.softmax(-1)[[0, 1, 4], [0, 3, 2]]
    torch.testing.assert_close(total, -(1 - q).log().sum())
    assert count == 3
    total.backward()
    assert not logits.grad[2:4].any()
    torch.testing.assert_close(logits.grad[0, 0], q[0].detach())  # up to the gradient of one id
    assert (logits.grad[0, 1:] < 0).all()
    assert gradcheck(lambda x: unlikelihood(x, ids, counted)[0], draw(5, 7, seed=3).requires_grad_())
    nats, _ = likelihood(logits, ids, counted)
    torch.testing.assert_close(nats, F.cross_entropy(logits[[0, 1, 4]], ids[[0, 1, 4]], reduction="sum"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unlikelihood_of_what_is_certain_is_finite_with_a_slope(dtype):
    logits = torch.tensor([[x, 0.0, 0.0] for x in EXTREMES], dtype=dtype, requires_grad=True)
    ids, counted = torch.zeros(7, dtype=torch.long), torch.ones(7, dtype=torch.bool)
    total, _ = unlikelihood(logits, ids, counted)
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all()
    assert logits.grad[-1, 0] == 1 and logits.grad[0, 0] == 0


def test_each_class_has_its_own_sum_and_count():
    logits, labels = draw(6, 5), torch.tensor([1, 2, 3, 4, -100, 0])
    classes = torch.tensor([6, 7, 6, 0, 7, 7])
    terms = span_terms(logits, labels, classes, (6,), (7,), pos=2.0, neg=0.5)
    like, unlike = terms[6], terms[7]
    torch.testing.assert_close(like[0], 2 * F.cross_entropy(logits[[0, 2]], labels[[0, 2]], reduction="sum"))
    q = logits.softmax(-1)
    torch.testing.assert_close(unlike[0], -0.5 * ((1 - q[1, 2]).log() + (1 - q[5, 0]).log()))
    assert (like[1], unlike[1]) == (2, 2)


def test_odds_equal_naive_ones_in_fp64_and_survive_extremes_in_fp32():
    p = torch.sigmoid(draw(4, 6, scale=3))
    events = Event(p.log(), (1 - p).log())
    some, whole = any_of(events), all_of(events)
    torch.testing.assert_close(some.log_p, (1 - (1 - p).prod(-1)).log(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(whole.log_not, (1 - p.prod(-1)).log(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(whole.log_p, p.log().sum(-1))
    x = torch.tensor([-1e-300, -1e-20, -0.5, -0.7, -50.0, -1e4], dtype=torch.float64)
    wanted = [math.log(-math.expm1(v)) if v > -0.69 else math.log1p(-math.exp(v)) for v in x.tolist()]
    torch.testing.assert_close(log1mexp(x), torch.tensor(wanted, dtype=torch.float64), rtol=1e-14, atol=0)
    z = torch.tensor(EXTREMES)[:, None].repeat(1, 3).requires_grad_()
    found = any_of(Event(F.logsigmoid(z), F.logsigmoid(-z)))
    (found.log_p.sum() + found.log_not.sum()).backward()
    assert found.log_p.isfinite().all() and found.log_not.isfinite().all() and z.grad.isfinite().all()
    torch.testing.assert_close(found.log_p[:2], z[:2, 0] + math.log(3))  # rare: 3 p


@pytest.mark.parametrize("centre", [-11.99, -12.01, math.log(1e-3 / 3)])
def test_the_series_meets_the_formula_where_they_change(centre):
    z = torch.full((1, 3), centre, dtype=torch.float64)
    p = torch.sigmoid(z)
    log_any = any_of(Event(F.logsigmoid(z), F.logsigmoid(-z))).log_p
    naive = torch.log(-torch.expm1(torch.log1p(-p).sum(-1)))
    torch.testing.assert_close(log_any, naive, rtol=1e-13, atol=0)


def hazards(logits_RNJV, opener, counted, tool):
    return early_tool(opener_event(logits_RNJV, opener), counted, tool)


def test_hazards_equal_a_naive_twin_with_one_and_several_tokens():
    logits, opener = draw(4, 3, 2, 5), torch.tensor([4, 1])
    counted = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    tool = torch.tensor([True, True, False, True])
    found = hazards(logits, opener, counted, tool)
    q = logits.softmax(-1)
    h = (q[..., 0, 4] * q[..., 1, 1]) * counted
    none = (1 - h).prod(1)
    torch.testing.assert_close(found.called, -(1 - none[:2]).log().sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.refrained, -none[2].log(), rtol=1e-10, atol=0)
    assert (found.called_rows, found.refrained_rows) == (2, 1)  # an empty window counts nowhere
    variable = draw(4, 3, 2, 5, seed=2).requires_grad_()

    def total(x):
        one = hazards(x, opener, counted, tool)
        return one.called + one.refrained

    assert gradcheck(total, variable)
    total(variable).backward()
    assert not variable.grad[3].any() and not variable.grad[1, 2].any()


@pytest.mark.parametrize("opener", [[0], [0, 0, 0]])
def test_hazards_stay_finite_at_extremes(opener):
    opener = torch.tensor(opener)
    logits = torch.zeros(len(EXTREMES), 2, len(opener), 4)
    logits[..., 0] = torch.tensor(EXTREMES)[:, None, None]
    for tool in (True, False):
        variable = logits.clone().requires_grad_()
        found = hazards(variable, opener, torch.ones(7, 2, dtype=torch.bool), torch.full((7,), tool))
        total = found.called if tool else found.refrained
        total.backward()
        assert total.isfinite() and variable.grad.isfinite().all()
        worst = variable.grad[0 if tool else -1, :, :, 0]
        assert worst.abs().sum() > 0.9, "the worst row must still be moved"


def test_the_window_begins_at_the_turn():
    values = torch.arange(12.0).view(2, 6)
    found, counted = window(values, torch.tensor([3, 0]), torch.tensor([5, 4]), 3)
    assert found[0, :2].tolist() == [2.0, 3.0] and counted.tolist() == [[True, True, False], [False] * 3]
    last, counted = window(values, torch.tensor([5, 6]), torch.tensor([9, 9]), 3)
    assert counted.tolist() == [[True, True, False], [True, False, False]] and last[1, 0] == 11


def test_only_what_is_complete_is_told_to_end():
    end = -draw(2, 6).abs()
    complete = torch.tensor([[0, 0, 0, 0, 1, 1], [1] * 6], dtype=torch.bool)
    counted = torch.tensor([[1] * 6, [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    total, count = overlong(end, torch.tensor([3.0, 3.0]), complete, counted)  # too late from 4 on
    torch.testing.assert_close(total, -(end[0, 4:].sum() + end[1, 3:5].sum()))
    assert count == 4
    assert overlong(end, torch.tensor([9.0, 9.0]), complete, counted)[1] == 0


def test_what_was_said_is_exact_for_any_logit():
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]])
    event = said(logits, torch.tensor([0, 0]))
    assert event.log_not[0] == -200 and event.log_p[1] == -200
