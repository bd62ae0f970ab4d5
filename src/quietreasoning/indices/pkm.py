"""`quiet index pkm`: the values of a product-key memory, as a model serves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quietreasoning.build import open_run
from quietreasoning.config import UserError
from quietreasoning.memory.knn_index import Show, quiet
from quietreasoning.workspace.table_file import write_table


def make_pkm(
    path: Path, slots: int, value_dim: int, run: str | None = None, show: Show = quiet
) -> dict[str, Any]:
    """A table of values: all zero, or a trained workspace model's in its serving form."""
    table = None
    if run is not None:
        backbone = open_run(run).method.backbone
        if not backbone.is_workspace:
            raise UserError(f"--run {run}: has no product-key memory. Give a run of method workspace.")
        table = backbone.model.model.table
        if (table.slots, table.value_dim) != (slots, value_dim):
            raise UserError(
                f"--slots {slots} --value-dim {value_dim}: run {run} has {table.slots} slots of "
                f"{table.value_dim}; give these"
            )
    return {"path": str(path), "slots": slots, "value_dim": value_dim} | write_table(
        path, slots, value_dim, table, show
    )
