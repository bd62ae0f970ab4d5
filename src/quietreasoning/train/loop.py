"""The training loop, a generator of immutable records: read `train` first.

It knows no method by name, writes nothing and decides nothing about evaluation or checkpoints: whoever
iterates does (`stages.py`). A method returns sums; the loop divides them once, by counts over all lanes
and ranks, so that 1 x 8 equals 8 x 1 and two ranks equal one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.contract import Batch
from quietreasoning.optim.schedules import lr_factor
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train.distributed import NamedSum, add_tables, full_tensor, synchronising
from quietreasoning.train.quantised import follow
from quietreasoning.train.settings import TrainConfig
from quietreasoning.train.signals import StopFlag
from quietreasoning.train.state import SPIKE_WINDOW, TrainState

# (step of the stage, lane, lanes, rank, world) -> this rank's rows of this lane
BatchAt = Callable[[int, int, int, int, int], Batch]
RESERVED = ("loss", "lr", "grad_norm", "steps", "tokens", "skipped")


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step; every figure is over all lanes and ranks."""

    step: int  # since the run began, the first is 1
    stage_step: int
    stage: str
    loss: float  # what was minimised: sum of weight * term
    losses: dict[str, float]  # term -> mean over its unit, unweighted
    metrics: dict[str, float]
    gradients: dict[str, float]  # term -> norm of its own gradient, where measured (`term_gradients.py`)
    lr: float
    grad_norm: float  # before clipping
    tokens: int  # units "token" in this step
    total_tokens: int  # in this stage
    seconds: float
    data_share: float  # share of the seconds that waited for data
    skipped: int  # steps of this stage that updated nothing
    updated: bool

    def row(self) -> dict[str, Any]:
        """Flat keys of the log."""
        return {
            "step": self.step,
            "stage": self.stage,
            "train/loss": self.loss,
            **{f"loss/{name}": value for name, value in self.losses.items()},
            **{f"train/{name}": value for name, value in self.metrics.items()},
            **{f"gradient/{name}": value for name, value in self.gradients.items()},
            "train/lr": self.lr,
            "train/grad_norm": self.grad_norm,
            "train/steps": self.stage_step,
            "train/tokens": self.total_tokens,
            "train/skipped": self.skipped,
            "cost/seconds": self.seconds,
            "cost/tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "cost/data_share": self.data_share,
        }


class BadSteps(UserError):
    """Too many non-finite steps in a row; `window` is the batch of the last one, lane by lane."""

    def __init__(self, message: str, window: list[Batch]):
        super().__init__(message)
        self.window = window


def train(
    state: TrainState,
    batch_at: BatchAt,
    config: TrainConfig,
    optim: OptimConfig,
    *,
    stage: str = "main",
    stop: StopFlag | None = None,
) -> Iterator[StepRecord]:
    """Yield one record a step until the budget is spent, or until any rank was asked to stop.

    After each record `state` may be saved. Raises `BadSteps` after `max_bad_steps` non-finite steps in a row.
    """
    machine, lanes = state.machine, config.accumulate
    stop = stop or StopFlag()
    count_units, add_up = NamedSum(machine), NamedSum(machine)
    params = list(state.params.values())
    state.method.train()
    while not finished(state, config):
        began = time.perf_counter()
        window = [batch_at(state.step, lane, lanes, machine.rank, machine.world) for lane in range(lanes)]
        window = [batch.to(machine.device) for batch in window]
        data_seconds = time.perf_counter() - began
        counts = count_units(wishes(stop) | units_of(state, window))
        state.save_wanted = counts.pop("save") > 0
        if counts.pop("stop"):
            return

        state.method.pace(spent(state, config))
        slower = follow(state.method, config, state.step, state.tokens)
        measure = config.term_gradients > 0 and (state.step + 1) % config.term_gradients == 0
        sums, carries = backward_all(state, window, counts, measure)
        grad_norm, local = sums.fetch(clip(params, optim.clip).to(machine.device))
        summed = add_up(local)
        updated = accepts(state, config, summed["loss"], grad_norm)
        lr = state.optimizer.set_lr(slower * lr_factor(optim, state.step, progress(state, config, optim)))
        figures: dict[str, float] = {}
        if updated:
            figures = state.optimizer.step()
            if state.ema:
                state.ema.update()
            state.carries = carries
        state.optimizer.zero_grad()
        tokens = int(counts.get("token", 0))
        state.step, state.tokens = state.step + 1, state.tokens + tokens
        if state.bad_in_a_row >= config.max_bad_steps:
            raise BadSteps(bad_message(state, summed["loss"], grad_norm), window)
        seconds = time.perf_counter() - began
        yield StepRecord(
            step=state.global_step,
            stage_step=state.step,
            stage=stage,
            loss=summed["loss"],
            losses=sums.term_means(summed, counts),
            metrics=means(summed) | figures,
            gradients=means(summed, "norm", "ranks"),
            lr=lr,
            grad_norm=grad_norm,
            tokens=tokens,
            total_tokens=state.tokens,
            seconds=seconds,
            data_share=data_seconds / seconds,
            skipped=state.skipped,
            updated=updated,
        )


