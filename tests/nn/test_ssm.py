"""The chunked scan is the recurrence, however a sequence is cut; the expert is Mamba-2's layer."""

import pytest
import torch

from quietreasoning.nn import ssd as scan
from quietreasoning.nn.ssd import ssd
from quietreasoning.nn.ssm import SSMExpert, SSMState

TIGHT = {torch.float64: {"rtol": 1e-10, "atol": 1e-11}, torch.float32: {"rtol": 2e-4, "atol": 2e-4}}


def naive(x_RTHP, dt_RTH, a_H, b_RTN, c_RTN, h_RHPN):
    """h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T; y_t = h_t c_t, one token after another."""
    outputs = []
    for t in range(x_RTHP.shape[1]):
        decay_RH = torch.exp(dt_RTH[:, t] * a_H)
        fed_RHPN = torch.einsum("rh,rhp,rn->rhpn", dt_RTH[:, t], x_RTHP[:, t], b_RTN[:, t])
        h_RHPN = decay_RH[:, :, None, None] * h_RHPN + fed_RHPN
        outputs.append(torch.einsum("rhpn,rn->rhp", h_RHPN, c_RTN[:, t]))
    return torch.stack(outputs, 1), h_RHPN


def draws(tokens, dtype=torch.float64, rows=2, heads=3, channels=4, size=5, dt=1.0, a=2.0):
    """x, dt, a, B, C and an initial state."""
    made = torch.Generator().manual_seed(tokens)
    normal = lambda *shape: torch.randn(*shape, generator=made, dtype=dtype)  # noqa: E731
    uniform = lambda *shape: torch.rand(*shape, generator=made, dtype=dtype)  # noqa: E731
    return [
        normal(rows, tokens, heads, channels),
        dt * uniform(rows, tokens, heads),
        -a * uniform(heads),
        normal(rows, tokens, size),
        normal(rows, tokens, size),
        normal(rows, heads, channels, size),
    ]


def chunked(chunk):
    return lambda x, dt, a, b, c, h: ssd(x, dt, a, b, c, chunk=chunk, h_RHPN=h)


def results(function, inputs):
    """y, the last state, and the gradient of a random mix of both with respect to every input."""
    inputs = [part.clone().requires_grad_() for part in inputs]
    outputs = function(*inputs)
    made = torch.Generator().manual_seed(1)
    mix = [torch.randn(out.shape, generator=made, dtype=torch.float64).to(out.dtype) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, mix)]


def expert(dtype=torch.float64, inner=16, chunk=4, **options):
    """A small expert with every parameter away from its start."""
    torch.manual_seed(0)
    made = SSMExpert(12, inner, 6, head_dim=4, chunk=chunk, **options).to(dtype)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
        made.dt_bias_H.add_(3.0)  # so that the state forgets within a few tokens
    return made


