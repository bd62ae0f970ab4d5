"""Which product-key table a run serves: that of its checkpoint, or one that consolidation made of it since.

RUN/pkm/        generations (`memory.generations`); each holds table.npy and what belongs to it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from quietreasoning.memory.generations import Generations
from quietreasoning.memory.sidecar import hash_of
from quietreasoning.workspace.causal_lm import WorkspaceForCausalLM
from quietreasoning.workspace.table_file import load_table

FOLDER, TABLE = "pkm", "table.npy"


def generations_of(run: Path) -> Generations:
    return Generations(run / FOLDER)


def made_of(checkpoint: Path) -> dict[str, Any]:
    """What says that a table belongs to a checkpoint."""
    return {"checkpoint": checkpoint.name, "manifest_sha256": hash_of(checkpoint / "manifest.json")}


def serve(model: WorkspaceForCausalLM, run: Path, checkpoint: Path) -> str | None:
    """Put the run's table in force, if there is one, into its model, mapped; what there is to say about it.

    A table that was made of another checkpoint is left alone. UserError where one is damaged.
    """
    generations = generations_of(run)
    number = generations.state().current
    about = generations.about(number)
    if not number:
        return None
    if any(about.get(name) != value for name, value in made_of(checkpoint).items()):
        return (
            f"{generations.path(number)} was made of {about.get('checkpoint')}; {checkpoint.name} is opened "
            "with its own product-key table"
        )
    load_table(model, generations.path(number) / TABLE)
    return None


def melt(model: WorkspaceForCausalLM, run: Path) -> None:
    """Values that consolidation turned into bytes become the floats they stand for, and can train."""
    table = model.model.table
    if table.is_int8 and generations_of(run).state().current:
        table.values = nn.Parameter(table.values_int8.float() * table.scale)
        table.values_int8 = table.scale = None
        model.config.pkm_int8 = False
