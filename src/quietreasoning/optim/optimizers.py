"""OPTIMIZERS: name -> the torch optimizers that share the parameters among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from quietreasoning.config import UserError
from quietreasoning.optim import grokfast, qk_clip
from quietreasoning.optim.grokfast import Grokfast, decay_for
from quietreasoning.optim.muon import Muon
from quietreasoning.optim.qk_clip import QkClip
from quietreasoning.optim.rowwise import RowwiseAdam, rowwise_names
from quietreasoning.optim.settings import MuonConfig, OptimConfig

Named = dict[str, nn.Parameter]


class Optimizers:
    """One to three torch optimizers stepped together; groups remember their share of the learning rate.

    The order of a step: gradients, already clipped, through `grokfast`; the optimizers with their decay;
    `qk_clip` on the weights. The last is set from outside: which weights are queries, the backbone knows.
    """

    def __init__(
        self,
        parts: list[Optimizer],
        names: Mapping[str, nn.Parameter],
        lr: float,
        grokfast: Grokfast | None = None,
    ):
        self.parts = parts
        self.names = dict(names)
        self.peak_lr = lr
        self.grokfast = grokfast
        self.qk_clip: QkClip | None = None

    def watching(self) -> AbstractContextManager[Any]:
        """The forwards of a step run inside it."""
        return self.qk_clip.watching() if self.qk_clip else nullcontext()

    def step(self) -> dict[str, float]:
        """One update; returns figures for the log."""
        if self.grokfast:
            self.grokfast.step()
        for part in self.parts:
            part.step()
        return self.qk_clip.step() if self.qk_clip else {}

    def zero_grad(self) -> None:
        """Forget what the forwards of this step left."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        if self.qk_clip:
            self.qk_clip.forget()

    def set_lr(self, factor: float) -> float:
        """Sets every group to peak * its scale * factor; returns peak * factor."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.peak_lr * group["lr_scale"] * factor
        return self.peak_lr * factor

    def state(self) -> dict[str, dict[str, Any]]:
        """Parameter name -> what the optimizer remembers of it; empty before the first update."""
        by_param = {p: held for part in self.parts for p, held in part.state.items()}
        state = {name: dict(by_param[p]) for name, p in self.names.items() if p in by_param}
        for extra in (self.grokfast, self.qk_clip):
            for name, held in (extra.state(self.names) if extra else {}).items():
                state[name] = state.get(name, {}) | held
        return state

    def load_state(self, state: Mapping[str, dict[str, Any]]) -> None:
        """The inverse of `state`: tensors already on their device and, if sharded, already sharded."""
        for extra in (self.grokfast, self.qk_clip):
            for name, held in state.items() if extra else ():
                extra.load_state(self.names[name], held)
        prefixes = (grokfast.PREFIX, qk_clip.PREFIX)
        for part in self.parts:
            group_of = {p: group for group in part.param_groups for p in group["params"]}
            for name, held in state.items():
                p = self.names[name]
                held = {what: value for what, value in held.items() if not what.startswith(prefixes)}
                if p not in group_of or not held:
                    continue
                part.state[p] = held
                if "step" in held:  # fused kernels count on the device, the others on the CPU
                    device = p.device if group_of[p].get("fused") else torch.device("cpu")
                    part.state[p]["step"] = held["step"].to(device)


def adamw(method: nn.Module, params: Named, config: OptimConfig) -> list[Optimizer]:
    return [_adamw(params, config, undecayed_names(method))]


def sgd(method: nn.Module, params: Named, config: OptimConfig) -> list[Optimizer]:
    groups = _groups(params, config, undecayed_names(method))
    return [SGD(groups, lr=config.lr, momentum=config.betas[0], foreach=True)]


def muon(method: nn.Module, params: Named, config: OptimConfig) -> list[Optimizer]:
    """Muon (Jordan, 2024) on hidden matrices at AdamW's update size, so that both share one learning rate."""
    hidden = hidden_matrices(method)
    matrices = {name: p for name, p in params.items() if name in hidden}
    rest = {name: p for name, p in params.items() if name not in hidden}
    parts: list[Optimizer] = []
    if matrices:
        own = config.muon or MuonConfig()
        parts.append(
            Muon(
                _groups(matrices, config),
                lr=config.lr,
                momentum=config.betas[0],
                scale=own.scale,
                nesterov=own.nesterov,
                iterations=own.iterations,
                dtype=torch.bfloat16 if own.precision == "bf16" else torch.float32,
            )
        )
    return parts + ([_adamw(rest, config, undecayed_names(method))] if rest else [])


