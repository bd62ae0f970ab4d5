"""TrainState: everything one stage changes while it trains, which is what a checkpoint holds."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quietreasoning.config import UserError
from quietreasoning.contract import Batch, Method, StepOutput
from quietreasoning.optim.ema import Ema
from quietreasoning.optim.optimizers import Optimizers, build_optimizer, has_prefix, top_names
from quietreasoning.optim.rowwise import rowwise_names
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.distributed import Machine, is_sharded, unwrap, whole, wrap
from quietreasoning.train.rng import kept_rng
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.term_gradients import share, term_norms

BF16_GAINS_FROM = 500_000  # parameters; below, casting costs more than bf16 products save
SPIKE_WINDOW = 128

# name -> (sum, count) or a sum alone; detached, on the device
Sums = dict[str, Tensor]


class LaneStep(nn.Module):
    """The method's forward and the one division, as one forward: DDP and FSDP2 see plain tensors come out."""

    def __init__(self, method: Method, autocast: torch.dtype | None, device_type: str, compiled: bool):
        super().__init__()
        self.method = method
        # counts change with every step: compiled in, they would mean compiling again
        self.call = torch.compile(method.forward) if compiled else method.__call__
        self.autocast = autocast
        self.device_type = device_type

    def forward(
        self, batch: Batch, carry: Any, counts: dict[str, float], measure: bool = False
    ) -> tuple[Tensor, dict, dict, Any, dict]:
        """The lane's share of the loss, term totals, metrics, carry, and if asked the norms of the terms'
        gradients; only the first has a graph. Measured in here, no rank's hooks on gradients hear of it."""
        if self.autocast is None:
            out = self.call(batch, carry)
        else:
            with torch.autocast(self.device_type, dtype=self.autocast):
                out = self.call(batch, carry)
        loss, norms = weighted(out, counts), {}
        if measure and not self.method.counts:
            norms = term_norms(out.terms, counts, [p for p in self.method.parameters() if p.requires_grad])
        return loss, *detached(out), norms


def weighted(out: StepOutput, counts: dict[str, float]) -> Tensor:
    """sum(weight * total / count)."""
    loss = None
    for name, term in out.terms.items():
        if term.unit not in counts:
            raise ValueError(
                f"term {name!r} sums over {term.unit!r}, which units() lacks. It has: {list(counts)}."
            )
        part = share(term, counts)
        loss = part if loss is None else loss + part
    if loss is None:
        raise ValueError("forward returned no loss term")
    return loss


def detached(out: StepOutput) -> tuple[dict, dict, Any]:
    """Totals with their units, metrics and carry without their graphs."""
    totals = {name: (term.total.detach(), term.unit) for name, term in out.terms.items()}
    metrics = {name: (total.detach(), count.detach()) for name, (total, count) in out.metrics.items()}
    return totals, metrics, out.carry if out.carry is None else without_graph(out.carry)


def without_graph(carry: Any) -> Any:
    """The carry crosses optimizer steps, its graph is gone."""
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, carry)


