"""Chunks against the plain graph: sums, every gradient, every head and teacher, and what is kept alive."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from quietreasoning.contract import IGNORE
from quietreasoning.losses.kd import Divergence
from quietreasoning.losses.kd_chunked import chunk_rows, chunked_kd
from quietreasoning.losses.kd_sparse import SampledTeacher, SparseTeacher
from quietreasoning.losses.kd_targets import DenseTeacher, StateTeacher

N, D, V = 13, 5, 17
FAMILY = [
    Divergence(),
    Divergence(beta=1.0, temperature=2.0),
    Divergence(beta=0.3),
    Divergence(beta=0.6, scaled=True),
    Divergence("skew", skew=0.2),
    Divergence("tv"),
]


def made(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(seed, *shape):
    return made(seed, *shape).requires_grad_()


def plain_head():
    weight = leaf(2, V, D)
    return lambda h: h @ weight.T, [weight]


def full_head():
    """Bias, softcap and scale."""
    weight, bias, scale = leaf(2, V, D), leaf(3, V), leaf(4, 1)
    return lambda h: 3 * torch.tanh(scale * F.linear(h, weight, bias) / 3), [weight, bias, scale]


def lora_head():
    """A frozen weight and two factors, with a bias frozen too."""
    weight, down, up = made(2, V, D), leaf(3, 2, D), leaf(4, V, 2)
    return lambda h: h @ weight.T + (h @ down.T) @ up.T, [weight, down, up]


def merged_head():
    """The same two factors, merged outside: the merged weight is no leaf."""
    down, up = leaf(3, 2, D), leaf(4, V, 2)
    merged = made(2, V, D) + up @ down
    return lambda h: h @ merged.T, [merged]


def twin_head():
    """Two leaves that autograd hands one and the same gradient."""
    weight, one, two = leaf(2, V, D), leaf(3, V), leaf(4, V)
    return lambda h: h @ weight.T + (one + two), [weight, one, two, weight]


HEADS = [plain_head, full_head, lora_head, merged_head, twin_head]


def dense_teacher():
    return DenseTeacher(made(10, N, V))


def state_teacher():
    weight = made(11, V + 3, D + 1).requires_grad_()
    return StateTeacher(made(12, N, D + 1), lambda h: h @ weight.T)


def sparse_teacher(tail="bucket"):
    return SparseTeacher.of(made(10, N, V), 4, tail, (2.0,))


def sampled_teacher():
    return SampledTeacher(torch.randint(0, V, (N, 6), generator=torch.Generator().manual_seed(5)))


def case():
    """Hidden states that depend on a tied weight, labels and weights with every kind of row."""
    labels = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))
    kd_weight, ce_weight = made(20, N).abs(), made(21, N).abs()
    labels[[0, 7]] = IGNORE
    kd_weight[[2, 8]] = 0
    ce_weight[[3, 8]] = 0
    return labels, kd_weight, ce_weight


def plainly(hidden, head, teacher, choice, labels, kd_weight, ce_weight, temperature=None):
    counted = labels != IGNORE
    logits = head(hidden)
    kd = (teacher.against(logits, choice, temperature) * kd_weight * counted).sum()
    ce = (F.cross_entropy(logits, labels, reduction="none") * ce_weight).sum()
    return kd, ce


def slopes(kd, ce, leaves):
    """Of an unequal mixture, as when both are divided by counts of their own."""
    return torch.autograd.grad(0.7 * kd + 0.2 * ce, leaves, retain_graph=True)


def compare(head_of, teacher, choice, chunk, temperature=None):
    hidden, (head, known) = leaf(0, N, D), head_of()
    labels, kd_weight, ce_weight = case()
    leaves = [hidden, *dict.fromkeys(each for each in known if each.requires_grad)]
    wanted = plainly(hidden, head, teacher, choice, labels, kd_weight, ce_weight, temperature)
    settings = {
        "kd_weight_N": kd_weight,
        "ce_weight_N": ce_weight,
        "temperature_N": temperature,
        "chunk": chunk,
    }
    found = chunked_kd(hidden, head, known, teacher, labels, choice, metrics=True, **settings)
    for one, other in zip(found[1:3], wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    torch.testing.assert_close(slopes(*found[1:3], leaves), slopes(*wanted, leaves), rtol=0, atol=1e-10)
    joint = chunked_kd(hidden, head, known, teacher, labels, choice, joint=True, **settings)
    assert not joint.kd.requires_grad and not joint.ce.requires_grad
    torch.testing.assert_close(joint[1:3], found[1:3])
    for one in (joint, found):
        torch.testing.assert_close(
            torch.autograd.grad(one.total, leaves), slopes(wanted[0] / 0.7, wanted[1] / 0.2, leaves)
        )
    return found


@pytest.mark.parametrize("choice", FAMILY, ids=str)
@pytest.mark.parametrize("chunk", [1, 4, N])
def test_every_divergence_and_odd_chunks(choice, chunk):
    compare(plain_head, state_teacher(), choice, chunk)


@pytest.mark.parametrize("head_of", HEADS)
@pytest.mark.parametrize("chunk", [1, 3, N])
def test_every_head(head_of, chunk):
    compare(head_of, dense_teacher(), Divergence(beta=0.5), chunk)


@pytest.mark.parametrize("tail", ["bucket", "zero", "renorm", "uniform", "sampled"])
def test_teachers_that_know_less(tail):
    choice = Divergence() if tail == "sampled" else Divergence(temperature=2.0)
    compare(full_head, sampled_teacher() if tail == "sampled" else sparse_teacher(tail), choice, 3)


def test_a_temperature_for_each_position_stays_with_its_position():
    compare(plain_head, dense_teacher(), Divergence(beta=0.2), 3, 1 + made(30, N).abs())


def test_counts_and_metrics_are_over_the_rows_that_count():
    for chunk in (3, N):
        found = compare(plain_head, dense_teacher(), Divergence(), chunk)
        labels, kd_weight, ce_weight = case()
        head, _ = plain_head()
        logits, counted = head(made(0, N, D)).detach(), labels != IGNORE
        in_kd, in_ce = counted & (kd_weight != 0), counted & (ce_weight != 0)
        p = logits.softmax(-1)
        assert (found.kd_rows, found.ce_rows) == (int(in_kd.sum()), int(in_ce.sum())) == (9, 9)
        torch.testing.assert_close(found.kd_mass, kd_weight[in_kd].sum())
        torch.testing.assert_close(found.ce_mass, ce_weight[in_ce].sum())
        torch.testing.assert_close(found.entropy, -(p * p.log()).sum(-1)[in_kd].sum())
        best = logits.argmax(-1)
        assert found.agree == (best == made(10, N, V).argmax(-1))[in_kd].sum()
        assert found.hits == (best == labels)[in_ce].sum()


def test_a_tied_weight_that_is_also_used_elsewhere_gets_both_gradients():
    weight, ids = leaf(2, V, D), torch.arange(N)
    labels, _, _ = case()

    def run(chunk):
        hidden = torch.tanh(F.embedding(ids, weight))
        found = chunked_kd(
            hidden,
            lambda h: h @ weight.T,
            [weight],
            StateTeacher(hidden, lambda h: h @ weight.T),
            labels,
            Divergence(beta=0.5, temperature=2.0),
            chunk=chunk,
        )
        return torch.autograd.grad(found.total + weight.square().sum(), weight)[0]

    torch.testing.assert_close(run(4), run(N), rtol=0, atol=1e-10)


def test_gradcheck_of_both_sums():
    labels, kd_weight, ce_weight = (each[:5].clamp(max=5) for each in case())
    teacher = DenseTeacher(made(10, 5, 6))

    def sums(hidden, weight, bias):
        return chunked_kd(
            hidden,
            lambda h: F.linear(h, weight, bias),
            [weight, bias],
            teacher,
            labels,
            Divergence(beta=0.4, scaled=True),
            kd_weight_N=kd_weight,
            ce_weight_N=ce_weight,
            chunk=2,
        )[1:3]

    assert torch.autograd.gradcheck(sums, (leaf(0, 5, 2), leaf(2, 6, 2), leaf(3, 6)))


@pytest.mark.parametrize("chunk", [2, N])
def test_two_halves_add_up(chunk):
    hidden, (head, known) = leaf(0, N, D), full_head()
    labels, kd_weight, ce_weight = case()
    teacher, leaves = dense_teacher(), [hidden, *known]

    def run(rows):
        found = chunked_kd(
            hidden[rows],
            head,
            known,
            teacher.rows(rows),
            labels[rows],
            Divergence(beta=0.5),
            kd_weight_N=kd_weight[rows],
            ce_weight_N=ce_weight[rows],
            chunk=chunk,
            metrics=True,
        )
        return found, slopes(found.kd, found.ce, leaves)

    whole, parts = run(slice(None)), [run(rows) for rows in (slice(0, 5), slice(5, N))]
    for one, other in zip(zip(*(part[0] for part in parts), strict=True), whole[0], strict=True):
        torch.testing.assert_close(torch.as_tensor(sum(one)), torch.as_tensor(other))
    for one, other in zip(zip(*(part[1] for part in parts), strict=True), whole[1], strict=True):
        torch.testing.assert_close(sum(one), other)


class Watch(TorchDispatchMode):
    """The most elements any tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


