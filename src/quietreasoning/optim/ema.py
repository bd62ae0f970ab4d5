"""A running average of the weights: average = decay * average + (1 - decay) * weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

    @torch.no_grad()
    def copy_to_params(self) -> None:
        torch._foreach_copy_(list(self.params.values()), list(self.averages.values()))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The parameters hold the averages inside the block and their own values after it."""
        kept: list[Tensor] = [p.detach().clone() for p in self.params.values()]
        self.copy_to_params()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self.params.values()), kept)
