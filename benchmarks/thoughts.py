"""`python benchmarks/thoughts.py [rounds]`: thinking in one packed pass, beside thinking place by place.

The twin does what the method reads like: at each anchor, for each thought, it reads the text up to there and
the thought so far, draws a token, and so on; then it reads text, thought and the true tokens once more with a
gradient. It draws the same tokens and must find the same log-probabilities. `cached` keeps the prefix's keys
and values while it draws. Then all positions of a text in one pass, as the published loop thinks, beside 16
anchors: seconds, FLOPs and peak memory (each in a process of its own). Then the latency of one word after 4
thoughts of 10 tokens, by phase. One thread, in turns, CPU seconds.

Fails below ten times the twin's speed at 256 tokens, 32 anchors, 2 thoughts of 12.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from quietreasoning.backbone import BackboneConfig, ScratchConfig, last_hidden, load_backbone, role_of
from quietreasoning.backbone.sampling import draw
from quietreasoning.backbone.tree import Branches, sample_thoughts
from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.methods.sequence import read_prompt
from quietreasoning.methods.thoughts import Thinker, reading
from quietreasoning.methods.thoughts.settings import ThinkerConfig
from quietreasoning.methods.thoughts.text import Text, text_of
from quietreasoning.nn.mixing import gather_thoughts, mix
from quietreasoning.nn.thought_tree import keyed_uniforms

VOCAB, BOUND = 1000, 10.0
MARKERS = Markers(answer_prefix=(VOCAB - 4,), eos=VOCAB - 3, thinking=(VOCAB - 2, VOCAB - 1))


def built(layers: int, width: int, heads: int, **settings: object) -> Thinker:
    torch.manual_seed(0)
    shape = {"layers": layers, "width": width, "heads": heads, "context": 1024, "init_std": 0.1}
    backbone = load_backbone(BackboneConfig(scratch=ScratchConfig(**shape)), VOCAB)
    return Thinker(backbone, ThinkerConfig(**settings), MARKERS).eval()


def batch_of(rows: int, length: int) -> Batch:
    ids = torch.randint(0, VOCAB - 4, (rows, length), generator=torch.Generator().manual_seed(1))
    none = ids[:, :0]
    return Batch(torch.arange(rows), ids, none[..., None], none[..., None], none, torch.full((rows,), IGNORE))


def packed(method: Thinker, batch: Batch, text: Text) -> dict[str, Tensor]:
    anchor_BK, thoughts, _ = reading.think(method, text, batch.keys_B)
    found = reading.read(method, text, anchor_BK, thoughts)
    own_BKGM, _ = reading.alone(method, found)
    own_BKGM.sum().backward()
    return {"anchors": anchor_BK, "ids": thoughts.ids_BKGL, "true": own_BKGM.detach()}


def position_by_position(
    method: Thinker, batch: Batch, text: Text, anchor_BK: Tensor, *, cached: bool
) -> dict[str, Tensor]:
    """One row. Thoughts have their full length here, so that every loop is as long."""
    config, backbone, law = method.config, method.backbone, method.law
    start_D, end_D = method.markers_2D
    ids, true = [], []
    for anchor in anchor_BK[0].tolist():
        before_T = text.ids_BT[0, : anchor + 1]
        after_M = text.ids_BT[0, anchor + 1 : anchor + 1 + config.talk]
        for thought in range(config.thoughts):
            written: list[int] = []
            with torch.no_grad():
                past = read_prompt(backbone, before_T[None]).past if cached else None
                hidden_D = read(backbone, start_D[None], past) if cached else None
                for step in range(config.cap):
                    if not cached:
                        told = torch.tensor(written, dtype=torch.long)
                        hidden_D = read(
                            backbone,
                            torch.cat([backbone.embed(before_T), start_D[None], backbone.embed(told)]),
                        )
                    logits_1V = law.logits(backbone.logits(hidden_D[None]), step)
                    uniform_1 = keyed_uniforms(
                        batch.keys_B[:1],
                        reading.WORDS,
                        torch.tensor([anchor + 1]),
                        torch.tensor([thought]),
                        torch.tensor([step]),
                    )
                    written.append(int(draw(logits_1V, 1.0, uniform_1)))
                    if cached:
                        hidden_D = read(backbone, backbone.embed(torch.tensor(written[-1:])), past)
            told = torch.tensor(written)
            parts = [
                backbone.embed(before_T),
                start_D[None],
                backbone.embed(told),
                end_D[None],
                backbone.embed(after_M[:-1]),
            ]
            inputs_SD = torch.cat(parts)
            role_1S = torch.full((1, len(inputs_SD)), int(Role.STEP))
            hidden_MD = backbone(inputs_SD[None], role_1S).hidden_BTD[0, -len(after_M) :]
            bare_1S = text.ids_BT[:1, : anchor + len(after_M)]
            base_SD = backbone(bare_1S, role_of(bare_1S, Role.STEP))
            base_MD = base_SD.hidden_BTD[0, -len(after_M) :]
            mixed_MD = mix(base_MD, hidden_MD, method.mixer.share(base_MD, hidden_MD))
            logp_M = backbone.logits(mixed_MD).log_softmax(-1).gather(1, after_M[:, None])[:, 0]
            logp_M.sum().backward()
            ids.append(told)
            true.append(F.pad(logp_M.detach(), (0, config.talk - len(after_M))))
    shape = (1, anchor_BK.shape[1], config.thoughts)
    return {"ids": torch.stack(ids).view(*shape, -1), "true": torch.stack(true).view(*shape, -1)}


def read(backbone, inputs_SD: Tensor, past=None) -> Tensor:
    """The state after some embeddings [D]."""
    role_1S = torch.full((1, len(inputs_SD)), int(Role.THOUGHT))
    return (
        last_hidden(backbone(inputs_SD[None], role_1S, past))[0]
        if past is None
        else grown(backbone, inputs_SD, role_1S, past)
    )


def grown(backbone, inputs_SD: Tensor, role_1S: Tensor, past) -> Tensor:
    """The same after a cache, which grows in place."""
    states = backbone(inputs_SD[None], role_1S, past)
    object.__setattr__(past, "valid_BS", states.past.valid_BS)
    object.__setattr__(past, "length_B", states.past.length_B)
    return last_hidden(states)[0]


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def against_positions(rounds: int) -> float:
    settings = {"anchors": 32, "thoughts": 2, "floor": 12, "cap": 12, "least": 12, "talk": 4}
    method = built(2, 128, 4, **settings)
    batch = batch_of(1, 256)
    text = text_of(batch, MARKERS, visible=False)
    ours = packed(method, batch, text)
    twins = {}
    for name, cached in (("no cache", False), ("cached", True)):
        own = position_by_position(method, batch, text, ours["anchors"], cached=cached)
        assert torch.equal(own["ids"], ours["ids"]), "the twin drew other thoughts"
        torch.testing.assert_close(own["true"], ours["true"], rtol=1e-3, atol=1e-3)
        twins[name] = [
            seconds(lambda c=cached: position_by_position(method, batch, text, ours["anchors"], cached=c))
            for _ in range(max(1, rounds // 3))
        ]
    own = [seconds(lambda: packed(method, batch, text)) for _ in range(rounds)]
    print(f"256 tokens, 32 anchors, 2 thoughts of 12, 4 true tokens: packed {shown(own)}")
    for name, spent in twins.items():
        print(
            f"  position by position, {name}: {shown(spent)}, "
            f"{statistics.median(spent) / statistics.median(own):.1f} x"
        )
    return statistics.median(twins["cached"]) / statistics.median(own)


def everywhere(anchors: int) -> Thinker:
    return built(2, 128, 4, anchors=anchors, thoughts=2, floor=12, cap=12, least=12, talk=4, spacing=1)


def peak(anchors: int, length: int) -> None:
    """MiB that one packed pass adds to the most this process ever held."""
    torch.set_num_threads(1)
    method, batch = everywhere(anchors), batch_of(1, length)
    read_prompt(method.backbone, batch.prompt_BP)
    before = most_held()
    packed(method, batch, text_of(batch, MARKERS, visible=False))
    print(most_held() - before)


def most_held() -> float:
    """MiB that this process held at most; Linux alone tells. A child's ru_maxrss begins at its parent's."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in each)
    return int(line.split()[1]) / 1024