def tokens(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, 12, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("length", [1, 2, 16, 29])
@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
def test_chunks_equal_the_recurrence_with_all_gradients(chunk, length, dtype):
    inputs = draws(length, dtype)
    for found, expected in zip(results(chunked(chunk), inputs), results(naive, inputs), strict=True):
        torch.testing.assert_close(found, expected, **TIGHT[dtype])


@pytest.mark.parametrize("elements", [1, 2 * 2 * 4 * 3 * 4, 1 << 30])
def test_blocks_of_chunks_change_nothing(elements, monkeypatch):
    """One chunk at a time, two at a time with one left over, and all at once."""
    monkeypatch.setattr(scan, "CACHE_ELEMENTS", elements)
    inputs = draws(20)
    for found, expected in zip(results(chunked(4), inputs), results(naive, inputs), strict=True):
        torch.testing.assert_close(found, expected, **TIGHT[torch.float64])


def test_no_state_is_a_zero_state():
    x, dt, a, b, c, h = draws(10)
    for found, expected in zip(
        ssd(x, dt, a, b, c, chunk=4), ssd(x, dt, a, b, c, chunk=4, h_RHPN=torch.zeros_like(h)), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("cuts", [[7, 1, 1, 14], [1, 22], [20, 3]])
def test_a_sequence_cut_anywhere_equals_one_call_with_its_gradients(cuts):
    def in_pieces(x, dt, a, b, c, h):
        outputs = []
        for part in zip(*(whole.split(cuts, 1) for whole in (x, dt, b, c)), strict=True):
            y, h = ssd(part[0], part[1], a, *part[2:], chunk=4, h_RHPN=h)
            outputs.append(y)
        return torch.cat(outputs, 1), h

    inputs = draws(sum(cuts))
    for found, expected in zip(results(in_pieces, inputs), results(chunked(8), inputs), strict=True):
        torch.testing.assert_close(found, expected, **TIGHT[torch.float64])


def test_strong_decays_neither_overflow_nor_blur_what_follows():
    x, dt, a, b, c, h = draws(32, torch.float32, dt=1e-2)
    dt[:, :16] = 1e3  # the exponents of the first half sum to about -1e4
    found = results(chunked(32), [x, dt, a, b, c, h])
    assert all(part.isfinite().all() for part in found)
    expected = results(naive, [part.double() for part in (x, dt, a, b, c, h)])
    # states of about 1e3 fade over the second half
    torch.testing.assert_close(found[0][:, 16:].double(), expected[0][:, 16:], rtol=3e-4, atol=1e-2)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=3e-4, atol=1e-2)
    late = [part[2][:, 16:] for part in (found, expected)]  # gradient of x
    torch.testing.assert_close(late[0].double(), late[1], rtol=3e-4, atol=1e-6)


def test_dt_zero_keeps_the_state():
    x, dt, a, b, c, h = draws(9)
    _, after = ssd(x, torch.zeros_like(dt), a, b, c, chunk=4, h_RHPN=h)
    assert torch.equal(after, h)


@pytest.mark.parametrize("cuts", [[1] * 19, [5, 1, 2, 11], [18, 1]])
def test_the_expert_goes_on_where_it_stopped(cuts):
    """Token by token, as in decoding, and in pieces; gradients flow back through the carried state."""
    one, x = expert(), tokens(2, 19)
    whole_x, cut_x = (x.clone().requires_grad_() for _ in range(2))
    whole, end = one(whole_x)
    state, outputs = None, []
    for part in cut_x.split(cuts, 1):
        y, state = one(part, None, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    for found, expected in zip(state, end, strict=True):
        torch.testing.assert_close(found, expected)
    last = [torch.autograd.grad(y[:, -1].sum(), x)[0] for y, x in ((whole, whole_x), (outputs[-1], cut_x))]
    assert last[0][:, 0].abs().max() > 1e-9
    torch.testing.assert_close(last[1], last[0])


@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan")])
def test_ragged_rows_equal_rows_alone(filler):
    """In two calls, with rows of no real token in the first or the second."""
    one, counts = expert(), torch.tensor([[5, 0], [0, 7], [2, 1], [7, 3], [3, 7]])
    x = tokens(5, 2, 7)
    valid = torch.arange(7) < counts[..., None]
    x = torch.where(valid[..., None], x, filler)
    state, outputs = None, []
    for call in range(2):
        y, state = one(x[:, call], valid[:, call], state)
        outputs.append(y)
        assert (y[~valid[:, call]] == 0).all()
    for row, (first, second) in enumerate(counts.tolist()):
        alone = torch.cat([x[row, 0, :first], x[row, 1, :second]])[None]
        y, end = one(alone)
        torch.testing.assert_close(torch.cat([outputs[0][row, :first], outputs[1][row, :second]]), y[0])
        for found, expected in zip(state, end, strict=True):
            torch.testing.assert_close(found[row : row + 1], expected)


def test_a_step_of_rows_that_have_ended_changes_their_state_by_nothing():
    one = expert()
    _, state = one(tokens(3, 6))
    valid = torch.tensor([[True], [False], [True]])
    _, after = one(tokens(3, 1, seed=1), valid, state)
    for old, new in zip(state, after, strict=True):
        assert torch.equal(old[1], new[1])
        assert not torch.equal(old[0], new[0])


def test_padding_and_its_gradient_are_nothing():
    one, x = expert(), tokens(2, 6).requires_grad_()
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    y, state = one(x, valid)
    (y.sum() + state.h_RHPN.sum() + state.conv_RCK.sum()).backward()
    assert (x.grad[1, 4:] == 0).all()
    assert (x.grad[1, :4] != 0).all()


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("changed", [0, 3, 4, 9, 17])
def test_a_later_token_changes_no_bit_of_earlier_outputs(changed, dtype):
    one, x = expert(dtype), tokens(2, 18, dtype=dtype)
    before, _ = one(x)
    x = x.clone()
    x[:, changed:] = 50 * tokens(2, 18 - changed, seed=1, dtype=dtype)
    after, _ = one(x)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


def test_the_expert_equals_the_mixer_of_another_library():
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    one = expert(torch.float32, inner=24, chunk=8, eps=1e-5)
    config = modeling.Mamba2Config(
        hidden_size=12, expand=2, num_heads=6, head_dim=4, state_size=6, n_groups=1, conv_kernel=4,
        chunk_size=8, num_hidden_layers=1, use_bias=False, use_conv_bias=True, layer_norm_epsilon=1e-5,
    )  # fmt: skip
    peer = modeling.Mamba2Mixer(config, 0)
    ours = {
        "in_proj.weight": one.project.weight,
        "conv1d.weight": one.conv_weight_CK[:, None],
        "conv1d.bias": one.conv_bias_C,
        "dt_bias": one.dt_bias_H,
        "A_log": one.a_log_H,
        "D": one.skip_H,
        "norm.weight": one.gated_norm.weight,
        "out_proj.weight": one.out.weight,
    }
    peer.load_state_dict(ours)
    x = tokens(2, 21, dtype=torch.float32)
    torch.testing.assert_close(one(x)[0], peer(one.norm(x)), rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), one.norm.weight) for y in (one(x)[0], peer(one.norm(x)))]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_every_parameter_learns():
    one = SSMExpert(12, 16, 6, head_dim=4, chunk=4)
    one(tokens(2, 9, dtype=torch.float32))[0].square().sum().backward()
    for name, p in one.named_parameters():
        assert p.grad is not None and (p.grad != 0).any(), name