@dataclass
class TrainState:
    """One stage in training. Build it with `create`; the loop moves it, checkpoints save and load it."""

    method: Method
    wrapped: nn.Module
    params: dict[str, nn.Parameter]  # the trainable ones, by name in `method`
    optimizer: Optimizers
    ema: Ema | None
    machine: Machine
    sharded: bool
    carries: list[Any]  # one a lane
    frozen: list[str]  # parameters that train.enable left out and `finish` gives back
    tables: list[nn.Parameter] = field(default_factory=list)  # those of `params` with sparse gradients
    step: int = 0  # optimizer steps of this stage, skipped ones included
    offset: int = 0  # steps of the stages before
    tokens: int = 0  # counted by the loss in this stage
    skipped: int = 0
    bad_in_a_row: int = 0
    save_wanted: bool = False  # someone asked for a checkpoint now
    history: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))

    @classmethod
    def create(
        cls, method: Method, config: TrainConfig, optim: OptimConfig, machine: Machine | None = None
    ) -> TrainState:
        """Places, freezes and wraps `method`; starts optimizer and average fresh."""
        machine = machine or Machine()
        check_settings(config, optim, machine.world)
        method.to(machine.device)
        frozen = freeze_others(method, config.enable)
        # a stage of no steps may have nothing to train, nor has a method that counts
        trains = config.steps != 0 and not method.counts
        if trains and not any(p.requires_grad for p in method.parameters()):
            raise UserError(
                "nothing to train: every parameter is frozen. Widen train.enable or unfreeze the backbone."
            )
        autocast = autocast_dtype(config.precision, method, machine.device)
        lane = LaneStep(method, autocast, machine.device.type, config.compile)
        wrapped = wrap(lane, machine, config.sharding) if trains else lane
        params = {name: p for name, p in method.named_parameters() if p.requires_grad and trains}
        wanted = rowwise_names(method)
        optimizer = Optimizers([], {}, optim.lr)
        if trains:
            optimizer = build_optimizer(method, params, optim, config.steps)
            if optim.qk_clip:
                from quietreasoning.backbone.heads import qk_clip  # others need no transformers here

                optimizer.qk_clip = qk_clip(method, optim.qk_clip.tau)
        return cls(
            method=method,
            wrapped=wrapped,
            params=params,
            optimizer=optimizer,
            ema=Ema(params, optim.ema) if optim.ema and trains else None,
            machine=machine,
            sharded=is_sharded(wrapped),
            carries=[None] * config.accumulate,
            frozen=frozen,
            tables=[p for name, p in params.items() if name in wanted],
        )

    @property
    def global_step(self) -> int:
        """Steps since the run began: names checkpoints and log records."""
        return self.offset + self.step

    @contextmanager
    def evaluating(self) -> Iterator[Method]:
        """The method as evaluation should see it: averaged weights if there are any, whole, in eval mode.
        Random state and mode are put back, so that evaluating never changes the training that follows."""
        training = self.method.training
        with kept_rng(), self.ema.swapped_in() if self.ema else contextlib.nullcontext(), whole(self.wrapped):
            self.method.eval()
            try:
                yield self.method
            finally:
                self.method.train(training)

    def finish(self) -> Method:
        """The method to hand on: averaged weights if there are any, whole, nothing wrapped around it."""
        if self.ema:
            self.ema.copy_to_params()
        unwrap(self.wrapped)
        for name, p in self.method.named_parameters():
            if name in self.frozen:
                p.requires_grad_(True)
        return self.method


def check_settings(config: TrainConfig, optim: OptimConfig, ranks: int) -> None:
    """Refuses settings that only meet here: ranks, lanes and the optimizer."""
    if config.steps is None and config.tokens is None:
        raise UserError("train.steps or train.tokens must say how long to train; neither is given.")
    shares = config.accumulate * ranks
    if config.batch_size % shares:
        raise UserError(
            f"train.batch_size={config.batch_size} does not divide into train.accumulate={config.accumulate} "
            f"lanes on {ranks} rank(s). Use a multiple of {shares}."
        )
    if config.term_gradients and config.compile:
        raise UserError(
            f"train.term_gradients={config.term_gradients} goes through a graph more than once, which a "
            "compiled forward does not allow. Set train.compile=false, or train.term_gradients=0."
        )
    if optim.qk_clip and config.compile:
        raise UserError(
            f"optim.qk_clip.tau={optim.qk_clip.tau:g} reads logits inside layers, which a compiled "
            "forward does not show. Set train.compile=false, or optim.qk_clip=null."
        )


def freeze_others(method: nn.Module, enable: tuple[str, ...]) -> list[str]:
    """With prefixes: freezes trainable parameters outside them and names those. It unfreezes nothing."""
    names = [name for name, _ in method.named_parameters()]
    for prefix in enable:
        if not any(has_prefix(name, prefix) for name in names):
            raise UserError(
                f"train.enable names {prefix!r}, which no parameter is under. "
                f"Modules: {', '.join(top_names(names))}."
            )
    frozen = []
    for name, p in method.named_parameters():
        if enable and p.requires_grad and not any(has_prefix(name, prefix) for prefix in enable):
            p.requires_grad_(False)
            frozen.append(name)
    return frozen


def autocast_dtype(precision: str, method: nn.Module, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or None for none."""
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if sum(p.numel() for p in method.parameters()) < BF16_GAINS_FROM:
        return None
    return torch.bfloat16 if computes_bf16(device) else None


def computes_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in fp32 here, not only possible."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True
