"""The chunked losses against their formulas on full logits: values, gradients, and what they keep alive."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from quietreasoning.contract import IGNORE
from quietreasoning.losses.language import chunked_next_token, unlikelihood
from quietreasoning.losses.next_token import next_token

N, D, V = 23, 6, 17
LEXICON = (2, 5, 11)
CHUNKS = [1, 5, 23, 1024]


def case(dtype=torch.float32, rows=N, width=D, vocabulary=V, ignored=0.3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=draw, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (rows,), generator=draw)
    labels = labels.masked_fill(torch.rand(rows, generator=draw) < ignored, IGNORE)
    return [*(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), labels]


def naive_next_token(hidden, weight, bias, labels, z_weight=0.0):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    z2 = (logits.logsumexp(-1).square() * (labels != IGNORE)).sum()
    nll = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return nll + z_weight * z2, nll, z2, (logits.argmax(-1) == labels).sum(), (labels != IGNORE).sum()


def naive_unlikelihood(hidden, weight, bias, labels):
    p = (hidden @ weight.T + (0 if bias is None else bias)).softmax(-1)
    total = 0
    for row, label in zip(p, labels.tolist(), strict=True):
        if label != IGNORE:
            total = total - torch.log(1 - sum(row[v] for v in LEXICON if v != label))
    return total


def gradients(total, leaves):
    return torch.autograd.grad(3.5 * total, leaves)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_next_token_equals_full_logits(chunk, compact):
    hidden, weight, bias, labels = case()
    got = chunked_next_token(hidden, weight, labels, chunk=chunk, bias_V=bias, z_weight=0.1, compact=compact)
    want = naive_next_token(hidden, weight, bias, labels, 0.1)
    torch.testing.assert_close(tuple(got), want, rtol=1e-5, atol=1e-5)
    for g, w in zip(
        gradients(got.total, (hidden, weight, bias)), gradients(want[0], (hidden, weight, bias)), strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_gradients_in_double_precision(chunk):
    hidden, weight, bias, labels = case(torch.float64, rows=7)
    assert torch.autograd.gradcheck(
        lambda h, w, b: chunked_next_token(h, w, labels[:7], chunk=chunk, bias_V=b, z_weight=0.3).total,
        (hidden, weight, bias),
    )
    assert torch.autograd.gradcheck(
        lambda h, w, b: unlikelihood(h, w, LEXICON, labels[:7], chunk=chunk, bias_V=b)[0],
        (hidden, weight, bias),
    )


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_unlikelihood_equals_the_probabilities(chunk, compact):
    hidden, weight, bias, labels = case(torch.float64)
    assert set(labels.tolist()) & set(LEXICON), "one label is itself in the lexicon"
    total, count = unlikelihood(hidden, weight, LEXICON, labels, chunk=chunk, bias_V=bias, compact=compact)
    want = naive_unlikelihood(hidden, weight, bias, labels)
    assert count == (labels != IGNORE).sum()
    torch.testing.assert_close(total, want)
    leaves = (hidden, weight, bias)
    torch.testing.assert_close(gradients(total, leaves), gradients(want, leaves))


def test_three_tokens_by_hand():
    weight = torch.eye(3)
    hidden = torch.tensor([[math.log(2.0), 0, 0], [0, 0, 0], [0, math.log(6.0), 0]])
    labels = torch.tensor([0, 1, 2])  # p = 2/4, 1/3, 1/8
    got = chunked_next_token(hidden, weight, labels, chunk=2)
    assert got.nll.item() == pytest.approx(math.log(2 * 3 * 8))
    assert got.z2.item() == pytest.approx(math.log(4) ** 2 + math.log(3) ** 2 + math.log(8) ** 2)
    assert (int(got.hits), int(got.count)) == (1, 3)
    total, _ = unlikelihood(hidden, weight, (1,), labels)  # 1 - p(1) = 3/4, the label itself, 2/8
    assert total.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 4), rel=1e-5)


def test_agrees_with_the_plain_loss():
    hidden, weight, _, labels = case(rows=64)
    got = chunked_next_token(hidden, weight, labels, chunk=10)
    total, hits, count = next_token(hidden @ weight.T, labels)
    torch.testing.assert_close(got.total, total)
    assert (got.hits, got.count) == (hits, count)


@pytest.mark.parametrize("loss", ["next_token", "unlikelihood"])
def test_bf16_autocast_stays_near_and_gives_gradients_of_the_leaves_kind(loss):
    def run(low):
        hidden, weight, bias, labels = case(rows=64, width=32, seed=3)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            if loss == "next_token":
                total = chunked_next_token(hidden, weight, labels, chunk=9, bias_V=bias, z_weight=0.01).total
            else:
                total = unlikelihood(hidden, weight, LEXICON, labels, chunk=9, bias_V=bias)[0]
        assert total.dtype == torch.float32
        return total, gradients(total, (hidden, weight, bias))

    (exact, exact_grads), (low, low_grads) = run(False), run(True)
    torch.testing.assert_close(low, exact, rtol=1e-2, atol=0)
    assert not torch.equal(low, exact), "autocast reaches the products"
    for g, want in zip(low_grads, exact_grads, strict=True):
        assert g.dtype == torch.float32
        assert (g - want).norm() < 0.03 * want.norm()


def test_weights_in_bf16_keep_statistics_in_fp32():
    hidden, weight, _, labels = case(torch.bfloat16, rows=64, ignored=0)
    got = chunked_next_token(hidden, weight, labels, chunk=8)
    want = next_token((hidden @ weight.T).float(), labels)[0]
    torch.testing.assert_close(got.total, want)
    assert [g.dtype for g in gradients(got.total, (hidden, weight))] == [torch.bfloat16] * 2


class Largest(TorchDispatchMode):
    """The most elements any tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("loss", ["next_token", "unlikelihood"])