@pytest.mark.parametrize("teacher", ["state", "sparse", "sampled"])
@pytest.mark.parametrize("choice", [Divergence(), Divergence(beta=0.5)], ids=str)
def test_the_logits_are_never_whole(teacher, choice):
    if teacher == "sampled" and not choice.forward:
        return
    rows, ids = 60, 64
    hidden, weight = leaf(0, rows, 3), leaf(1, ids, 3)
    made_of = {
        "state": StateTeacher(made(2, rows, 3), lambda h: h @ weight.T),
        "sparse": SparseTeacher.of(made(3, rows, ids), 3),
        "sampled": SampledTeacher(torch.zeros(rows, 2, dtype=torch.long)),
    }[teacher]

    def largest(chunk):
        with Watch() as watch:
            found = chunked_kd(
                hidden,
                lambda h: h @ weight.T,
                [weight],
                made_of,
                torch.zeros(rows, dtype=torch.long),
                choice,
                chunk=chunk,
                metrics=True,
            )
            torch.autograd.grad(found.kd + 2 * found.ce, [hidden, weight])
        return watch.elements

    assert largest(rows) >= rows * ids and largest(5) <= 5 * ids


@pytest.mark.parametrize("chunk", [2, N])
def test_rows_that_do_not_count_cost_no_product_and_may_hold_anything(chunk):
    labels, kd_weight, _ = case()
    labels[labels == IGNORE] = 0
    teacher_NV, hidden = made(10, N, V), made(0, N, D)
    labels[4], labels[6] = IGNORE, IGNORE
    kd_weight[5] = 0
    hidden[[4, 6]] = torch.nan
    teacher_NV[[4, 5, 6]] = torch.nan  # row 5 is in cross-entropy alone
    hidden.requires_grad_()
    weight, seen = leaf(2, V, D), []

    def head(hidden_CD):
        seen.append(len(hidden_CD))
        return hidden_CD @ weight.T

    found = chunked_kd(
        hidden,
        head,
        [weight],
        DenseTeacher(teacher_NV),
        labels,
        Divergence(beta=0.5),
        kd_weight_N=kd_weight,
        chunk=chunk,
    )
    grads = torch.autograd.grad(found.total, [hidden, weight])
    assert sum(seen) == N - 2 and found.total.isfinite() and all(each.isfinite().all() for each in grads)
    assert not grads[0][[4, 6]].any() and grads[0][5].any()


