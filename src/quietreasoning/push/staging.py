"""A folder that is a run of its own: one checkpoint's weights as evaluation reads them, and what opens them.

What only training needs (optimizer, random states, log) stays behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quietreasoning.backbone.compressor_file import load_compressor, read_origin, save_compressor
from quietreasoning.build import find_checkpoint, folder_of, read_config
from quietreasoning.config import UserError
from quietreasoning.evaluate.rows import Report, load, save
from quietreasoning.push.portable import BASE, COMPRESSOR, TOKENIZER, LocalModel, Portable, portable
from quietreasoning.run_config import RunConfig
from quietreasoning.train import checkpoint
from quietreasoning.train.checkpoint import Tensors
from quietreasoning.train.snapshot import read_weights
from quietreasoning.yaml_text import dump_yaml

PUSHED = "pushed"  # key in run.json that tells a staged folder from a trained one
KEPT_STATE = ("stage", "stage_index", "stage_done", "score", "step", "tokens")


@dataclass(frozen=True)
class Contents:
    """What a card tells of."""

    config: RunConfig
    info: dict[str, Any]  # run.json
    state: dict[str, Any]  # of the checkpoint: stage, stage_index, stage_done, step, tokens
    checkpoint: str
    models: tuple[LocalModel, ...]
    base: str | None  # hub id
    reports: tuple[Report, ...]
    notes: tuple[str, ...]


def stage_run(run: Path, draft: Path, *, base: str | None = None, with_base: bool = False) -> Contents:
    """Write all but the card into the empty folder `draft`.

    run: a run folder, or one of its checkpoints. base, with_base: see `portable`. UserError where there is no
    run, no valid checkpoint, or a file that it needs is gone.
    """
    folder = folder_of(run)
    config = read_config(folder)
    chosen = find_checkpoint(run)
    state = checkpoint.read_json(chosen / "state.json")
    made = portable(config, state["stage_index"], base=base, with_base=with_base)
    newest = chosen == checkpoint.load_latest_valid(folder)[0]
    reports, notes = evaluations(folder, chosen, newest)
    info = identity(folder, chosen)
    (draft / "config.yaml").write_text(dump_yaml(made.config.model_dump(mode="json")), encoding="utf-8")
    (draft / "run.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    _copy(folder / TOKENIZER, draft / TOKENIZER, "*", f"quiet train writes {TOKENIZER}/ anew")
    write_checkpoint(chosen, draft, state, info)
    for model in made.models:
        send_model(model, draft)
    if made.compressors is not None:
        layers = config.stages[state["stage_index"]].method.model_dump().get("layers")
        send_compressors(read_compressors(made.compressors, layers), made, draft / COMPRESSOR)
    if newest:
        send_compressors(sorted(folder.glob("compressor-*.safetensors")), made, draft)  # what it has made
    if reports:
        save(draft / "eval" / "rows.json", reports)
    if reports and (folder / "report.html").is_file():
        write_report(folder, draft)
    kept = {key: state[key] for key in KEPT_STATE if key in state}
    notes = (*made.notes, *notes)
    return Contents(made.config, info, kept, chosen.name, made.models, made.base, reports, notes)


def identity(folder: Path, chosen: Path) -> dict[str, Any]:
    """run.json without the command, which names folders; and which checkpoint this is."""
    try:
        info = checkpoint.read_json(folder / "run.json")
    except (OSError, ValueError):
        info = {}
    info = {key: value for key, value in info.items() if key not in ("command", PUSHED)}
    return info | {PUSHED: {"checkpoint": chosen.name, "averaged": (chosen / "ema.safetensors").exists()}}


def write_checkpoint(chosen: Path, draft: Path, state: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """The weights that evaluation reads, in the one format; running averages take their places."""
    tensors, aliases = read_weights(chosen, averaged=True)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    step, after = checkpoint.place_of(chosen)
    stage = {"format": checkpoint.FORMAT, "stage": state.get("stage"), "step": step}
    files = {
        "method.safetensors": Tensors(tensors, {"tied": json.dumps(aliases)}),
        "run.json": dict(info) | stage | {"recipe": []},  # no recipe goes on from here
        "state.json": {key: state[key] for key in KEPT_STATE if key in state},
    }
    checkpoint.save(draft, step, files, after=after)


def send_model(model: LocalModel, draft: Path) -> None:
    if model.sent == "nothing":
        return
    pattern = "config.json" if model.sent == "shape" else "*"
    _copy(model.folder, draft / model.name, pattern, f"{model.key} must be there to push this run")


def read_compressors(folder: Path, layers: Sequence[int | str] | None) -> list[Path]:
    """The files that a method reads of the folder its settings name; UserError where one is gone."""
    names = (
        [f"compressor-{layer}.safetensors" for layer in layers] if layers else ["compressor-*.safetensors"]
    )
    found = [path for name in names for path in sorted(folder.glob(name))]
    if len(found) < len(names):
        raise UserError(
            f"method.compressor={folder}: {', '.join(names)} is not there. Put the folder back that the run "
            "was trained with."
        )
    return found


def send_compressors(files: Sequence[Path], made: Portable, target: Path) -> None:
    """Compressor files, their header naming the model as the pushed run does."""
    local = any(model.name == BASE for model in made.models)
    for path in files:
        origin = read_origin(path)
        who = dict(origin.identity)
        if local and "path" in who:
            who["path"] = BASE  # its sha256 stays and says which weights
        elif made.base is not None and "path" in who:
            who = {"path": made.base, "revision": made.config.backbone.revision or ""}
        compressor = load_compressor(
            path, identity=origin.identity, layer=origin.layer, hidden_size=origin.hidden_size
        )
        save_compressor(target / path.name, compressor, replace(origin, identity=who))


def evaluations(folder: Path, chosen: Path, newest: bool) -> tuple[tuple[Report, ...], tuple[str, ...]]:
    """What RUN/eval/rows.json says of this checkpoint, and what the user should know about it."""
    file = folder / "eval" / "rows.json"
    if not file.is_file():
        return (), ("no evaluation yet; quiet eval makes one, push again for its figures",)
    if not newest:
        return (), (
            f"{file.name} is of the newest checkpoint, not of {chosen.name}; its figures stay behind",
        )
    try:
        reports = [_nameless(report) for report in load(file)]
    except UserError as error:
        return (), (str(error),)
    older = file.stat().st_mtime < (chosen / checkpoint.MANIFEST).stat().st_mtime
    note = f"{file.name} was written before {chosen.name}: if training went on since, run quiet eval again"
    return tuple(reports), ((note,) if older else ())


def _nameless(report: Report) -> Report:
    """Without the folders of its baselines."""
    names = [Path(name).name for name in report.settings.get("baselines", ())]
    return replace(report, settings=report.settings | {"baselines": names})


def write_report(folder: Path, draft: Path) -> None:
    """The page of the run, made anew from what is sent; the log gives its curves."""
    from quietreasoning.report.build import page  # brings matplotlib
    from quietreasoning.report.runs import read_run

    sent = read_run(draft)
    run = replace(sent, path=Path(folder.name), log=read_run(folder).log, absent={}, faults=())
    (draft / "report.html").write_text(page([run]), encoding="utf-8")


def _copy(source: Path, target: Path, pattern: str, cure: str) -> None:
    files = [
        path for path in sorted(source.glob(pattern)) if path.is_file() and not path.name.startswith(".")
    ]
    if not files:
        raise UserError(f"{source} is not there, or empty; {cure}")
    target.mkdir()
    for path in files:
        shutil.copyfile(path, target / path.name)