def backward_all(
    state: TrainState, window: list[Batch], counts: dict[str, float], measure: bool
) -> tuple[Sums, list[Any]]:
    """Forward of every lane, and backward unless the method counts; returns what they report and the carries
    after the step. measure: the first lane reports its terms' gradients too."""
    sums, carries = Sums(), []
    for lane, batch in enumerate(window):
        with synchronising(state.wrapped, lane == len(window) - 1, state.sharded):
            with state.optimizer.watching():
                loss, totals, metrics, carry, norms = state.wrapped(
                    batch, state.carries[lane], counts, measure and lane == 0
                )
            if not state.method.counts:
                # DDP and FSDP2 average over ranks; the counts already hold all ranks
                (loss if state.machine.world == 1 else loss * state.machine.world).backward()
        sums.add(loss.detach(), totals, metrics, norms)
        carries.append(carry)
    if state.machine.world > 1 and not state.sharded:
        add_tables(state.tables, state.machine)
    return sums, carries


def finished(state: TrainState, config: TrainConfig) -> bool:
    if config.tokens is None:
        return state.step >= config.steps
    if state.step and not state.tokens:
        raise UserError(
            'train.tokens needs a method that counts the unit "token"; this one does not. Use train.steps.'
        )
    return state.tokens >= config.tokens


def spent(state: TrainState, config: TrainConfig) -> float:
    """Share of the stage's budget that is spent, in [0, 1]."""
    if config.tokens is not None:
        return min(1.0, state.tokens / config.tokens)
    return state.step / max(1, config.steps)


def progress(state: TrainState, config: TrainConfig, optim: OptimConfig) -> float:
    """Share of the budget that is spent; of what follows warm-up where the number of steps is known."""
    if config.tokens is not None:
        return state.tokens / config.tokens
    return (state.step - optim.warmup_steps) / max(1, config.steps - optim.warmup_steps)


def units_of(state: TrainState, window: list[Batch]) -> dict[str, float]:
    """Units of every lane together."""
    counts: dict[str, float] = {}
    for lane, batch in enumerate(window):
        for unit, count in state.method.units(batch, state.carries[lane]).items():
            counts[unit] = counts.get(unit, 0.0) + count
    return counts


def wishes(stop: StopFlag) -> dict[str, float]:
    """What this rank was asked from outside; it travels with the units, so that all ranks hear it at once."""
    return {"stop": float(stop.requested), "save": float(stop.save_requested())}