@pytest.mark.parametrize("rows", [N, 0])
def test_nothing_to_learn_is_a_zero_on_the_graph(rows):
    hidden, weight = leaf(0, rows, D), leaf(2, V, D)
    with torch.no_grad():
        hidden.fill_(torch.nan)
    labels = torch.full((rows,), IGNORE)
    teacher = DenseTeacher(made(10, rows, V))
    found = chunked_kd(hidden, lambda h: h @ weight.T, [weight], teacher, labels, Divergence(), chunk=2)
    assert (found.kd, found.ce, found.kd_rows, found.ce_mass) == (0, 0, 0, 0)
    for each in torch.autograd.grad(found.kd + found.ce, [hidden, weight]):
        assert not each.any()


def test_one_of_the_sums_alone_and_no_gradient_at_all():
    hidden, (head, known), teacher = leaf(0, N, D), plain_head(), dense_teacher()
    labels, _, _ = case()
    zeros = torch.zeros(N)
    whole = chunked_kd(hidden, head, known, teacher, labels, Divergence(), chunk=4)
    kd = chunked_kd(hidden, head, known, teacher, labels, Divergence(), chunk=4, ce_weight_N=zeros)
    ce = chunked_kd(hidden, head, known, teacher, labels, Divergence(), chunk=4, kd_weight_N=zeros)
    assert kd.ce == 0 == ce.kd and kd.ce_rows == 0 == ce.kd_rows
    torch.testing.assert_close((kd.kd, ce.ce), (whole.kd, whole.ce))
    of_hidden, of_weight = torch.autograd.grad(whole.total, [hidden, *known])
    parts = [torch.autograd.grad(each.total, hidden)[0] for each in (kd, ce)]
    torch.testing.assert_close(sum(parts), of_hidden)
    every = chunked_kd(hidden, head, known, teacher, None, Divergence(), chunk=4)
    assert every.kd_rows == N and every.ce == 0
    with torch.no_grad():
        mute = chunked_kd(hidden, head, known, teacher, labels, Divergence(), chunk=4, metrics=True)
    assert not mute.total.requires_grad
    torch.testing.assert_close(mute[:3], whole[:3])
    frozen = chunked_kd(hidden.detach(), head, known, teacher, labels, Divergence(), chunk=4)
    torch.testing.assert_close(torch.autograd.grad(frozen.total, known), (of_weight,))