def rowwise(tables: Named, config: OptimConfig) -> Optimizer:
    """Large tables of which a step reads a few rows, whatever `optim.name` is; without weight decay."""
    plain = config.model_copy(update={"weight_decay": 0.0})
    return RowwiseAdam(_groups(tables, plain), lr=config.lr, beta2=config.betas[1])


OPTIMIZERS: dict[str, Callable[[nn.Module, Named, OptimConfig], list[Optimizer]]] = {
    "adamw": adamw,
    "muon": muon,
    "sgd": sgd,
}


def build_optimizer(
    method: nn.Module, params: Mapping[str, nn.Parameter], config: OptimConfig, steps: int | None = None
) -> Optimizers:
    """Optimizers over `params` (the trainable ones, by name in `method`); tables get the row-wise one.

    steps: how long the stage is, if that is known.
    """
    named = dict(params)
    for prefix in config.lr_scale:
        if not any(has_prefix(name, prefix) for name in named):
            raise UserError(
                f"optim.lr_scale names {prefix!r}, which no trainable parameter is under. "
                f"Trainable: {', '.join(top_names(named))}."
            )
    wanted = rowwise_names(method)
    tables = {name: p for name, p in named.items() if name in wanted}
    others = {name: p for name, p in named.items() if name not in tables}
    parts = OPTIMIZERS[config.name](method, others, config) if others else []
    if tables:
        parts.append(rowwise(tables, config))
    own = config.grokfast
    slow = Grokfast(others.values(), own.decay or decay_for(steps), own.strength) if own else None
    return Optimizers(parts, named, config.lr, slow)


def hidden_matrices(method: nn.Module) -> set[str]:
    """Weights of linear layers, less those that map to or from a vocabulary (embeddings, heads)."""
    vocabularies = {m.num_embeddings for m in method.modules() if isinstance(m, nn.Embedding)}
    embeddings = {id(m.weight) for m in method.modules() if isinstance(m, nn.Embedding)}
    names = {id(p): name for name, p in method.named_parameters()}
    return {
        names[id(m.weight)]
        for m in method.modules()
        if isinstance(m, nn.Linear) and m.out_features not in vocabularies and id(m.weight) not in embeddings
    }


def undecayed_names(method: nn.Module) -> set[str]:
    """Parameters for which zero is no resting place: modules name theirs in a class attribute `no_decay`."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in method.named_modules()
        for name in getattr(type(module), "no_decay", ())
    }


def has_prefix(name: str, prefix: str) -> bool:
    """Whether dotted `name` is `prefix` or lies under it; `layers.1` does not hold `layers.10`."""
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def top_names(names: Iterable[str]) -> list[str]:
    """The first two levels of dotted names, for messages."""
    return sorted({".".join(name.split(".")[:2]) for name in names})[:12]


def _adamw(params: Named, config: OptimConfig, undecayed: Collection[str]) -> Optimizer:
    fused = all(p.device.type in ("cpu", "cuda", "xpu") for p in params.values())
    return AdamW(_groups(params, config, undecayed), lr=config.lr, betas=config.betas, fused=fused)


def _groups(params: Named, config: OptimConfig, undecayed: Collection[str] = ()) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], list[torch.Tensor]] = {}
    for name, p in params.items():
        fits = [prefix for prefix in config.lr_scale if has_prefix(name, prefix)]
        scale = config.lr_scale[max(fits, key=len)] if fits else 1.0
        decay = config.weight_decay if p.ndim >= 2 and name not in undecayed else 0.0
        groups.setdefault((scale, decay), []).append(p)
    return [
        {"params": group, "lr_scale": scale, "weight_decay": decay, "lr": config.lr * scale}
        for (scale, decay), group in groups.items()
    ]