def test_the_start_is_that_of_the_paper():
    torch.manual_seed(0)
    one = SSMExpert(8, 4096, 4, head_dim=4)
    dt_H, a_H = torch.nn.functional.softplus(one.dt_bias_H), one.a_log_H.exp()
    assert 0.999e-3 < dt_H.min() < 1.1e-3 and 0.09 < dt_H.max() < 0.1001
    torch.testing.assert_close(dt_H.log10().mean(), torch.tensor(-2.0), atol=0.1, rtol=0)
    assert 0.999 < a_H.min() < 1.2 and 15.8 < a_H.max() < 16.001
    assert (one.skip_H == 1).all()


@pytest.mark.parametrize("length", [1, 40])
def test_under_autocast_the_state_and_the_decays_stay_in_fp32(length):
    one, x = expert(torch.float32), tokens(2, length, dtype=torch.float32)
    expected, end = one(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = one(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and state.h_RHPN.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05 * expected.std().item())
    torch.testing.assert_close(state.h_RHPN, end.h_RHPN, rtol=0.05, atol=0.02)
    assert all(p.grad.isfinite().all() for p in one.parameters())


def test_shapes_do_not_depend_on_values():
    """The meta device has none, so this fails if any branch or shape looks at them."""
    with torch.device("meta"):
        one = SSMExpert(12, 16, 6, head_dim=4, chunk=4)
        y, state = one(torch.randn(2, 9, 12), torch.ones(2, 9, dtype=torch.bool))
        y, state = one(y[:, :1], torch.ones(2, 1, dtype=torch.bool), state)
    assert y.shape == (2, 1, 12)
    empty = SSMExpert(12, 16, 6, head_dim=4, chunk=4).empty_state(2, "cpu", torch.bfloat16)
    assert isinstance(state, SSMState)
    assert [part.shape for part in state] == [part.shape for part in empty]
    assert empty.h_RHPN.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": 18}, "inner=18 must be a multiple of head_dim=4"),
        ({"state": 0}, "state=0 must be at least 1"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"conv": 1}, "conv=1 must be at least 2"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SSMExpert(**{"width": 12, "inner": 16, "state": 6, "head_dim": 4, **options})
    x, dt, a, b, c, _ = draws(3)
    with pytest.raises(ValueError, match="chunk=0"):
        ssd(x, dt, a, b, c, chunk=0)
