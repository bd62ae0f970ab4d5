"""A compressor on disk: one safetensors file whose JSON header says to which states it belongs.

It fits one layer of one model as a key fits a lock, and any other of the same width without a sound. So the
header names both, and reading states what is expected of it. The file is written beside and renamed: it is
there whole or not at all; a SHA-256 of the tensors stands in the header.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quietreasoning.backbone.states import Layer
from quietreasoning.config import UserError
from quietreasoning.nn.compressor import Compressor

FORMAT = 1
HEADER = "compressor"  # its key in the file's metadata


@dataclass(frozen=True)
class Origin:
    """Of which states a compressor was made, and how."""

    identity: Mapping[str, str]  # of the model, as `Backbone.identity`: path, revision, sha256
    layer: Layer
    hidden_size: int
    centred: bool
    tokens: int  # states that were counted
    kind: str = "pca"  # pca, metric, regression or tied: what was solved
    skipped: int = 0  # first positions of each row that were not counted


def save_compressor(path: Path, compressor: Compressor, origin: Origin) -> Path:
    """Write `path`, replacing what stands there; UserError if the disk refuses, and then nothing changed."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in compressor.state_dict().items()}
    # the same tensor twice is refused by safetensors
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    header = asdict(origin) | {
        "format": FORMAT,
        "identity": dict(origin.identity),
        "width": compressor.width,
        "sha256": _digest(tensors),
    }
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {HEADER: json.dumps(header)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UserError(
            f"compressor {path} could not be written: {reason}. Free some space, or give another path."
        ) from error
    return path


def read_origin(path: Path) -> Origin:
    """The header alone."""
    return _origin(_open(path)[0])


def load_compressor(
    path: Path,
    *,
    identity: Mapping[str, str],
    layer: Layer,
    hidden_size: int,
    width: int | None = None,
) -> Compressor:
    """The compressor of this layer of this model, sliced to `width`, on the CPU.

    identity: of the model at hand, as `Backbone.identity`. Raises UserError where the file is no compressor,
    is damaged, or belongs to another model, revision, layer or width; all of its faults are named at once.
    """
    header, tensors = _open(path)
    origin, held = _origin(header), header["width"]
    wrong = []
    if other := _other_model(origin.identity, identity):
        wrong.append(other)
    if origin.layer != layer:
        wrong.append(f"layer {origin.layer!r}, not {layer!r}")
    if origin.hidden_size != hidden_size:
        wrong.append(f"states of width {origin.hidden_size}, not {hidden_size}")
    if wrong:
        raise UserError(
            f"compressor {path} was made of {'; '.join(wrong)}. Make one of these states, or read those it "
            "was made of."
        )
    if width is not None and not 1 <= width <= held:
        raise UserError(
            f"compressor {path} holds {held} directions, width={width} was asked for. Choose 1 to {held}, or "
            "make a wider one."
        )
    if _digest(tensors) != header["sha256"]:
        raise UserError(f"compressor {path} has changed since it was written. Make it again.")
    try:
        compressor = Compressor(**tensors)
    except (TypeError, ValueError) as error:
        raise _damaged(path) from error
    return compressor if width is None else compressor.sliced(width)


def _other_model(made: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """How the models differ, or None; equal weights are the same model wherever their folder stands."""
    if made.get("sha256") and wanted.get("sha256"):
        if made["sha256"] == wanted["sha256"]:
            return None
        return f"model {_named(made)}, whose weights are not those of {_named(wanted)}"
    named = [{key: text for key, text in who.items() if key != "revision"} for who in (made, wanted)]
    revisions = {made.get("revision"), wanted.get("revision")} - {
        "",
        None,
    }  # of one there is nothing to compare
    if named[0] == named[1] and len(revisions) < 2:
        return None
    return f"model {_named(made)}, not {_named(wanted)}"


def _named(identity: Mapping[str, str]) -> str:
    name = identity.get("path") or " ".join(identity.values()) or "without a name"
    return f"{name}@{identity['revision']}" if identity.get("revision") else name


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            if header is None:
                raise UserError(
                    f"{path} is no compressor: its header has no {HEADER!r}. Give a compressor file."
                )
            if header["format"] != FORMAT:
                raise UserError(
                    f"compressor {path} has format {header['format']}; it must be {FORMAT}. Make it anew."
                )
            _origin(header), header["width"], header["sha256"]  # all there, or KeyError
            return header, {name: file.get_tensor(name) for name in file.keys()}
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"compressor {path}: there is no such file. Make one, or give its path.") from error
    except UserError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error


def _origin(header: Mapping[str, Any]) -> Origin:
    return Origin(**{name: header[name] for name in Origin.__dataclass_fields__})


def _damaged(path: Path) -> UserError:
    return UserError(
        f"compressor {path} cannot be read: it is no safetensors, or damaged. Pickled files (.pt) are not "
        "loaded. Make it again, or take a copy."
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
