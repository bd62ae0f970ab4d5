"""`quiet plan`: steps, tokens, memory, time and disk of a recipe, before anything is trained.

Parameters are counted on the meta device, lengths on 64 examples, speed by one matrix product here;
FLOPs are 6 a trained parameter and token (forward and backward), 2 where only read. Attention is left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from quietreasoning.backbone import meta_backbone
from quietreasoning.build import Builder, RunConfig, StageConfig
from quietreasoning.data.batches import Batches, count_tokens
from quietreasoning.data.config import build_task
from quietreasoning.data.load import load_split
from quietreasoning.methods import METHODS

SAMPLE = 64
EFFICIENCY = 0.35  # share of a large product's speed that small models reach, measured on the demo


@dataclass(frozen=True)
class Size:
    """Parameters of a method: all of them, the trained, and those a checkpoint holds."""

    all: int
    trained: int
    saved: int


def estimate(config: RunConfig) -> dict[str, str]:
    """What a run will take, as words: one entry a stage, then the whole."""
    builder, speed = Builder(config), flops_per_second()
    figures: dict[str, str] = {}
    whole_seconds, disk, peak = 0.0, 0, 0
    for stage in config.stages:
        size, tokens_step = count(builder, stage), tokens_a_step(builder, stage)
        if stage.train.steps is not None:
            steps = stage.train.steps
        else:
            steps = max(1, round(stage.train.tokens / max(tokens_step, 1)))
        seconds = steps * tokens_step * (2 * size.all + 4 * size.trained) / speed
        lane = tokens_step / stage.train.accumulate
        memory = 4 * size.all + 12 * size.trained + int(lane) * activation_bytes(config, builder)
        if steps == 0:  # nothing but the weights is held and saved
            memory, size = 4 * size.all, replace(size, trained=0)
        checkpoint = 4 * size.saved + 8 * size.trained
        whole_seconds, peak = whole_seconds + seconds, max(peak, memory)
        disk += checkpoint * (stage.train.keep + 1 if steps else 1)
        figures[f"stage {stage.name}"] = (
            f"{stage.method.name}: {steps:,} steps x {round(tokens_step):,} tokens = "
            f"{round(steps * tokens_step):,} tokens, about {_time(seconds)}"
        )
        figures[f"stage {stage.name}, parameters"] = f"{size.all:,}, {size.trained:,} trained"
    figures["memory, about"] = _bytes(peak)
    figures["disk, at most"] = _bytes(disk)
    figures["time, about"] = f"{_time(whole_seconds)} at {speed / 1e9:,.0f} GFLOP/s on this device"
    return figures


def count(builder: Builder, stage: StageConfig) -> Size:
    """Parameters, without memory for any of them."""
    config = builder.config.backbone
    backbone = meta_backbone(config, len(builder.tokenizer))
    encoder = builder.encoder(stage.data, backbone.context)
    with torch.device("meta"):
        method = METHODS[stage.method.name](backbone, stage.method, encoder.markers())
    everything = {name: p.numel() for name, p in method.named_parameters()}
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    borrowed = set(method.borrowed)
    return Size(
        sum(everything.values()), trained, sum(n for name, n in everything.items() if name not in borrowed)
    )


def tokens_a_step(builder: Builder, stage: StageConfig) -> float:
    """Tokens the model reads in one optimizer step, from the first examples; thoughts are not counted."""
    task = build_task(stage.data)
    encoder = builder.encoder(stage.data.model_copy(update={"max_prompt_tokens": None}), 1 << 20)
    if task.text:  # its windows are as long as the limits allow
        context = meta_backbone(builder.config.backbone, len(builder.tokenizer)).context
        encoder = builder.encoder(stage.data, context)
        examples, _ = load_split(task, "train", stage.data, encoder, n=SAMPLE)
    else:
        examples = task.split("train", SAMPLE)
    batch = Batches(examples, encoder, min(SAMPLE, len(examples)), 0).batch_at(0)
    return count_tokens(batch) / len(batch) * stage.train.batch_size


def activation_bytes(config: RunConfig, builder: Builder) -> int:
    """Bytes one token leaves behind for backward: about 34 values a layer and width, and its logits."""
    backbone = meta_backbone(config.backbone, len(builder.tokenizer))
    return 4 * (34 * backbone.num_layers * backbone.width // 2 + 2 * backbone.vocab_size)


def flops_per_second() -> float:
    """What small models reach on the device that would train."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    a = torch.randn(1024, 1024, device=device)
    (a @ a).sum().item()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - began)
    return EFFICIENCY * 2 * 1024**3 / best


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
