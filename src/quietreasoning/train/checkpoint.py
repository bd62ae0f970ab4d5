"""Checkpoint folders that are whole or not there: `step-000500/`, safetensors and JSON only.

A folder is written under `.tmp-step-000500`, every file synced to disk, the manifest (SHA-256 of each
file) last, then renamed. Loading checks the manifest: a folder with a changed, missing or extra file is
named and passed over for the one before. What is inside the files is the business of `snapshot.py`.
Stages of no steps end at the step of the stage before; theirs are `step-000500.1/`, `.2/` and so on, so that
none replaces what was trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.disk import sync

FORMAT = 1
MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
REPLACED = ".old-"
DAMAGED = "damaged-"
NAME = re.compile(r"step-\d+(\.\d+)?")


@dataclass(frozen=True)
class Tensors:
    """Contents of one safetensors file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


Files = Mapping[str, Tensors | Mapping[str, Any]]  # a mapping becomes JSON


def step_name(step: int, after: int = 0) -> str:
    """after: the how manieth stage of no steps ends here in a row; 0 for one of some steps."""
    return f"step-{step:06d}" + (f".{after}" if after else "")


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoint folders in the order of the run, whether valid or not."""
    found = [p for p in run_dir.glob("step-*") if p.is_dir() and NAME.fullmatch(p.name)]
    return sorted(found, key=place_of)


def place_of(path: Path) -> tuple[int, int]:
    """Step, and how many stages of no steps after it: the order of a run's checkpoints."""
    step, _, after = path.name.removeprefix("step-").partition(".")
    return int(step), int(after or 0)


def save(run_dir: Path, step: int, files: Files, after: int = 0) -> Path:
    """Write `files` as checkpoint `step_name(step, after)`, replacing one of that name.

    Raises UserError if the disk refuses; what was on disk before is then untouched.
    """
    name = step_name(step, after)
    final, temporary = run_dir / name, run_dir / f"{TEMPORARY}{name}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        for file, content in files.items():
            _write(temporary / file, content)
        entries = {path.name: fingerprint(path) for path in sorted(temporary.iterdir())}
        _write(temporary / MANIFEST, {"format": FORMAT, "files": entries})
        sync(temporary)
        replaced = run_dir / f"{REPLACED}{final.name}"
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        sync(run_dir)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        clean(run_dir)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        kept = checkpoints(run_dir)
        raise UserError(
            f"checkpoint {final} could not be written: {reason}. "
            f"Last one kept: {kept[-1].name if kept else 'none'}. Free some space and run the command again."
        ) from error
    return final


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint, one line a file; empty if nothing is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected = {name: (entry["sha256"], entry["bytes"]) for name, entry in manifest["files"].items()}
        if manifest["format"] != FORMAT:
            return [f"{MANIFEST} has format {manifest['format']}, this version reads {FORMAT}"]
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} is damaged"]
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - present)]
    problems += [f"{name} does not belong here" for name in sorted(present - expected.keys())]
    for name in sorted(expected.keys() & present):
        sha256, size = expected[name]
        found = fingerprint(path / name)
        if found["bytes"] != size:
            problems.append(f"{name} has {found['bytes']} bytes, should have {size}")
        elif found["sha256"] != sha256:
            problems.append(f"{name} has changed since it was written")
    return problems


def load_latest_valid(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a note on each newer one that does not."""
    notes = []
    for path in reversed(checkpoints(run_dir)):
        problems = verify(path)
        if not problems:
            return path, notes
        notes.append(f"{path.name} passed over: {'; '.join(problems)}")
    return None, notes


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def clean(run_dir: Path) -> None:
    """Remove what a killed run was writing or deleting, put back what it was about to replace."""
    for path in run_dir.glob(f"{REPLACED}*"):
        final = run_dir / path.name.removeprefix(REPLACED)
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(final)
    for path in run_dir.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(run_dir: Path, newer_than: Path) -> None:
    """Rename checkpoints after `newer_than`, which did not verify, so that the run can write theirs anew."""
    for path in checkpoints(run_dir):
        if place_of(path) > place_of(newer_than):
            _remove(run_dir / f"{DAMAGED}{path.name}")
            path.rename(run_dir / f"{DAMAGED}{path.name}")


def retain(run_dir: Path, keep: int) -> None:
    """Delete all but the last `keep`, the best score and the last one of each stage.

    The newest is always among the kept. A folder that cannot be deleted stays and does not stop the run.
    """
    found = checkpoints(run_dir)
    states = {path: _state_of(path) for path in found}
    scored = [state["score"] for state in states.values() if state and state["score"] is not None]
    for path in found[:-keep]:
        state = states[path]
        if state is None:
            continue  # damaged: not ours to delete
        best = state["score"] is not None and state["score"] == max(scored)
        if not best and not state["stage_done"]:
            with contextlib.suppress(OSError):
                _remove(path)


def _state_of(path: Path) -> dict[str, Any] | None:
    """state.json, or None where it is damaged."""
    try:
        state = read_json(path / "state.json")
        return state if {"score", "stage_done"} <= state.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def check_space(run_dir: Path, checkpoint_bytes: int) -> None:
    """Refuse to start where not even two checkpoints fit: the kept one and the one being written."""
    run_dir.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(run_dir).free, 2 * checkpoint_bytes
    if free < need:
        raise UserError(
            f"{run_dir} has {_size(free)} free; two checkpoints need {_size(need)}. "
            "Free some space or choose another `out`."
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _write(path: Path, content: Tensors | Mapping[str, Any]) -> None:
    if isinstance(content, Tensors):
        # an empty metadata beside no tensors is written as a header that cannot be read
        save_file(dict(content.tensors), path, dict(content.metadata) or None)
    else:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sync(path)


def _remove(path: Path) -> None:
    """Delete a folder at once: under its own name it is there whole or not at all."""
    if not path.exists():
        return
    gone = path.with_name(f"{TEMPORARY}gone-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