def against_all_positions(rounds: int, length: int = 128) -> None:
    batch = batch_of(1, length)
    found = {}
    for name, anchors in (("16 anchors", 16), ("all positions", length - 1)):
        method = everywhere(anchors)
        text = text_of(batch, MARKERS, visible=False)
        spent = [
            seconds(lambda m=method: packed(m, batch, text_of(batch, MARKERS, visible=False)))
            for _ in range(rounds)
        ]
        flops = flops_of(method, batch, text)
        columns = length + anchors * 2 * (12 + 4 + 1)
        words = [sys.executable, __file__, "peak", str(anchors), str(length)]
        held = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        found[name] = (statistics.median(spent), flops, held)
        print(
            f"{length} tokens, {name}: {shown(spent)}, {flops / 1e9:.1f} GFLOP, {columns} columns, "
            f"peak {held:.0f} MiB"
        )
    times, flops, held = (every / few for few, every in zip(*found.values(), strict=True))
    print(f"  all positions take {times:.1f} x the time, {flops:.1f} x the FLOPs, {held:.1f} x the memory")


def flops_of(method: Thinker, batch: Batch, text: Text) -> int:
    """Of drawing, and three times those of the pass with a gradient."""
    method.requires_grad_(False)
    with FlopCounterMode(display=False) as drawing:
        anchor_BK, thoughts, _ = reading.think(method, text, batch.keys_B)
    with FlopCounterMode(display=False) as learning:
        reading.alone(method, reading.read(method, text, anchor_BK, thoughts))
    return drawing.get_total_flops() + 3 * learning.get_total_flops()


