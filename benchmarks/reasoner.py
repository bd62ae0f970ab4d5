"""`python benchmarks/reasoner.py [--compile] [rounds]`: a supervision step, beside one of stock modules.

The twin is written as the method reads on paper: blocks of `nn.MultiheadAttention`, T rounds of n latent
steps and one answer step. It has the reasoner's weights, and both must say the same. `full`: context and
slots are updated together. `slots`: the slots are updated and read the context, whose keys and values the
twin makes again at every evaluation, as a stock module does, and the reasoner once. One thread, in turns,
CPU seconds; `--compile` adds torch.compile of the small network. Then rows that halt at their own step
beside rows that all take all steps: the share of the time should be the share of the steps.

Fails below twice the twin's speed in mode slots, which is what the method `recursion` uses, at 16 rows
of 192.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.nn.recursion import Reasoner, RecursionConfig, think
from quietreasoning.nn.recursion_blocks import Layer

WIDTH, HEADS, LATENT, ROUNDS, STEPS = 256, 4, 6, 3, 8
BOUND = 2.0
SIZES = {  # mode, slots, rows, context, training
    "full, answering, 1 row of 64": ("full", 1, 1, 64, False),
    "full, training, 16 rows of 64": ("full", 1, 16, 64, True),
    "slots, answering, 1 row of 64": ("slots", 8, 1, 64, False),
    "slots, answering, 1 row of 192": ("slots", 8, 1, 192, False),
    "slots, answering, 16 rows of 192": ("slots", 8, 16, 192, False),
    "slots, training, 16 rows of 64": ("slots", 8, 16, 64, True),
    "slots, training, 16 rows of 192": ("slots", 8, 16, 192, True),
}


class Block(nn.Module):
    """h + attention(norm(h)), h + attention(norm(h), context) where there is one, h + net(norm(h))."""

    def __init__(self, width: int, heads: int, reads: bool):
        super().__init__()
        self.norm, self.feed_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.read_norm = nn.RMSNorm(width, eps=1e-5) if reads else None
        self.read = nn.MultiheadAttention(width, heads, batch_first=True) if reads else None
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h_BPD: Tensor, context_BLD: Tensor | None) -> Tensor:
        normed_BPD = self.norm(h_BPD)
        h_BPD = h_BPD + self.attention(normed_BPD, normed_BPD, normed_BPD)[0]
        if context_BLD is not None:
            h_BPD = h_BPD + self.read(self.read_norm(h_BPD), context_BLD, context_BLD)[0]
        return h_BPD + self.feed(self.feed_norm(h_BPD))

    @torch.no_grad()
    def take(self, layer: Layer) -> Block:
        """The same weights."""
        pairs = [
            (self.norm.weight, layer.mix.norm.weight),
            (self.feed_norm.weight, layer.feed.norm.weight),
            (self.attention.in_proj_weight, layer.mix.inner.qkv.weight),
            (self.attention.in_proj_bias, layer.mix.inner.qkv.bias),
            (self.attention.out_proj.weight, layer.mix.inner.out.weight),
            (self.attention.out_proj.bias, layer.mix.inner.out.bias),
            (self.feed[0].weight, layer.feed.inner.up.weight),
            (self.feed[0].bias, layer.feed.inner.up.bias),
            (self.feed[2].weight, layer.feed.inner.down.weight),
            (self.feed[2].bias, layer.feed.inner.down.bias),
        ]
        if self.read is not None:
            reader = layer.read.inner
            pairs += [
                (self.read_norm.weight, layer.read.norm.weight),
                (self.read.in_proj_weight, torch.cat([reader.query.weight, reader.keys_values.weight])),
                (self.read.in_proj_bias, torch.cat([reader.query.bias, reader.keys_values.bias])),
                (self.read.out_proj.weight, reader.out.weight),
                (self.read.out_proj.bias, reader.out.bias),
            ]
        for own, theirs in pairs:
            own.copy_(theirs)
        return self


class Twin(nn.Module):
    """One supervision step, T - 1 rounds of it without a gradient."""

    def __init__(self, reasoner: Reasoner):
        super().__init__()
        self.config = c = reasoner.config
        reads = c.mode == "slots"
        self.blocks = nn.ModuleList(
            Block(c.width, c.heads, reads).take(layer) for layer in reasoner.network.layers
        )
        self.norm_y, self.norm_z, self.head = reasoner.norm_y, reasoner.norm_z, reasoner.head

    def network(self, h_BPD: Tensor, context_BLD: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            h_BPD = block(h_BPD, context_BLD)
        return h_BPD

    def round(self, x: Tensor, context: Tensor | None, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(self.config.latent_steps):
            z = self.norm_z(self.network(z + y + x, context))
        return self.norm_y(self.network(z + y)), z

    def forward(self, x: Tensor, context: Tensor | None, y: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            for _ in range(self.config.rounds - 1):
                y, z = self.round(x, context, y, z)
        y, z = self.round(x, context, y, z)
        return self.head(y)


def built(**options: object) -> Reasoner:
    torch.manual_seed(0)
    sizes = {"context_width": WIDTH, "width": WIDTH, "outputs": WIDTH, "heads": HEADS, "rope": False}
    shape = {"latent_steps": LATENT, "rounds": ROUNDS, "style": "plain"}
    return Reasoner(RecursionConfig(**sizes, **shape, **options))


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of calls that take turns; the first turn warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            spent = seconds(call)
            if turn:
                found[name].append(spent)
    return found


def step(
    mode: str, slots: int, rows: int, length: int, training: bool, compiled: bool, rounds: int
) -> dict[str, float]:
    """Speed of each arm in units of the twin's."""
    reasoner = built(mode=mode, slots=slots)
    twin = Twin(reasoner)
    states = torch.randn(rows, length, WIDTH)

    def ours() -> Tensor:
        given = reasoner.prepare(states)
        return reasoner(given, reasoner.begin(given)).output_BPO

    def theirs() -> Tensor:  # what enters the network is made by the reasoner's own first lines
        given = reasoner.prepare(states)
        context = F.rms_norm(reasoner.enter(states), (WIDTH,), eps=1e-5) if mode == "slots" else None
        return twin(given.x_BPD, context, *reasoner.begin(given))

    def called(arm: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: arm().sum().backward()) if training else torch.no_grad()(arm)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
    arms = {"twin": called(theirs), "reasoner": called(ours)}
    found = turns(arms, rounds)
    if compiled:
        same = ours().detach()
        twin.network, reasoner.network = torch.compile(twin.network), torch.compile(reasoner.network)
        torch.testing.assert_close(ours().detach(), same, rtol=1e-4, atol=1e-4)
        found |= {f"{name}, compiled": own for name, own in turns(arms, rounds).items()}
    speed = {}
    for name, own in found.items():
        ratios = [twin / mine for twin, mine in zip(found["twin"], own, strict=True)]
        speed[name] = statistics.median(ratios)
        print(
            f"  {name:<20} median {1e3 * statistics.median(own):8.2f} ms, "
            f"{speed[name]:.2f} x ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    return speed


def halting(rounds: int, rows: int = 64, length: int = 32) -> None:
    """Rows that stop by themselves: the time left, and the steps left."""
    reasoner = built(mode="slots", slots=4)
    given = reasoner.prepare(torch.randn(rows, length, WIDTH))
    with torch.no_grad():  # a head that is sure of some rows sooner than of others
        reasoner.halt.weight.normal_()
        logits, carry = [], reasoner.begin(given)
        for _ in range(STEPS):
            thought = reasoner(given, carry)
            logits, carry = [*logits, thought.halt_B], thought.carry
        reasoner.halt.bias.sub_(torch.stack(logits).amax(0).median())
    all_steps, own_steps = (
        (lambda cut=cut: think(reasoner, given, steps=STEPS, cut=cut)) for cut in (None, 0.5)
    )
    taken = own_steps().steps_B.float().mean().item() / STEPS
    found = turns({"all": all_steps, "own": own_steps}, rounds)
    shares = [own / every for own, every in zip(found["own"], found["all"], strict=True)]
    print(
        f"halting, {rows} rows: {100 * taken:.0f} % of the steps in {100 * statistics.median(shares):.0f} % "
        f"of the time ({100 * min(shares):.0f} to {100 * max(shares):.0f})"
    )


def main(compiled: bool, rounds: int) -> None:
    torch.set_num_threads(1)
    print(f"cpu, {torch.get_num_threads()} thread, torch {torch.__version__}, width {WIDTH}, fp32")
    slow = []
    for name, size in SIZES.items():
        print(name)
        speed = step(*size, compiled, rounds)["reasoner"]
        if name.startswith("slots") and name.endswith("16 rows of 192") and speed < BOUND:
            slow.append(f"{name}: {speed:.2f} x")
    halting(rounds)
    assert not slow, f"below {BOUND} times the twin: {', '.join(slow)}"


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main("--compile" in sys.argv, *(numbers or [9]))
