"""`quiet plan`: steps, tokens, memory, time and disk of a recipe, before anything is trained.

Parameters are counted on the meta device, lengths on 64 examples, speed by one matrix product here; FLOPs are
6 a trained parameter and token (forward and backward), 2 where only read, and attention to half the tokens of
a row. Rows of a table are read, not multiplied. A frozen model that a reasoner thinks for is counted by
`recursion.py`, as its method reads it. Weights alone are held in the precision of `backbone.dtype`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from quietreasoning.backbone import Backbone, meta_backbone
from quietreasoning.build import Builder
from quietreasoning.contract import Batch, Method
from quietreasoning.data.absent import ABSENT, ASSUMED, assumed_batch
from quietreasoning.data.batches import Batches, count_tokens
from quietreasoning.data.config import build_task
from quietreasoning.data.load import load_split
from quietreasoning.data.thinking import new_rows
from quietreasoning.methods import METHODS
from quietreasoning.methods.recursion import Recursion
from quietreasoning.optim.rowwise import rowwise_names
from quietreasoning.planning.recursion import needs_weights, row_work
from quietreasoning.run_config import RunConfig, StageConfig
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.state import freeze_others
from quietreasoning.workspace.sizes import parameters, working

SAMPLE = 64
EFFICIENCY = 0.35  # share of a large product's speed that small models reach, measured on the demo
DEVICES = (1, 8)  # what memory is told for, where a step can be cut for them
HALF_FROM = (
    500_000_000  # parameters from which precision=auto is taken for bf16, as on any device of that size
)


@dataclass(frozen=True)
class Size:
    """Parameters of a method: all of them, the trained, and those a checkpoint holds."""

    all: int
    trained: int
    saved: int
    working: int  # that every token is multiplied with; the others are off, not chosen, or rows of a table
    tables: int = 0  # of the trained: in tables with row-wise state
    rows: int = 0  # of those tables
    weights: int = 0  # bytes of all
    gradients: int = 0  # bytes of those that are trained

    @property
    def state(self) -> int:
        """Bytes of the optimizer's state: two moments a parameter, two numbers a row."""
        return 8 * (self.trained - self.tables) + 8 * self.rows


def estimate(config: RunConfig, absent: Sequence[str] = ()) -> dict[str, str]:
    """What a run will take, as words: one entry a stage, then the whole. absent: settings to name first."""
    builder, speed = Builder(config), flops_per_second()
    figures: dict[str, str] = {}
    whole_seconds, disk = 0.0, 0
    peaks = dict.fromkeys(DEVICES, 0)
    for stage in config.stages:
        method = meta_method(builder, stage)
        freeze_others(method, stage.train.enable)
        size, batch = count(method), sample_batch(builder, stage)
        tokens_step = count_tokens(batch) / len(batch) * stage.train.batch_size
        steps = stage.train.steps
        if steps is None:  # the budget is in tokens that the loss counts
            counted = method.units(batch).get("token", count_tokens(batch)) / len(batch)
            steps = max(1, round(stage.train.tokens / max(counted * stage.train.batch_size, 1)))
        seconds = steps * step_flops(method, batch, stage.train, size) / speed
        if steps == 0:  # nothing but the weights is held and saved
            size = replace(size, trained=0, tables=0, rows=0, gradients=0)
        for devices in DEVICES:
            rows = stage.train.batch_size / stage.train.accumulate / devices if steps else 0
            left_behind = int(rows * row_bytes(method, batch, stage.train, size))
            peaks[devices] = max(peaks[devices], held_bytes(size, stage.train, devices) + left_behind)
        whole_seconds += seconds
        disk += (4 * size.saved + size.state) * (stage.train.keep + 1 if steps else 1)
        figures[f"stage {stage.name}"] = (
            f"{stage.method.name}: {steps:,} steps x {round(tokens_step):,} tokens = "
            f"{round(steps * tokens_step):,} tokens, about {_time(seconds)}"
        )
        figures[f"stage {stage.name}, parameters"] = f"{size.all:,}, {size.trained:,} trained"
    if method.backbone.is_workspace:
        for part, number in parameters(method.backbone.model).items():
            figures[f"parameters, {part}"] = f"{number:,}"
    sharding = config.stages[0].train.sharding
    for devices, peak in peaks.items():
        if all(stage.train.batch_size % (stage.train.accumulate * devices) == 0 for stage in config.stages):
            how = f" of {devices}, {sharding}" if devices > 1 else ""
            figures[f"memory per device{how}, about"] = _bytes(peak)
    figures["disk, at most"] = _bytes(disk)
    figures["time, about"] = f"{_time(whole_seconds)} at {speed / 1e9:,.0f} GFLOP/s on this device"
    if absent:
        figures["to be set before training"] = ", ".join(absent)
        figures["assumed until then"] = ASSUMED
    return figures


