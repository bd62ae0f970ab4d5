"""The tensors of a folder of pairs: writing a shard, reading states by the name of their rollout.

Shapes: L positions of a prompt, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quietreasoning.config import UserError
from quietreasoning.data.made import content_hash, put, refused_by_disk, temporary_name
from quietreasoning.data.pairs.folder import FORMAT, PAIRS, Row, damaged, kept_rows, read_shard


@dataclass(frozen=True)
class Rollout:
    """What is written down of one rollout. `states` is empty unless it is kept."""

    row: Row
    states: Mapping[str, Tensor]  # "pre/<layer>" [L, D] and "post/<layer>" [D]


@contextmanager
def writing(folder: Path, rank: int, ranks: int) -> Iterator[None]:
    """Alone as this rank in this folder, without what a killed run left half-written: see `Made.alone`."""
    with PAIRS.alone(folder, rank, ranks):
        for path in folder.glob(f"shard-r{rank}of{ranks}-*.safetensors"):
            if not path.with_suffix(".json").exists():  # killed between the two renames
                path.unlink()
        yield


def write_shard(folder: Path, rollouts: Sequence[Rollout], rank: int, ranks: int) -> None:
    """Put these rollouts on disk, whole or not at all; UserError where the disk refuses."""
    rollouts = sorted(rollouts, key=lambda rollout: rollout.row["key"])
    tensors = {
        f"{rollout.row['key']}/{name}": state.contiguous()
        for rollout in rollouts
        for name, state in rollout.states.items()
    }
    room = folder / f"{temporary_name(rank, ranks)}shard"  # safetensors leaves a file of its own when killed
    temporary = room / "shard.safetensors"
    about: dict[str, Any] = {}
    try:
        if tensors:
            room.mkdir(exist_ok=True)
            save_file(tensors, temporary)
            with temporary.open("rb") as file:
                about = {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
                about["bytes"] = file.seek(0, os.SEEK_END)
                os.fsync(file.fileno())
        body = {"format": FORMAT, "tensors": about, "rows": [rollout.row for rollout in rollouts]}
        path = folder / f"shard-r{rank}of{ranks}-{content_hash(body)}.json"
        if tensors:
            temporary.replace(path.with_suffix(".safetensors"))
            room.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(room, ignore_errors=True)
        raise refused_by_disk(folder / "shard", error) from error
    put(path, json.dumps(body, ensure_ascii=False, sort_keys=True) + "\n", rank, ranks)


class PairStates:
    """The states of kept rollouts by key. A file is checked against its SHA-256 when it is first read.

    rows: what is known of each, in the order of the keys: `key`, `id`, `split`, `problem`, `outcome`,
    `steps`, `num_thinking_tokens` and more. settings: with what they were made.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        identity: Mapping[str, str] | None = None,
        layers: Sequence[int | str] = (),
        split: str | None = None,
    ):
        """identity: of the model at hand, as `weights_identity` gives it; None asks for none. layers: those
        that will be read. UserError where the folder holds states of another model or not of these layers,
        nothing kept, or a damaged shard."""
        self.folder = Path(folder)
        config = PAIRS.read(self.folder)
        self.settings, self.about = config["settings"], config["about"]
        if identity is not None:
            check_model(self.folder, self.identity, identity)
        self.layers: tuple[int | str, ...] = tuple(self.settings["layers"])
        for layer in layers:
            self._check_layer(layer)
        self.rows = [row for row in kept_rows(self.folder) if split in (None, row["split"])]
        if not self.rows:
            raise UserError(f"{self.folder}: no rollout of split {split!r} was kept. Ask for more problems.")
        self._rows = {row["key"]: row for row in self.rows}
        self._files: dict[str, Any] = {}

    @property
    def identity(self) -> dict[str, str]:
        """Of the model that wrote the chains and was read: `path`, where it stood then, and `sha256`."""
        return dict(self.about["model"]) | dict(self.settings["model"])

    @property
    def hidden_size(self) -> int:
        return self.settings["hidden_size"]

    def __len__(self) -> int:
        return len(self.rows)

    def pre(self, key: str, layer: int | str) -> Tensor:
        """hidden_pre [L, D]: the prompt, up to the marker that opens the chain."""
        return self._read(key, "pre", layer)

    def post(self, key: str, layer: int | str) -> Tensor:
        """hidden_post [D]: at the marker that closes the chain, or just before the answer."""
        return self._read(key, "post", layer)

    def _check_layer(self, layer: int | str) -> None:
        if layer not in self.layers:
            held = ",".join(map(str, self.layers))
            raise UserError(
                f"{self.folder} holds states of layers {held}, not {layer}. Ask for one of these, or make "
                f"pairs with --layers {layer} in another folder."
            )

    def _read(self, key: str, kind: str, layer: int | str) -> Tensor:
        self._check_layer(layer)
        if key not in self._rows:
            raise KeyError(f"no kept rollout {key!r} in {self.folder}")
        shard = self._rows[key]["shard"]
        try:
            if shard not in self._files:
                self._files[shard] = self._open(shard)
            return self._files[shard].get_tensor(f"{key}/{kind}/{layer}")
        except (OSError, SafetensorError) as error:
            raise damaged(self.folder / f"{shard}.json") from error

    def _open(self, shard: str) -> Any:
        path = self.folder / f"{shard}.safetensors"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != read_shard(path.with_suffix(".json"))["tensors"]["sha256"]:
            raise damaged(path)
        return safe_open(path, "pt")


def check_model(folder: Path, made: Mapping[str, str], identity: Mapping[str, str]) -> None:
    """UserError where the pairs of `folder`, made by one model, are read by another."""
    if made.get("sha256") and identity.get("sha256"):
        same = made["sha256"] == identity["sha256"]
    else:  # of a hub id nobody loaded, the name and the revision are all there is
        revisions = {made.get("revision"), identity.get("revision")} - {None, ""}
        same = made.get("path") == identity.get("path") and len(revisions) < 2
    if not same:
        raise UserError(
            f"{folder} holds states of model {_name(made)}, not of {_name(identity)}: their weights differ. "
            "Open it with that model, or make pairs of this one in another folder."
        )


def _name(identity: Mapping[str, str]) -> str:
    named = identity.get("path") or identity.get("scratch") or "without a name"
    return f"{named} (sha256 {identity['sha256'][:12]})" if identity.get("sha256") else named


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