class Sums:
    """Adds what the lanes report, on the device, and fetches it all at once."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.units: dict[str, str] = {}

    def add(
        self,
        loss: Tensor,
        totals: dict[str, tuple[Tensor, str]],
        metrics: dict[str, tuple[Tensor, Tensor]],
        norms: dict[str, Tensor],
    ) -> None:
        self._add("loss", loss)
        for name, (total, unit) in totals.items():
            self.units[name] = unit
            self._add(f"loss/{name}", total)
        for name, (total, count) in metrics.items():
            if name in RESERVED:
                raise ValueError(f"metric {name!r} is the loop's own. Reserved: {', '.join(RESERVED)}.")
            self._add(f"sum/{name}", total)
            self._add(f"count/{name}", count)
        for name, norm in norms.items():  # a mean over the ranks that measured
            self._add(f"norm/{name}", norm)
            self._add(f"ranks/{name}", torch.ones_like(norm))

    def fetch(self, grad_norm: Tensor) -> tuple[float, dict[str, float]]:
        """The gradient norm and the sums as numbers: the step's only wait for the device."""
        tensors = [grad_norm, *self.values.values()]
        values = torch.stack([t.double() for t in tensors]).tolist()
        return values[0], dict(zip(self.values, values[1:], strict=True))

    def term_means(self, summed: dict[str, float], counts: dict[str, float]) -> dict[str, float]:
        """Term -> its sum over lanes and ranks per unit counted there."""
        return {name: summed[f"loss/{name}"] / max(counts[unit], 1.0) for name, unit in self.units.items()}

    def _add(self, name: str, value: Tensor) -> None:
        self.values[name] = self.values[name] + value if name in self.values else value


def means(summed: dict[str, float], above: str = "sum", below: str = "count") -> dict[str, float]:
    """Metric -> sum / count, where anything was counted."""
    names = [key.removeprefix(f"{above}/") for key in summed if key.startswith(f"{above}/")]
    counted = {name: summed[f"{below}/{name}"] for name in names}
    return {name: summed[f"{above}/{name}"] / count for name, count in counted.items() if count}


def clip(params: list[torch.nn.Parameter], largest: float) -> Tensor:
    """Scales gradients down to a global norm of `largest` (0: no limit); returns the norm before."""
    if not any(p.grad is not None and p.grad.is_sparse for p in params):
        norm = torch.nn.utils.clip_grad_norm_(params, largest or math.inf)
        return full_tensor(norm)
    grads = []
    for p in params:
        if p.grad is not None:
            if p.grad.is_sparse:
                p.grad = p.grad.coalesce()  # or a row that two lanes touched would count twice
            grads.append(p.grad.values() if p.grad.is_sparse else p.grad)
    norm = torch.nn.utils.get_total_norm(grads)
    if largest:
        torch._foreach_mul_(grads, torch.clamp(largest / (norm + 1e-6), max=1.0))
    return norm


def accepts(state: TrainState, config: TrainConfig, loss: float, grad_norm: float) -> bool:
    """Whether this step may reach the weights; counts it if not. All ranks see the same numbers."""
    finite = math.isfinite(loss) and math.isfinite(grad_norm)
    state.bad_in_a_row = 0 if finite else state.bad_in_a_row + 1
    spike = finite and config.skip_spikes and is_spike(state, loss, grad_norm)
    if finite and config.skip_spikes:
        state.history.append((loss, grad_norm))
    state.skipped += not finite or spike
    return finite and not spike


def is_spike(state: TrainState, loss: float, grad_norm: float) -> bool:
    """Above mean + 6 sigma of the last finite steps, as OLMo-core's skip-step optimizers."""
    if len(state.history) < SPIKE_WINDOW // 2:
        return False
    for value, past in zip((loss, grad_norm), zip(*state.history, strict=True), strict=True):
        if value > statistics.fmean(past) + 6 * statistics.stdev(past):
            return True
    return False


def bad_message(state: TrainState, loss: float, grad_norm: float) -> str:
    return (
        f"step {state.global_step}: loss {loss:.4g}, gradient norm {grad_norm:.4g}; {state.bad_in_a_row} "
        "steps in a row not finite, none reached the weights. Lower optim.lr, or use train.precision=fp32."
    )
