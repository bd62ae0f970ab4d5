"""The values of a product-key memory as a file that a model serves from: int8 rows and a scale each.

    pkm.npy         int8 [S, V]
    pkm.scale.npy   float32 [S, 1]

The model maps both, so that only rows that are read enter memory. Each has a sidecar.
Shapes: S slots, V value width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.memory.arrays import open_array
from quietreasoning.memory.sidecar import check, replacing, seal
from quietreasoning.nn.product_key_memory import ProductKeyTable, side_of
from quietreasoning.nn.row_gather import quantise_rows
from quietreasoning.workspace.causal_lm import WorkspaceForCausalLM

VALUES, SCALE = "pkm-values", "pkm-scale"
AGAIN = "make it anew with quiet index pkm"
_ROWS = 1 << 16  # written at once


def scale_of(path: Path) -> Path:
    """Where the scales of a table stand: `pkm.npy` -> `pkm.scale.npy`."""
    return path.with_name(f"{path.stem}.scale{path.suffix}")


def write_table(
    path: Path,
    slots: int,
    value_dim: int,
    table: ProductKeyTable | None = None,
    show: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, int]:
    """Write values and scales, of a table, or all zero: a memory that is silent until it is written to.

    A table of the floats that train is quantised; rounding moves no value by more than half its row's scale.
    Bytes of both. UserError where slots is no square.
    """
    if path.suffix != ".npy":
        raise UserError(f"--path {path}: must end in .npy")
    try:
        side_of(slots)
    except ValueError as error:
        raise UserError(f"--slots {slots}: {error}") from None
    about: dict[str, Any] = {"command": "quiet index pkm"}
    if table is not None:
        about["keys_sha256"] = keys_hash(table)
    shapes = {path: ((slots, value_dim), np.int8, VALUES), scale_of(path): ((slots, 1), np.float32, SCALE)}
    for number, (file, (shape, dtype, kind)) in enumerate(shapes.items()):
        with replacing(file) as temporary:
            out = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            for at in range(0, slots, _ROWS) if table is not None else ():
                out[at : at + _ROWS] = _rows(table, slice(at, at + _ROWS))[number].numpy()
                show(kind, min(at + _ROWS, slots), slots)
            out.flush()
            del out
        seal(file, kind=kind, dim=shape[1], metric="none", counts={"entries": slots}, made_by=about)
    return {"values_bytes": path.stat().st_size, "scale_bytes": scale_of(path).stat().st_size}


def load_table(model: WorkspaceForCausalLM, path: Path) -> None:
    """Serve the model's product-key memory from a file, mapped; it trains no more.

    UserError for a file that its sidecar does not vouch for, of another shape, or of values that other
    sub-keys lead to.
    """
    table, config = model.model.table, model.config
    wanted = {path: (table.value_dim, np.int8, VALUES), scale_of(path): (1, np.float32, SCALE)}
    found: list[Tensor] = []
    for file, (dim, dtype, kind) in wanted.items():
        sidecar = check(file, kind=kind, again=AGAIN, dim=dim, metric="none")
        array = open_array(file, "product-key memory", "a table of quiet index pkm")
        if array.shape != (table.slots, dim) or array.dtype != dtype:
            raise UserError(
                f"{file} is {array.dtype} {array.shape}, and this model has {table.slots} slots of "
                f"{table.value_dim}. Give the table of this model, or {AGAIN} --slots {table.slots} "
                f"--value-dim {table.value_dim}."
            )
        if sidecar.made_by.get("keys_sha256") not in (None, keys_hash(table)):
            raise UserError(
                f"{file} holds what other sub-keys lead to. Give the table of this model, or {AGAIN}."
            )
        found.append(torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False)))
    table.values, (table.values_int8, table.scale) = None, found
    config.pkm_int8 = True


def keys_hash(table: ProductKeyTable) -> str:
    """SHA-256 of the sub-keys, which say what a slot stands for."""
    held = table.keys.detach().float().cpu().contiguous().reshape(-1)
    return hashlib.sha256(held.view(torch.uint8).numpy().tobytes()).hexdigest()


def _rows(table: ProductKeyTable, part: slice) -> tuple[Tensor, Tensor]:
    if table.is_int8:
        return table.values_int8[part].cpu(), table.scale[part].float().cpu()
    rows_SV, scale_S1 = quantise_rows(table.values[part])
    return rows_SV.cpu(), scale_S1.cpu()