@pytest.mark.parametrize("own_precision", [False, True])
def test_autocast_is_the_heads_and_a_weight_seen_without_gradient_keeps_its_own(own_precision):
    hidden, weight = (made(seed, rows, 16).float().requires_grad_() for seed, rows in ((0, 40), (1, 64)))

    def head(hidden_CD):
        with torch.autocast("cpu", torch.bfloat16, enabled=low and not own_precision):
            return F.linear(hidden_CD, weight)

    def run(chunk):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            with torch.no_grad():
                head(hidden)  # a cast that autocast must not remember for what follows
            teacher = StateTeacher(made(2, 40, 16).float(), head)
            found = chunked_kd(
                hidden, head, [weight], teacher, torch.arange(40), Divergence(beta=0.3), chunk=chunk
            )
        assert found.total.dtype == torch.float32
        return found.total, torch.autograd.grad(found.total, [hidden, weight])

    low = False
    exact, exact_grads = run(40)
    low = True
    for chunk in (9, 40):
        total, grads = run(chunk)
        torch.testing.assert_close(total, exact, rtol=1e-6 if own_precision else 1e-2, atol=0)
        assert own_precision or not torch.equal(total, exact), "autocast reaches the products"
        for one, other in zip(grads, exact_grads, strict=True):
            assert one.dtype == torch.float32
            assert (one - other).norm() < (1e-5 if own_precision else 0.03) * other.norm()


def test_a_bf16_head_gathers_its_gradient_in_fp32():
    hidden, weight = made(0, 150, 8).bfloat16(), made(1, 32, 8).bfloat16().requires_grad_()
    teacher, labels = DenseTeacher(made(2, 150, 32).bfloat16()), torch.zeros(150, dtype=torch.long)

    def slope(head_weight, states, chunk):
        found = chunked_kd(
            states, lambda h: h @ head_weight.T, [head_weight], teacher, labels, Divergence(), chunk=chunk
        )
        return torch.autograd.grad(found.total, head_weight)[0]

    exact = slope(weight.detach().double().requires_grad_(), hidden.double(), 150)
    found = slope(weight, hidden, 1)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() < 0.005 * exact.norm()  # twice that with a sum in bf16


def test_a_tensor_that_is_not_named_is_refused_instead_of_forgotten():
    hidden, weight, bias = leaf(0, N, D), leaf(2, V, D), leaf(3, V)
    for chunk in (3, N):
        with pytest.raises(ValueError, match=r"a tensor \(17,\) with a gradient that is not among"):
            chunked_kd(
                hidden,
                lambda h: F.linear(h, weight, bias),
                [weight],
                dense_teacher(),
                None,
                Divergence(),
                chunk=chunk,
            )


def test_what_does_not_fit_is_refused():
    hidden, (head, known), teacher = leaf(0, N, D), plain_head(), dense_teacher()
    labels = torch.zeros(N, dtype=torch.long)
    for settings, message in [
        ({"chunk": 0}, "chunk=0"),
        ({"kd_weight_N": torch.ones(N - 1)}, "do not fit"),
        ({"teacher": SampledTeacher(labels[:, None]), "choice": Divergence(beta=0.5)}, "forward KL alone"),
        ({"head": lambda h: h.sum()}, r"not \[C, V\]"),
    ]:
        given = {
            "head": head,
            "parameters": known,
            "teacher": teacher,
            "labels_N": labels,
            "choice": Divergence(),
        }
        with pytest.raises(ValueError, match=message):
            chunked_kd(hidden, **(given | settings))


@pytest.mark.parametrize(("vocabulary", "rows"), [(64, 1024), (151_936, 55), (10**7, 16)])
def test_a_chunk_has_fewer_rows_the_larger_the_vocabulary(vocabulary, rows):
    assert chunk_rows(vocabulary, torch.device("cpu")) == rows
    assert rows <= chunk_rows(vocabulary, torch.device("cuda")) <= 1024
