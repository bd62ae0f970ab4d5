"""Blocks: pieces of a past equal the whole, rotary positions are relative, a fresh reader is silent."""

import pytest
import torch

from quietreasoning.nn.adapters import AdapterBank, Choice
from quietreasoning.nn.trunk import Block, SlotReader, rotate

R, T, D, H, G, C = 2, 7, 16, 4, 2, 6


def rope(positions):
    angle = positions[..., None] * 100.0 ** -(torch.arange(0, C, 2) / C)
    angle = torch.cat([angle, angle], -1)
    return angle.cos()[None, None], angle.sin()[None, None]


def made(**options):
    torch.manual_seed(0)
    block = Block(D, H, G, C, 24, **options)
    block.add_adapters(3, 2, 4.0, ia3=True, fusion=True)
    with torch.no_grad():
        for p in block.adapters.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return block


X = torch.randn(R, T, D, generator=torch.Generator().manual_seed(1))
CHOICE = Choice(torch.tensor([[0, 2], [1, 0]]), torch.tensor([[0.7, 0.3], [0.5, 0.5]]))


@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "out_bias": True, "qk_norm": True}, {"rotary": False}]
)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("choice", [None, CHOICE])
def test_read_in_pieces_equals_read_at_once(options, whole, choice):
    block, at = made(**options), torch.arange(T)
    wanted, _ = block(X, rope(at), (), None, choice)
    past, got = (), []
    for low, high in ((0, 3), (3, 4), (4, T)):
        mask = (at[None, :high] <= at[low:high, None])[None, None] if high - low > 1 else None
        out, piece = block(X[:, low:high], rope(at[low:high]), past, mask, choice, whole)
        past = (piece,) if whole else (*past, piece)
        got.append(out)
    torch.testing.assert_close(torch.cat(got, 1), wanted)


@pytest.mark.parametrize("ia3", [False, True])
@pytest.mark.parametrize("small", [0, 64])
def test_a_choice_that_is_held_or_given_by_the_chunk_says_the_same(ia3, small, monkeypatch):
    monkeypatch.setattr(AdapterBank, "small", small)
    torch.manual_seed(0)
    block, at = Block(D, H, G, C, 24, bias=True), torch.arange(T)
    block.add_adapters(3, 2, 4.0, ia3=ia3, fusion=False)
    with torch.no_grad():
        for p in block.adapters.parameters():
            p.add_(0.3 * torch.randn_like(p))
    wanted, _ = block(X, rope(at), (), None, CHOICE)
    torch.testing.assert_close(block(X, rope(at), (), None, block.adapters.hold(CHOICE))[0], wanted)
    # both rows as the two chunks of one: the second sees the first
    one, at = X.flatten(0, 1)[None], torch.arange(2 * T)
    both, _ = block(one, rope(at), (), None, CHOICE)
    first, piece = block(X[:1], rope(at[:T]), (), None, Choice(*(t[:1] for t in CHOICE[:2])))
    mask = (at[None] <= at[T:, None])[None, None]
    second, _ = block(X[1:], rope(at[T:]), (piece,), mask, Choice(*(t[1:] for t in CHOICE[:2])))
    torch.testing.assert_close(both, torch.cat([first, second], 1))


def test_without_a_choice_adapters_are_not_touched():
    block = made()
    calls = []
    for module in block.adapters.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    block(X, rope(torch.arange(T)), (), None)
    assert not calls
    block(X, rope(torch.arange(T)), (), None, CHOICE)
    assert calls


def test_attention_equals_its_formula():
    block = made()
    at = torch.arange(T)
    got, *_ = block.attend(X, rope(at), (), None, None)
    q, k, v = block.qkv(X).split([H * C, G * C, G * C], -1)
    out = torch.zeros(R, T, H, C)
    for r in range(R):
        for h in range(H):
            g = h * G // H
            qs = rotate(q[r, None, None, :, h * C : (h + 1) * C], *rope(at))[0, 0]
            ks = rotate(k[r, None, None, :, g * C : (g + 1) * C], *rope(at))[0, 0]
            for t in range(T):
                p = (ks[: t + 1] @ qs[t] / C**0.5).softmax(0)
                out[r, t, h] = p @ v[r, : t + 1, g * C : (g + 1) * C]
    torch.testing.assert_close(got, block.out(out.flatten(2)))


def test_rotary_positions():
    """Shape and norm stay, scores depend on the distance alone, distance zero is the plain product."""
    draw = torch.Generator().manual_seed(2)
    q, k = torch.randn(1, 1, 1, C, generator=draw), torch.randn(1, 1, 1, C, generator=draw)

    def score(i, j):
        turned = [rotate(x, *rope(torch.tensor([float(at)]))) for x, at in ((q, i), (k, j))]
        assert turned[0].shape == q.shape
        torch.testing.assert_close(turned[0].norm(), q.norm())
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(5, 2), score(104, 101), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score(7, 7), (q * k).sum())
    assert not torch.isclose(score(5, 2), score(5, 3))


def test_a_fresh_reader_is_silent_but_learns():
    torch.manual_seed(0)
    reader, slots = SlotReader(D, 8, 2), torch.randn(R, 3, 8)
    out = reader(X, reader.read(slots))
    assert torch.equal(out, X)
    out.square().sum().backward()
    assert reader.gate.grad.any() and reader.out.weight.any()
    with torch.no_grad():
        reader.gate.fill_(0.5)
    reader(X, reader.read(slots)).square().sum().backward()
    assert all(p.grad.any() for p in reader.parameters())


def test_a_token_reads_slots_in_any_order_and_alone():
    torch.manual_seed(0)
    reader, slots = SlotReader(D, 8, 2), torch.randn(R, 3, 8)
    torch.nn.init.constant_(reader.gate, 1.0)
    wanted = reader(X, reader.read(slots))
    torch.testing.assert_close(reader(X, reader.read(slots[:, [2, 0, 1]])), wanted)
    torch.testing.assert_close(reader(X[:, 3:4], reader.read(slots)), wanted[:, 3:4])