def latency(rounds: int, layers: int, width: int, heads: int, room: int = 0, compiled: bool = False) -> None:
    """One word after 4 thoughts of 10 tokens behind 128 tokens, with everything computed anew."""
    method = built(layers, width, heads, thoughts=4, floor=10, cap=10, least=10, talk=4, sampled=True)
    prompt_BP = batch_of(1, 128).prompt_BP
    if compiled:
        method.backbone.model.base_model.compile(dynamic=False)
    phases: dict[str, list[float]] = {"prefix": [], "thoughts": [], "markers and mixing": []}

    @torch.no_grad()
    def word() -> None:
        marks = [time.perf_counter()]
        states = read_prompt(method.backbone, prompt_BP)
        marks.append(time.perf_counter())
        branches = Branches(
            method.backbone, states.past, torch.tensor([[127]]), 4, method.law, method.markers_2D, room
        )
        uniforms = keyed_uniforms(
            torch.tensor([7])[:, None, None, None], torch.arange(4)[:, None], torch.arange(10)
        )
        thoughts = sample_thoughts(branches, torch.tensor([[10]]), uniforms)
        marks.append(time.perf_counter())
        base_BD, hidden_BGD = last_hidden(states), branches.close(replace(thoughts))[:, 0]
        weight_BG = method.mixer.weights(base_BD, hidden_BGD, method.prior_when_writing(base_BD, hidden_BGD))
        thought_BD = gather_thoughts(weight_BG, hidden_BGD)
        method.backbone.logits(mix(base_BD, thought_BD, method.mixer.share(base_BD, thought_BD))).argmax(-1)
        marks.append(time.perf_counter())
        for name, first, last in zip(phases, marks, marks[1:], strict=False):
            phases[name].append(last - first)

    for _ in range(rounds + 1):
        word()
    spent = sorted(sum(each) * 1e3 for each in zip(*(own[1:] for own in phases.values()), strict=True))
    total = sum(statistics.median(own[1:]) for own in phases.values())
    shares = ", ".join(
        f"{name} {100 * statistics.median(own[1:]) / total:.0f} %" for name, own in phases.items()
    )
    parameters = sum(p.numel() for p in method.backbone.parameters()) / 1e6
    how = ("room made beforehand" if room else "a growing cache") + ", compiled" * compiled
    p50, p95 = spent[len(spent) // 2], spent[min(len(spent) - 1, round(0.95 * len(spent)))]
    print(
        f"one word after 4 thoughts of 10 tokens, {parameters:.1f}M parameters, prompt of 128, batch 1, "
        f"fp32, {how}, wall time: p50 {p50:.0f} ms, p95 {p95:.0f} ms; {shares}"
    )


def shown(spent: list[float]) -> str:
    return f"{1e3 * statistics.median(spent):.0f} ms ({1e3 * min(spent):.0f} to {1e3 * max(spent):.0f})"


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    print(
        f"cpu, 1 thread, torch {torch.__version__}, fp32; 2 layers of width 128 where no other size is named"
    )
    ratio = against_positions(rounds)
    against_all_positions(max(1, rounds // 3))
    for room, compiled in ((0, False), (13, False), (13, True)):
        latency(rounds * 3, 2, 128, 4, room, compiled)
    latency(rounds, 12, 768, 12)
    assert ratio >= BOUND, f"packed is {ratio:.1f} x as fast as the cached twin, less than {BOUND}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak(*map(int, sys.argv[2:]))
    else:
        main(*([int(word) for word in sys.argv[1:]] or [9]))
