"""Everything that was added to a frozen model, off for a while: LoRA and the deltas of new rows alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from quietreasoning.backbone.new_rows import with_new_rows


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within, `model` answers bit for bit as it was loaded. What requires a gradient stays as it is."""
    # peft's own switch would also take gradients away, and give them back to what a method has frozen
    tuners = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m._disable_adapters]
    rows = [m for m in with_new_rows(model) if m.new_rows_on]
    try:
        for tuner in tuners:
            tuner._disable_adapters = True
        for matrix in rows:
            matrix.new_rows_on = False
        yield
    finally:
        for tuner in tuners:
            tuner._disable_adapters = False
        for matrix in rows:
            matrix.new_rows_on = True
