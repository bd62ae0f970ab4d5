"""Between an input's rows and the columns of its layout; runs of columns, positions and masks."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quietreasoning.nn.trunk import Piece
from quietreasoning.workspace.config import WorkspaceConfig
from quietreasoning.workspace.layout import Column


def runs(columns: list[Column]) -> list[list[Column]]:
    """Columns in a row that hold the same streams and as many places: what waits for no slots reads a run at
    once, and what depends on the chunk sees it as more rows."""
    return [list(run) for _, run in groupby(columns, key=lambda c: c.index_RN.shape)]


def join(run: list[Column]) -> Column:
    """A run as one column."""
    if len(run) == 1:
        return run[0]
    index, valid, position = (
        torch.cat(parts, 1)
        for parts in zip(*((c.index_RN, c.valid_RN, c.position_RN) for c in run), strict=True)
    )
    return Column(index, valid, position, run[0].fresh_R, all(c.full for c in run))


def gather(columns: list[Column], outs: list[list[Tensor]], rows: int, width: int) -> list[Tensor]:
    """From columns back to the places of the input, for each kind of state; zero where there is no token."""
    found = []
    for kind in range(len(outs[0])):
        pairs = list(zip(columns, (out[kind] for out in outs), strict=True))
        value_ND = torch.cat([x.flatten(0, 1) if c.full else x[c.valid_RN] for c, x in pairs])
        place_N = torch.cat([c.index_RN.flatten() if c.full else c.index_RN[c.valid_RN] for c, _ in pairs])
        empty = value_ND.new_zeros(rows * width, value_ND.shape[-1])
        found.append(empty.index_copy(0, place_N, value_ND).unflatten(0, (rows, width)))
    return found


def attention_mask(valid_RS: Tensor, column: Column) -> Tensor | None:
    """True where a query may look [R, 1, N, S + N]; None where plain causality says it all."""
    rows, new = column.valid_RN.shape
    old = valid_RS.shape[1]
    if column.full and (old == 0 or (new == 1 and bool(valid_RS.all()))):
        return None
    causal = torch.ones(new, new, dtype=torch.bool, device=valid_RS.device).tril()
    if column.full and bool(valid_RS.all()):
        return torch.cat([causal.new_ones(new, old), causal], 1)[None, None]
    inner = causal & column.valid_RN[:, None] | torch.eye(new, dtype=torch.bool, device=causal.device)
    return torch.cat([valid_RS[:, None].expand(-1, new, -1), inner.expand(rows, -1, -1)], 2)[:, None]


class Rotary:
    """Cosines and sines of positions; the frequencies are computed once a device.

    They are no buffers: a model that is built on the meta device and then loaded would lose them.
    """

    def __init__(self, config: WorkspaceConfig):
        self.config = config
        self._frequencies: dict[torch.device, tuple[Tensor, float]] = {}

    def __call__(self, position_RN: Tensor) -> Piece:
        """[R, 1, N, C] each; angles in fp32, for bf16 knows only 897 of 8192 positions."""
        frequency_C, scale = self._on(position_RN.device)
        angle = position_RN[:, None, :, None].float() * frequency_C.float()
        angle = torch.cat([angle, angle], -1)
        return angle.cos() * scale, angle.sin() * scale

    def _on(self, device: torch.device) -> tuple[Tensor, float]:
        if device not in self._frequencies:
            rope, width = self.config.rope_parameters, self.config.head_dim
            if rope["rope_type"] == "default":
                share = torch.arange(0, width, 2, device=device).float() / width
                self._frequencies[device] = rope["rope_theta"] ** -share, 1.0
            else:
                self._frequencies[device] = ROPE_INIT_FUNCTIONS[rope["rope_type"]](self.config, device)
        return self._frequencies[device]