def step_flops(method: Method, batch: Batch, train: TrainConfig, size: Size) -> float:
    """Of one optimizer step."""
    if isinstance(method, Recursion):
        return train.batch_size * row_work(method, batch).flops
    length = count_tokens(batch) / len(batch)
    attention = 6 * method.backbone.num_layers * method.backbone.width * length
    each = 2 * size.working + 4 * min(size.working, size.trained) + attention
    return train.batch_size * length * each


def row_bytes(method: Method, batch: Batch, train: TrainConfig, size: Size) -> float:
    """Bytes that a row leaves behind for backward."""
    each = activation_bytes(method.backbone, train, size)
    if isinstance(method, Recursion):
        work = row_work(method, batch)
        return work.learned * each + work.thought_bytes
    return count_tokens(batch) / len(batch) * each


def meta_method(builder: Builder, stage: StageConfig) -> Method:
    """The stage's method, without memory for its weights."""
    vocab, identified = len(builder.tokenizer), needs_weights(stage.method)
    starts = new_rows(builder.tokenizer)
    backbone = meta_backbone(builder.config.backbone, vocab, identified=identified, starts=starts)
    encoder = builder.encoder(stage.data, backbone.context)
    with torch.device("meta"):
        return METHODS[stage.method.name](backbone, stage.method, encoder.markers())


def count(method: Method) -> Size:
    """Parameters by what becomes of them."""
    sizes = {name: p.numel() for name, p in method.named_parameters()}
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    tables = rowwise_names(method)
    rows = sum(len(p) for name, p in method.named_parameters() if name in tables & trained)
    everything, borrowed = sum(sizes.values()), set(method.borrowed)
    active = everything - sum(sizes[name] for name in tables)
    if method.backbone.is_workspace:
        model = method.backbone.model
        active = everything - sum(p.numel() for p in model.parameters()) + working(model)
    return Size(
        all=everything,
        trained=sum(sizes[name] for name in trained),
        saved=sum(number for name, number in sizes.items() if name not in borrowed),
        working=active,
        tables=sum(sizes[name] for name in tables & trained),
        rows=rows,
        weights=sum(p.nbytes for p in method.parameters()),
        gradients=sum(p.nbytes for p in method.parameters() if p.requires_grad),
    )


def held_bytes(size: Size, train: TrainConfig, devices: int) -> int:
    """Of weights, gradients and optimizer state on one device. With fsdp its share of all three, and beside
    it whole weights and gradients while a step runs."""
    whole = size.weights + size.gradients
    if devices == 1 or train.sharding == "ddp":
        return whole + size.state
    return whole + (whole + size.state) // devices


def sample_batch(builder: Builder, stage: StageConfig) -> Batch:
    """The first examples, as the method reads them."""
    task, absent = build_task(stage.data), stage.data.path == ABSENT
    encoder = builder.encoder(stage.data.model_copy(update={"max_prompt_tokens": None}), 1 << 20)
    if task.text or absent:  # its windows are as long as the limits allow
        context = meta_backbone(builder.config.backbone, len(builder.tokenizer)).context
        encoder = builder.encoder(stage.data, context)
    if absent:
        return assumed_batch(stage.data, encoder)
    if task.text:
        examples, _ = load_split(task, "train", stage.data, encoder, n=SAMPLE)
    else:
        examples = task.split("train", SAMPLE)
    return Batches(examples, encoder, min(SAMPLE, len(examples)), 0).batch_at(0)


def tokens_a_step(builder: Builder, stage: StageConfig) -> float:
    """Tokens the model reads in one optimizer step, from the first examples; thoughts are not counted."""
    batch = sample_batch(builder, stage)
    return count_tokens(batch) / len(batch) * stage.train.batch_size


def activation_bytes(backbone: Backbone, train: TrainConfig, size: Size) -> int:
    """Bytes one token leaves behind for backward: about 34 values a layer and width, and its logits, which a
    workspace model never holds all at once."""
    half = train.precision == "bf16" or (train.precision == "auto" and size.all >= HALF_FROM)
    logits = 0 if backbone.is_workspace else 2 * backbone.vocab_size
    return (2 if half else 4) * (34 * backbone.num_layers * backbone.width // 2 + logits)


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
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