def test_the_logits_are_never_whole(loss):
    rows, width, vocabulary, chunk = 96, 4, 50, 8
    hidden, weight, bias, labels = case(rows=rows, width=width, vocabulary=vocabulary)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x)
    with Largest() as largest:
        with hooks:
            if loss == "next_token":
                total = chunked_next_token(hidden, weight, labels, chunk=chunk, bias_V=bias).total
            else:
                total = unlikelihood(hidden, weight, LEXICON, labels, chunk=chunk, bias_V=bias)[0]
        total.backward()
    assert 0 < max(saved) <= max(rows * width, vocabulary * width)
    assert vocabulary * chunk <= largest.elements <= vocabulary * max(chunk, width)


def test_what_needs_no_gradient_gets_none_and_costs_none():
    hidden, weight, bias, labels = case(rows=64)
    weight.requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.shape), x)[1], lambda x: x):
        chunked_next_token(hidden, weight, labels, bias_V=bias).total.backward()
    assert weight.grad is None and hidden.grad.any() and weight.shape not in saved
    with torch.no_grad():
        got = chunked_next_token(hidden, weight, labels)
    assert not got.total.requires_grad
    assert got.total == chunked_next_token(hidden, weight, labels).total
    got = chunked_next_token(hidden, weight, labels)
    assert not got.nll.requires_grad and not got.z2.requires_grad


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_predict_is_a_zero_with_a_graph(rows, compact):
    hidden, weight, _, _ = case(rows=rows)
    labels = torch.full((rows,), IGNORE)
    got = chunked_next_token(hidden, weight, labels, z_weight=1.0, compact=compact)
    assert (got.total.item(), got.z2.item(), int(got.hits), int(got.count)) == (0, 0, 0, 0)
    total, count = unlikelihood(hidden, weight, LEXICON, labels, compact=compact)
    assert (total.item(), int(count)) == (0, 0)
    (got.total + total).backward()
    assert not hidden.grad.any() and not weight.grad.any()


def test_rows_that_do_not_count_may_hold_anything():
    hidden, weight, _, labels = case()
    want = chunked_next_token(hidden, weight, labels).total
    with torch.no_grad():
        hidden[labels == IGNORE] = float("nan")
    got = chunked_next_token(hidden, weight, labels)
    torch.testing.assert_close(got.total, want)
    got.total.backward()
    assert weight.grad.isfinite().all() and not hidden.grad[labels == IGNORE].any()


def test_halves_add_up_and_shapes_are_free():
    hidden, weight, _, labels = case(rows=24)
    whole = chunked_next_token(hidden, weight, labels, z_weight=0.1)
    parts = [chunked_next_token(hidden[i::2], weight, labels[i::2], z_weight=0.1) for i in (0, 1)]
    shaped = chunked_next_token(hidden.view(2, 12, D), weight, labels.view(2, 12), z_weight=0.1)
    for i in range(5):
        torch.testing.assert_close(whole[i], parts[0][i] + parts[1][i])
        torch.testing.assert_close(whole[i], shaped[i])
    whole_penalty = unlikelihood(hidden, weight, LEXICON, labels)
    parts = [unlikelihood(hidden[i::2], weight, LEXICON, labels[i::2]) for i in (0, 1)]
    for i in range(2):
        torch.testing.assert_close(whole_penalty[i], parts[0][i] + parts[1][i])


def test_the_penalty_depends_on_what_is_predicted_and_pushes_it_down():
    weight, labels = torch.eye(V), torch.zeros(2, dtype=torch.long)
    leaking, clean = torch.zeros(2, V), torch.zeros(2, V)
    leaking[:, list(LEXICON)], clean[:, list(LEXICON)] = 3.0, -3.0
    leaking.requires_grad_()
    total, _ = unlikelihood(leaking, weight, LEXICON, labels)
    assert total > 50 * unlikelihood(clean, weight, LEXICON, labels)[0]
    slope = torch.autograd.grad(total, leaking)[0]
    banned = torch.zeros(V, dtype=torch.bool).index_fill(0, torch.tensor(LEXICON), True)
    assert (slope[:, banned] > 0.01).all() and (slope[:, ~banned] < 0).all()


def test_the_penalty_of_a_certain_leak_is_finite_and_still_has_a_slope():
    hidden = torch.zeros(1, V)
    hidden[0, LEXICON[0]] = 200.0  # 1 - p is zero in fp32
    hidden.requires_grad_()
    total, _ = unlikelihood(hidden, torch.eye(V), LEXICON, torch.zeros(1, dtype=torch.long))
    assert total.item() == pytest.approx(200 - math.log(V - len(LEXICON)), rel=1e-5)
    total.backward()
    assert hidden.grad[0, LEXICON[0]].item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("lexicon", "message"),
    [((), "lexicon is empty.*give token ids"), ((V,), "ids of 0..16"), ((-1, 2), "ids of 0..16")],
)
def test_a_lexicon_that_cannot_work_is_refused(lexicon, message):
    hidden, weight, _, labels = case()
    with pytest.raises(ValueError, match=message):
        unlikelihood(hidden, weight, lexicon, labels)
    with pytest.raises(ValueError, match="not all of them"):
        unlikelihood(hidden, weight, tuple(range(V)), labels)


def test_shapes_that_do_not_fit_are_refused():
    hidden, weight, _, labels = case()
    with pytest.raises(ValueError, match="do not fit"):
        chunked_next_token(hidden, weight, labels[1:])
    with pytest.raises(ValueError, match="do not fit"):
        chunked_next_token(hidden, weight[:, 1:], labels)
    with pytest.raises(ValueError, match="chunk=0"):
        chunked_next_token(hidden, weight, labels, chunk=0)
