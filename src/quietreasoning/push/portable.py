"""A run's settings as another machine can read them: names beside `config.yaml` or on the hub, no folders of
this one.

Where a model lies in a local folder, what is sent follows what a checkpoint holds: weights that it borrows
stay behind unless asked for; of a model whose weights it holds, the shape goes along.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from quietreasoning.config import UserError
from quietreasoning.run_config import RunConfig
from quietreasoning.track import TrackConfig
from quietreasoning.validation import validate

TOKENIZER, COMPRESSOR, BASE, TEACHER = "tokenizer", "compressor", "base", "teacher"


@dataclass(frozen=True)
class LocalModel:
    """A model folder of this machine that the settings name."""

    key: str  # the setting
    folder: Path
    name: str  # its folder in the pushed run
    sent: Literal["shape", "whole", "nothing"]


@dataclass(frozen=True)
class Portable:
    """What goes into a pushed run beside the checkpoint."""

    config: RunConfig
    models: tuple[LocalModel, ...]
    compressors: Path | None  # a folder with one file a layer
    base: str | None  # hub id of the language model
    notes: tuple[str, ...]  # what the user should know, one line each


def portable(config: RunConfig, index: int, *, base: str | None = None, with_base: bool = False) -> Portable:
    """The settings to send with a checkpoint of stage `index`.

    base: hub id (or ID@REVISION) of the model that stands in a local folder here.
    with_base: send local model folders whole. UserError where neither has anything to say.
    """
    values = config.model_dump(mode="json")
    values |= {"out": None, "init": None, "track": TrackConfig().model_dump(mode="json")}
    values["eval"]["baselines"] = []
    method = values["stages"][index]["method"]
    compressors = Path(method["compressor"]) if method.get("compressor") else None
    models: list[LocalModel] = []
    for key, holder, field, name, held in named_models(values, index):
        if not is_local(holder[field]):
            continue
        if name == BASE and base is not None:
            holder[field], _, revision = base.partition("@")
            holder["revision"], base = revision or None, None
            _check_hub_id(holder[field])
            continue
        sent = "whole" if with_base else "shape" if held and compressors is None else "nothing"
        models.append(LocalModel(key, Path(holder[field]), name, sent))
        holder[field], holder["revision"] = f"./{name}", None
    if base is not None:
        raise UserError(f"--base {base}: this run's model stands in no local folder; leave --base out")
    if with_base and not models:
        raise UserError("--with-base: no model of this run stands in a local folder; leave it out")
    for stage in values["stages"]:
        tokenizer = stage["data"]["tokenizer"]
        if tokenizer["path"] and is_local(tokenizer["path"]):
            tokenizer |= {"path": f"./{TOKENIZER}", "revision": None}
        if compressors is not None and stage["method"].get("compressor"):
            stage["method"]["compressor"] = f"./{COMPRESSOR}"
    data = values["stages"][-1]["data"]["path"]
    notes = [_note(model) for model in models if model.sent == "nothing"]
    if data:
        notes.append(
            f"the examples ({Path(data).name}) are not included: quiet eval needs data.path=FILE elsewhere"
        )
    shortened = validate(RunConfig, _without_folders(values))
    return Portable(shortened, tuple(models), compressors, hub_base(shortened), tuple(notes))


def named_models(values: dict[str, Any], index: int) -> Iterator[tuple[str, dict[str, Any], str, str, bool]]:
    """(setting, the mapping it stands in, its name there, folder name when sent, whether the checkpoint holds
    its weights) of each model that opening stage `index` reads."""
    backbone = values["backbone"]
    if backbone["workspace"] and backbone["workspace"]["trunk"]:
        yield "backbone.workspace.trunk", backbone["workspace"], "trunk", BASE, True
    elif backbone["path"]:
        yield "backbone.path", backbone, "path", BASE, backbone["tune"] == "full"
    teacher = values["stages"][index]["method"].get("teacher")
    if teacher:
        yield "method.teacher.path", teacher, "path", TEACHER, False


def is_local(name: str) -> bool:
    """Whether a model is a folder or file here, or no hub id at all."""
    if Path(name).expanduser().exists():
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return False


def hub_base(config: RunConfig) -> str | None:
    """Hub id of the language model under a run; None where it has none."""
    backbone = config.backbone
    name = backbone.workspace.trunk if backbone.workspace is not None else backbone.path
    return name if name is not None and not name.startswith("./") else None


def _check_hub_id(name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"--base {name}: no hub id. Give OWNER/NAME or OWNER/NAME@REVISION. {error}"
        ) from None


def _note(model: LocalModel) -> str:
    return (
        f"{model.key} is the local folder {model.folder.name}, whose weights are not included: push again "
        f"with --base HUB_ID or --with-base, else that model must be put into {model.name}/ to open the run"
    )


def _without_folders(value: Any) -> Any:
    """File names of this machine, cut to their last part."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        path = Path(value)
        inside = len(path.parts) > 2 and os.path.exists(path.parent)  # what was deleted since
        if path.name and (inside or os.path.exists(path)):
            return path.name
    return value
