"""Where a run goes on: the newest checkpoint that verifies, if it belongs to the same recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quietreasoning.config import UserError
from quietreasoning.layers import diff
from quietreasoning.train import checkpoint
from quietreasoning.train.distributed import Machine

# what may change between two starts of one run: nothing here touches a weight
FREE_SECTIONS = ("out", "track", "eval")
FREE_TRAIN = ("save_every", "keep", "eval_every", "log_every", "term_gradients", "max_bad_steps")

Recipe = list[dict[str, Any]]


class Planned(Protocol):
    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Handover:
    """The last checkpoint of a finished stage."""

    path: Path
    index: int
    steps: int
    tokens: int


@dataclass(frozen=True)
class Resume:
    path: Path
    step: int  # since the run began
    index: int  # the stage the checkpoint is of
    done: bool  # that stage is finished
    evaluated: bool
    tokens_before: int  # in the stages before
    handover: Handover | None
    notes: tuple[str, ...]

    def is_past(self, index: int) -> bool:
        """Whether stage `index` needs no more training."""
        return index < self.index or (index == self.index and self.done)


def recipe_of(plans: Sequence[Planned]) -> Recipe:
    """The stages' settings as JSON holds them."""
    return json.loads(json.dumps([{"name": plan.name, **plan.settings} for plan in plans]))


def find_resume(run_dir: Path, recipe: Recipe, machine: Machine) -> Resume | None:
    """None for a new run. Clears what a killed run left half-written; sets damaged checkpoints aside.

    Raises UserError if the recipe changed, or if there are checkpoints and none verifies.
    """
    found, refusal = None, None
    if machine.main:
        try:
            found = _find(run_dir, recipe)
        except UserError as error:
            refusal = str(error)
    found, refusal = machine.gather((found, refusal))[0]
    if refusal:
        raise UserError(refusal)
    return found


def refuse_changed(path: Path, old: Recipe, new: Recipe) -> None:
    """Raises UserError with the difference, if it is one that training would feel."""
    changes = diff({"stages": [_felt(s) for s in old]}, {"stages": [_felt(s) for s in new]})
    if changes:
        raise UserError(
            f"{path.parent} was trained with another recipe: {'; '.join(changes)}. "
            "Take the change back to resume, or choose another `out` for a new run."
        )


def _find(run_dir: Path, recipe: Recipe) -> Resume | None:
    checkpoint.clean(run_dir)
    path, notes = checkpoint.load_latest_valid(run_dir)
    if path is None:
        if notes:
            raise UserError(
                f"{run_dir} has no checkpoint to resume from: {'; '.join(notes)}. Delete them to start over."
            )
        return None
    refuse_changed(path, checkpoint.read_json(path / "run.json")["recipe"], recipe)
    checkpoint.set_aside(run_dir, path)
    state = checkpoint.read_json(path / "state.json")
    index, done = state["stage_index"], state["stage_done"]
    finished = done and index == len(recipe) - 1
    where = f"going on from {path.name}, stage {state['stage']}"
    return Resume(
        path=path,
        step=state["offset"] + state["step"],
        index=index,
        done=done,
        evaluated=state["evaluated"],
        tokens_before=state["tokens_before"],
        handover=_handover(run_dir, index if done else index - 1),
        notes=(*notes, f"finished before, at {path.name}: nothing is left to train" if finished else where),
    )


def _handover(run_dir: Path, index: int) -> Handover | None:
    """The checkpoint that ended stage `index`: the next stage may borrow weights that only it holds."""
    for path in reversed(checkpoint.checkpoints(run_dir)):
        if checkpoint.verify(path):
            continue
        state = checkpoint.read_json(path / "state.json")
        if state["stage_index"] == index and state["stage_done"]:
            steps, tokens = state["offset"] + state["step"], state["tokens_before"] + state["tokens"]
            return Handover(path, index, steps, tokens)
    return None


def _felt(stage: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in stage.items() if key not in FREE_SECTIONS}
    if "train" in kept:
        kept["train"] = {key: value for key, value in kept["train"].items() if key not in FREE_TRAIN}
    return kept
