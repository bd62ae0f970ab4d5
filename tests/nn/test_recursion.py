"""The reasoner: against a twin of plain loops, with its gradients; what it sees and counts, when it stops."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from quietreasoning.nn.recursion import Carry, Reasoner, RecursionConfig, think

B, L, W, D, K, H, OUT = 4, 5, 6, 8, 2, 2, 3
BASE = RecursionConfig(
    context_width=W, width=D, outputs=OUT, slots=K, heads=H, latent_steps=2, rounds=2, context=L
)
KINDS = {
    f"{mode}-{mixer}-{style}": {"mode": mode, "mixer": mixer, "style": style}
    for mode, mixer, style in itertools.product(("full", "slots"), ("attention", "mlp"), ("paper", "plain"))
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
LENGTHS = torch.tensor([5, 1, 3, 4])


def made(seed=0, dtype=torch.float64, **options):
    """A reasoner with every parameter away from its start."""
    torch.manual_seed(seed)
    reasoner = Reasoner(replace(BASE, **options)).to(dtype)
    with torch.no_grad():
        for p in reasoner.parameters():
            p.add_(0.1 * torch.randn_like(p))
        reasoner.halt.weight.normal_()
        reasoner.halt.bias.zero_()
    return reasoner


def contexts(dtype=torch.float64, length=L, seed=1):
    """Contexts of 5, 1, 3 and 4 real positions."""
    context = torch.randn(B, L, W, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    context = torch.cat([context, context.new_full((B, length - L, W), 7.0)], 1)
    return context, torch.arange(length) < LENGTHS[:, None]


# The twin: one row without its padding, one position at a time, the formulas of the docstrings.


def unit(v, gain=None):
    v = v / (v.square().mean() + BASE.eps).sqrt()
    return v if gain is None else v * gain


def each(function, rows):
    return torch.stack([function(row) for row in rows])


def turned(v, at, c):
    """Pairs (i, i + C / 2) turned by the angle at * base^(-2 i / C)."""
    if not c.rope:
        return v
    half, out = len(v) // 2, v.clone()
    for i in range(half):
        angle = at * c.rope_base ** (-2 * i / len(v))
        cos, sin = math.cos(angle), math.sin(angle)
        out[i], out[half + i] = v[i] * cos - v[half + i] * sin, v[half + i] * cos + v[i] * sin
    return out


def heads_read(queries, keys, values, at_q, at_k, c):
    """Every query reads all keys, head by head."""
    out, size = [], D // H
    for query, at in zip(queries, at_q, strict=True):
        parts = []
        for h in range(H):
            own = slice(h * size, (h + 1) * size)
            q = turned(query[own], at, c)
            logits = torch.stack(
                [q @ turned(key[own], a, c) / size**0.5 for key, a in zip(keys, at_k, strict=True)]
            )
            parts.append(logits.softmax(0) @ values[:, own])
        out.append(torch.cat(parts))
    return torch.stack(out)


def feed(net, v):
    if hasattr(net, "gate_up"):
        gate, up = net.gate_up(v).chunk(2)
        return net.down(gate * torch.sigmoid(gate) * up)
    hidden = net.up(v)
    return net.down(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


def wrapped(block, h, function):
    """Post-norm without gain, or pre-norm with one."""
    if block.norm.weight is None:
        return each(unit, h + function(h))
    return h + function(each(lambda v: unit(v, block.norm.weight), h))


def evaluate(reasoner, h, at, context, at_context, sees_context):
    """f of one row; at: where each position stands."""
    c = reasoner.config
    for layer in reasoner.network.layers:
        mixer = layer.mix.inner

        def mix(h, mixer=mixer):
            if c.mixer == "attention":
                q, k, v = each(mixer.qkv, h).chunk(3, 1)
                return each(mixer.out, heads_read(q, k, v, at, at, c))
            gap = c.context - len(at_context) if c.mode == "full" else 0  # places of the padding hold zeros
            whole = torch.cat([h[: len(h) - K], h.new_zeros(gap, D), h[len(h) - K :]])
            mixed = torch.stack([feed(mixer.feed, channel) for channel in whole.T], 1)
            return torch.cat([mixed[: len(h) - K], mixed[len(mixed) - K :]])

        def read(h, layer=layer):
            inner = layer.read.inner
            keys, values = each(inner.keys_values, context).chunk(2, 1)
            return each(inner.out, heads_read(each(inner.query, h), keys, values, at, at_context, c))

        h = wrapped(layer.mix, h, mix)
        if c.mode == "slots" and sees_context:
            h = wrapped(layer.read, h, read)
        h = wrapped(layer.feed, h, lambda h, layer=layer: each(lambda v: feed(layer.feed.inner, v), h))
    return h


def twin(reasoner, context, steps):
    """(output, halting logit) of each supervision step of one row, y and z cut between steps."""
    c, length = reasoner.config, len(context)
    states = each(lambda v: unit(reasoner.enter(v)), context)
    slots = each(lambda v: unit(unit(v) + states[-1]), reasoner.slots_KD)
    at_context, at = list(range(length)), [length + k for k in range(K)]
    x = slots
    if c.mode == "full":
        x, at = torch.cat([states, slots]), at_context + at
    y, z = (start.expand(len(x), D) for start in reasoner.start_2D)
    found = []
    for _ in range(steps):
        for _ in range(c.rounds):
            y, z = (y.detach(), z.detach()) if c.rounds > 1 or found else (y, z)
            for _ in range(c.latent_steps):
                z = evaluate(reasoner, x + y + z, at, states, at_context, True)
                z = each(lambda v: unit(v, reasoner.norm_z.weight), z)
            y = evaluate(reasoner, y + z, at, states, at_context, False)
            y = each(lambda v: unit(v, reasoner.norm_y.weight), y)
        output = y @ reasoner.head.weight.T * reasoner.head.scale + reasoner.head.bias
        found.append((output, reasoner.halt(y[-K:].mean(0))[0]))
    return found


def gradients(reasoner, loss):
    reasoner.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in reasoner.named_parameters() if p.grad is not None}


@every_kind
def test_outputs_and_gradients_equal_a_twin_of_plain_loops(kind):
    reasoner, (context, valid) = made(**kind), contexts()
    given = reasoner.prepare(context, valid)
    carry, losses = reasoner.begin(given), []
    for _ in range(2):
        thought = reasoner(given, carry)
        carry = thought.carry
        losses.append(thought)
    mix = torch.randn(K, OUT, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = [twin(reasoner, context[b, :length], 2) for b, length in enumerate(LENGTHS.tolist())]
    for step, thought in enumerate(losses):
        for b, row in enumerate(rows):
            real = [*range(LENGTHS[b]), *range(-K, 0)] if reasoner.config.mode == "full" else range(K)
            torch.testing.assert_close(thought.output_BPO[b, list(real)], row[step][0])
            torch.testing.assert_close(thought.halt_B[b].double(), row[step][1], rtol=1e-5, atol=1e-6)
    ours = (losses[1].output_BPO[:, -K:] * mix).sum() + losses[1].halt_B.sum()
    theirs = sum((row[1][0][-K:] * mix).sum() + row[1][1] for row in rows)
    found, wanted = gradients(reasoner, ours), gradients(reasoner, theirs)
    assert found.keys() == wanted.keys() == dict(reasoner.named_parameters()).keys()
    for name, slope in wanted.items():
        torch.testing.assert_close(
            found[name], slope, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_kind
@pytest.mark.parametrize(("rounds", "latent_steps"), [(1, 1), (3, 2), (2, 6)])
def test_the_network_is_evaluated_rounds_times_latent_steps_and_one(kind, rounds, latent_steps):
    reasoner = made(rounds=rounds, latent_steps=latent_steps, **kind)
    graphs = []
    reasoner.network.register_forward_hook(lambda _, __, out: graphs.append(out.requires_grad))
    given = reasoner.prepare(*contexts())
    thought = reasoner(given, reasoner.begin(given))
    assert len(graphs) == rounds * (latent_steps + 1) == reasoner.config.evaluations
    last = latent_steps + 1
    assert not any(graphs[:-last]) and all(graphs[-last:]), "a gradient through the last round, all of it"
    assert not any(part.requires_grad for part in thought.carry)


@every_kind
def test_the_answer_step_sees_neither_x_nor_the_context(kind):
    reasoner = made(rounds=1, **kind)
    given = reasoner.prepare(*contexts())
    state = torch.randn_like(given.x_BPD)
    calls = []
    reasoner.network.forward = lambda h, given: calls.append((h, given)) or state
    reasoner.round(given, Carry(torch.zeros_like(state), torch.ones_like(state)))
    *latent, (last_h, last_given) = calls
    torch.testing.assert_close(last_h, reasoner.norm_z(state))  # y is zero: z alone
    assert last_given.context == ()
    torch.testing.assert_close(latent[0][0], given.x_BPD + 1)
    torch.testing.assert_close(latent[1][0], given.x_BPD + reasoner.norm_z(state))
    assert all(each_given is given for _, each_given in latent)


@every_kind
@pytest.mark.parametrize("length", [5, 8])
def test_padding_of_any_length_and_content_never_reaches_the_slots(kind, length):
    reasoner = made(**kind, **({"context": 8} if length == 8 else {}))
    base = reasoner.prepare(*contexts())
    want = reasoner(base, reasoner.begin(base))
    context, valid = contexts(length=length)
    noise = torch.where(valid[..., None], context, torch.full_like(context, float("nan")))
    given = reasoner.prepare(noise, valid)
    found = reasoner(given, reasoner.begin(given))
    torch.testing.assert_close(found.output_BPO[:, -K:], want.output_BPO[:, -K:])
    torch.testing.assert_close(found.halt_B, want.halt_B)
    for b, real in enumerate(LENGTHS.tolist()):
        alone = reasoner.prepare(context[b : b + 1, :real])
        one = reasoner(alone, reasoner.begin(alone))
        torch.testing.assert_close(one.output_BPO[0, -K:], want.output_BPO[b, -K:])
        torch.testing.assert_close(one.halt_B[0], want.halt_B[b])
    slopes = gradients(reasoner, found.output_BPO[:, -K:].sum() + found.halt_B.sum())
    assert all(slope.isfinite().all() for slope in slopes.values())


@every_kind
def test_order_of_the_context_is_seen_with_rope_alone(kind):
    order = torch.tensor([2, 0, 3, 1, 4])  # the last one stays: slots begin with it
    context = contexts()[0]
    moved = {}
    for rope in (True, False):
        reasoner = made(rope=rope, **kind)
        given, other = reasoner.prepare(context), reasoner.prepare(context[:, order])
        outputs = [reasoner(g, reasoner.begin(g)).output_BPO[:, -K:] for g in (given, other)]
        moved[rope] = not torch.allclose(*outputs, rtol=1e-4, atol=1e-6)
    fixed_places = kind["mode"] == "full" and kind["mixer"] == "mlp"
    assert moved == {True: True, False: fixed_places}


def test_slots_differ_and_begin_with_the_last_real_state():
    reasoner, (context, valid) = made(), contexts()
    x_BKD = reasoner.prepare(context, valid).x_BPD[:, -K:]
    changed = context.clone()
    changed[torch.arange(B), LENGTHS - 1] += 1
    assert not torch.isclose(x_BKD[:, 0], x_BKD[:, 1]).all(-1).any()
    assert not torch.isclose(x_BKD, reasoner.prepare(changed, valid).x_BPD[:, -K:]).all(-1).any()


def test_without_slots_every_position_answers_and_padding_is_not_asked():
    reasoner, (context, valid) = made(slots=0), contexts()
    given = reasoner.prepare(context, valid)
    done = reasoner(given, reasoner.begin(given))
    assert done.output_BPO.shape == (B, L, OUT)
    for b, real in enumerate(LENGTHS.tolist()):
        alone = reasoner.prepare(context[b : b + 1, :real])
        one = reasoner(alone, reasoner.begin(alone))
        torch.testing.assert_close(one.output_BPO[0], done.output_BPO[b, :real])
        torch.testing.assert_close(one.halt_B[0], done.halt_B[b])


def test_renewed_rows_begin_anew_and_others_go_on_untouched():
    reasoner = made()
    given = reasoner.prepare(*contexts())
    fresh = reasoner.begin(given)
    carry = reasoner(given, fresh).carry
    rows = torch.tensor([True, False, True, False])
    renewed = carry.renew(rows, fresh)
    for new, old, start in zip(renewed, carry, fresh, strict=True):
        assert torch.equal(new[~rows], old[~rows]) and torch.equal(new[rows], start[rows])
        assert not torch.equal(old[rows], start[rows])


def test_a_learned_start_learns_and_a_fixed_one_is_saved():
    reasoner = made(start="learned", rounds=1)
    given = reasoner.prepare(*contexts())
    reasoner(given, reasoner.begin(given)).output_BPO.sum().backward()
    assert reasoner.start_2D.grad.any(1).all()
    fixed, again = made(), made(seed=5)
    assert "start_2D" in fixed.state_dict() and not fixed.start_2D.requires_grad
    again.load_state_dict(fixed.state_dict())
    given = again.prepare(*contexts())
    torch.testing.assert_close(again.begin(given).y_BPD[2, 3], fixed.start_2D[0])
    wide = Reasoner(replace(BASE, width=512))
    assert wide.start_2D.std(1).sub(1).abs().max() < 0.15


def test_the_head_has_a_scale_and_a_bias_of_its_own():
    """The last norm fixes the length of y; outputs of any scale stay within reach."""
    reasoner = made()
    given = reasoner.prepare(*contexts())
    y = reasoner(given, reasoner.begin(given)).carry.y_BPD
    torch.testing.assert_close(y.square().mean(-1), torch.ones(y.shape[:2], dtype=y.dtype), rtol=1e-4, atol=0)
    out = reasoner.head(y)
    with torch.no_grad():
        reasoner.head.scale.mul_(100)
        reasoner.head.bias.add_(3)
    want = 100 * out - 99 * (reasoner.head.bias - 3) + 3
    torch.testing.assert_close(reasoner.head(y), want)


def test_nothing_is_done_at_first():
    reasoner = Reasoner(BASE)
    given = reasoner.prepare(*contexts(torch.float32))
    torch.testing.assert_close(reasoner(given, reasoner.begin(given)).halt_B, torch.full((B,), -5.0))


@every_kind
def test_without_latent_steps_it_is_one_plain_network_that_sees_x(kind):
    reasoner = made(latent_steps=0, rounds=1, **kind)
    given = reasoner.prepare(*contexts())
    start = reasoner.begin(given)
    done = reasoner(given, start)
    plain = reasoner.norm_y(reasoner.network(given.x_BPD + start.y_BPD + start.z_BPD, given))
    torch.testing.assert_close(done.carry.y_BPD, plain.detach())
    assert torch.equal(done.carry.z_BPD, start.z_BPD) and reasoner.config.evaluations == 1
    slopes = gradients(reasoner, done.output_BPO.square().sum() + done.halt_B.sum())
    assert all(slope.any() for slope in slopes.values())


def test_what_happens_between_steps_happens_to_the_rows_still_going():
    reasoner, context, valid = halting()
    given, seen = reasoner.prepare(context, valid), []

    def wipe(carry):
        seen.append(len(carry.y_BPD))
        return Carry(*(torch.zeros_like(state) for state in carry))

    answer = think(reasoner, given, steps=3, between=wipe)
    assert len(seen) == int(answer.steps_B.max()) - 1
    wiped = reasoner(given, wipe(reasoner.begin(given)))
    late = answer.steps_B > 1
    torch.testing.assert_close(answer.output_BPO[late], wiped.output_BPO[late].detach())
    assert not torch.allclose(answer.output_BPO[late], think(reasoner, given, steps=3).output_BPO[late])


# Halting: rows leave when they are done.


def halting(**kind):
    """A reasoner whose rows stop apart, and what a row does alone."""
    reasoner, (context, valid) = made(**kind), contexts()
    with torch.no_grad():
        reasoner.halt.weight.mul_(4)
        given = reasoner.prepare(context, valid)
        carry, logits = reasoner.begin(given), []
        for _ in range(6):
            thought = reasoner(given, carry)
            carry = thought.carry
            logits.append(thought.halt_B)
        highest_B = torch.stack(logits).max(0).values
        reasoner.halt.bias.sub_(highest_B.sort().values[1:3].mean().item())  # two rows never pass the cut
    return reasoner, context, valid


@every_kind
def test_a_row_that_halts_has_the_same_output_alone_and_in_a_batch(kind):
    reasoner, context, valid = halting(**kind)
    given = reasoner.prepare(context, valid)
    answer = think(reasoner, given, steps=6)
    assert 2 <= len(set(answer.steps_B.tolist())) and answer.steps_B.max() == 6
    for b, real in enumerate(LENGTHS.tolist()):
        alone = think(reasoner, reasoner.prepare(context[b : b + 1, :real]), steps=6)
        assert alone.steps_B[0] == answer.steps_B[b]
        torch.testing.assert_close(alone.output_BPO[0, -K:], answer.output_BPO[b, -K:])
        torch.testing.assert_close(alone.halt_B[0], answer.halt_B[b])
        carry = reasoner.begin(given)
        for _ in range(int(answer.steps_B[b])):
            thought = reasoner(given, carry)
            carry = thought.carry
        torch.testing.assert_close(answer.output_BPO[b], thought.output_BPO[b].detach())
        assert (answer.halt_B[b] > 0) or answer.steps_B[b] == 6


@every_kind
def test_rows_that_are_done_are_not_computed(kind):
    reasoner, context, valid = halting(**kind)
    rows = []
    reasoner.network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    answer = think(reasoner, reasoner.prepare(context, valid), steps=6)
    assert sum(rows) == int(answer.steps_B.sum()) * reasoner.config.evaluations
    assert sum(rows) < B * 6 * reasoner.config.evaluations
    rows.clear()
    first = answer.steps_B == answer.steps_B.min()
    think(reasoner, reasoner.prepare(context[first], valid[first]), steps=6)
    want = int(answer.steps_B.min()) * reasoner.config.evaluations
    assert rows == [int(first.sum())] * want, "nobody goes on: nothing more is computed"


@every_kind
def test_without_a_cut_every_step_is_computed_and_a_high_one_changes_nothing(kind):
    reasoner, context, valid = halting(**kind)
    given = reasoner.prepare(context, valid)
    with torch.no_grad():
        carry = reasoner.begin(given)
        for _ in range(3):
            thought = reasoner(given, carry)
            carry = thought.carry
    for cut in (None, 1 - 1e-12):
        answer = think(reasoner, given, steps=3, cut=cut)
        assert answer.steps_B.tolist() == [3] * B and not answer.output_BPO.requires_grad
        assert torch.equal(answer.output_BPO, thought.output_BPO)
    assert think(reasoner, given, steps=3, cut=0.0).steps_B.tolist() == [1] * B
    assert think(reasoner, given, steps=6, cut=0.0, least=4).steps_B.tolist() == [4] * B


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 2, "least": 3}, "least=3"),
        ({"steps": 2, "cut": 1.0}, r"cut=1.0.*None"),
    ],
)
def test_impossible_halting_is_refused(options, said):
    reasoner = made()
    with pytest.raises(ValueError, match=said):
        think(reasoner, reasoner.prepare(*contexts()), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "slot"}, r"mode='slot'.*full or slots"),
        ({"style": "post"}, r"style='post'.*paper or plain"),
        ({"mixer": "conv"}, r"mixer='conv'.*attention or mlp"),
        ({"start": "zero"}, r"start='zero'.*fixed or learned"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"latent_steps": -1}, "latent_steps=-1 must be at least 0"),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"slots": 0, "mode": "slots"}, "slots=0 must be at least 1"),
        ({"slots": -1}, "slots=-1 must be at least 0"),
        ({"heads": 3}, r"width=8.*multiple of heads=3"),
        ({"heads": 8}, r"heads=8 is odd.*rope=False"),
        ({"mixer": "mlp", "context": None}, r"context=None.*mixer=mlp"),
        ({"start": "learned"}, r"start=learned with rounds=2.*rounds=1"),
        ({"expansion": 0.0}, r"expansion=0.0 must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        replace(BASE, **options)


def test_contexts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"context_width=6.*5 wide"):
        made().prepare(torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match=r"context=5.*6 positions"):
        made(mixer="mlp").prepare(torch.zeros(1, 6, W, dtype=torch.float64))


def test_a_context_without_a_real_position_stays_finite():
    for mode in ("full", "slots"):
        reasoner = made(mode=mode)
        given = reasoner.prepare(
            torch.randn(2, L, W, dtype=torch.float64), torch.zeros(2, L, dtype=torch.bool)
        )
        done = reasoner(given, reasoner.begin(given))
        done.output_BPO[:, -K:].sum().backward()
        assert done.output_BPO[:, -K:].isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in reasoner.parameters())


@pytest.mark.parametrize("kind", [{}, {"mode": "slots", "style": "plain"}], ids=["full", "slots"])
def test_a_step_is_one_static_graph(kind):
    """Captured whole, gradient switch included, and once for all contents of a batch."""
    reasoner, graphs = made(layers=1, latent_steps=1, dtype=torch.float32, **kind), []

    def step(context, valid):
        given = reasoner.prepare(context, valid)
        return reasoner(given, reasoner.begin(given))

    captured = torch.compile(
        step, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph.forward
    )
    context, valid = contexts(torch.float32)
    for mask in (valid, valid.flip(0)):
        found, want = captured(context, mask), step(context, mask)
        torch.testing.assert_close(found.output_BPO, want.output_BPO)
        wanted = gradients(reasoner, want.output_BPO.sum() + want.halt_B.sum())
        for name, slope in gradients(reasoner, found.output_BPO.sum() + found.halt_B.sum()).items():
            torch.testing.assert_close(slope, wanted[name], rtol=1e-4, atol=1e-5)
        assert not found.carry.y_BPD.requires_grad
    assert len(graphs) == 1
