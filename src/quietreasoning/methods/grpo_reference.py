"""The weights a stage began with, kept beside those it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from quietreasoning.backbone.heads import held_scales, hold_scales

T = TypeVar("T")


class Reference(nn.Module):
    """A frozen copy of a module's trainable parameters: buffers, so that checkpoints hold and resume it.

    Parameters without gradient at construction, such as a frozen language model's, serve both and are not
    copied.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        for name, p in module.named_parameters():
            if p.requires_grad:
                self.register_buffer(_key(name), p.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        """Copies by the parameters' names."""
        held = dict(self.named_buffers())
        return {name: held[_key(name)] for name in self.names}

    @torch.no_grad()
    def hold(self, module: nn.Module) -> None:
        """Copy the present values; those of shards whole, so every rank must call it."""
        params = dict(module.named_parameters())
        for name, copy in self.weights().items():
            p = params[name]
            copy.copy_(p.full_tensor() if hasattr(p, "full_tensor") else p)
        hold_scales(module)

    @torch.no_grad()
    def call(self, module: nn.Module, function: Callable[[], T]) -> T:
        """What `function` gives while `module` has these weights. Nothing is written into the module's own,
        so a graph that is being built stays valid; tied weights stay tied."""
        held = self.weights() | held_scales(module)  # a clip of attention heads shrinks adapters by a scale
        weights = {f"module.{name}": copy for name, copy in held.items()}
        return torch.func.functional_call(_Calling(module, function), weights, ())


class _Calling(nn.Module):
    """A function as a forward of the module whose weights it reads."""

    def __init__(self, module: nn.Module, function: Callable[[], T]):
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> T:
        return self.function()


def _key(name: str) -> str:
    return name.replace(".", "/")  # buffers may not have dots
