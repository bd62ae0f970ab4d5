"""A running average of the weights: average = decay * average + (1 - decay) * weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages of named parameters; starts at their present values."""

    def __init__(self, params: Mapping[str, nn.Parameter], decay: float):
        self.decay = decay
        self.params = dict(params)
        self.averages = {name: p.detach().clone() for name, p in params.items()}

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(list(self.averages.values()), list(self.params.values()), 1.0 - self.decay)

    def copy_to_params(self) -> None:
        _copy(self.averages.values(), self.params.values())

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The parameters hold the averages inside the block and their own values after it."""
        kept: list[Tensor] = [p.detach().clone() for p in self.params.values()]
        self.copy_to_params()
        try:
            yield
        finally:
            _copy(kept, self.params.values())


@torch.no_grad()
def _copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):  # shards have no foreach copy
        target.copy_(source)
