"""Targets by the key of their row, read from mapped files: only the slices asked for enter memory.

Shapes: B rows of T tokens, N learned positions of all rows together, K kept entries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from quietreasoning.config import UserError
from quietreasoning.data.made import content_hash
from quietreasoning.data.teacher_cache.header import AGAIN, CACHE, check_reader
from quietreasoning.data.teacher_cache.keys import KEY_BYTES, row_key, row_keys
from quietreasoning.data.teacher_cache.shards import Line, damaged, is_whole, read_index


class Taught(NamedTuple):
    """What the teacher says at N positions, at the temperature the cache was opened for.

    A position's kept probabilities and its tail add up to 1. Where ids were drawn, K is their number, an id
    stands as often as it was drawn, each has the share 1 / K, and there is no tail.
    """

    ids_NK: Tensor  # int64, the likeliest first; -1 where a position keeps fewer than K
    logps_NK: Tensor  # float32, in nats; -inf where a position keeps fewer than K
    tail_N: Tensor  # float32: the probability of all that is not kept


class TeacherCache:
    """A captured teacher. A file is checked against its SHA-256 before anything of it is given out.

    settings: what it was made with, as the header has it. about: the teacher's path then, and of the data.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], about: dict[str, Any], temperature: float):
        self.folder, self.settings, self.about, self.temperature = folder, settings, about, temperature
        self._lines = self._complete()
        self._files: dict[int, dict[str, Any]] = {}  # arrays that are still on disk, by their names
        names, shards, places = [], [], []
        for number, line in self._lines.items():
            names.append(self._names(line))
            shards.append(np.full(line["rows"], number))
            places.append(np.arange(line["rows"]))
        keys = np.concatenate(names).view(f"S{KEY_BYTES}")[:, 0]
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._shards, self._places = np.concatenate(shards)[order], np.concatenate(places)[order]

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        tokenizer: PreTrainedTokenizerFast,
        temperature: float = 1.0,
        table: int | None = None,
    ) -> TeacherCache:
        """The cache of a folder, for a reader with this tokenizer and its chat template.

        table: how many rows the reader's own embedding has; it may have more than there are tokens.
        UserError where format, tokenizer, chat template or vocabulary are others, the temperature was not
        captured, or a shard is missing or damaged.
        """
        folder = Path(folder)
        header = CACHE.read(folder)
        settings = header["settings"]
        check_reader(folder, settings, tokenizer, temperature)
        if table is not None and table < settings["vocabulary"]:
            raise UserError(
                f"{folder}: vocabulary is {settings['vocabulary']} in its header, and the model at hand has "
                f"rows for {table}. Give a model of that tokenizer, or {AGAIN}."
            )
        return cls(folder, settings, header["about"], temperature)

    @property
    def identity(self) -> dict[str, str]:
        """Of the teacher: `path` and `revision`, where it stood then, and `sha256` of its weights."""
        return dict(self.about["teacher"]) | dict(self.settings["teacher"])

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return self._find(key) is not None

    def look_up(self, ids_BT: Tensor, learned_BT: Tensor) -> Taught:
        """`rows` of a batch: ids padded with IGNORE, and where the next token is learned (see `keys`)."""
        return self.rows(row_keys(ids_BT, learned_BT))

    def rows(self, keys: Sequence[bytes]) -> Taught:
        """The targets of rows, one row after another, each in the order of its learned positions.

        keys: as `row_key` gives them. UserError for a row that the teacher did not read, or a damaged shard.
        """
        parts = [self._row(key) for key in keys]
        ids, logps, counts, rest = (np.concatenate([part[i] for part in parts]) for i in range(4))
        if self.settings["keep"]["draws"] is not None:
            return self._drawn(ids, logps)
        kept_NK = torch.from_numpy(np.arange(counts.max()) < counts[:, None])
        ids_NK = torch.full(kept_NK.shape, -1)
        ids_NK[kept_NK] = torch.from_numpy(ids.astype(np.int64))
        logps_NK = torch.full(kept_NK.shape, -torch.inf)
        logps_NK[kept_NK] = torch.from_numpy(logps.astype(np.float32))
        column = self.settings["keep"]["temperatures"].index(self.temperature)
        rest_N = torch.from_numpy(rest[:, column].astype(np.float32))
        logps_NK = logps_NK / self.temperature
        whole_N = torch.logaddexp(logps_NK.logsumexp(-1), rest_N)
        return Taught(ids_NK, logps_NK - whole_N[:, None], (rest_N - whole_N).exp())

    def _drawn(self, ids: np.ndarray, logps: np.ndarray) -> Taught:
        """Each id as often as it was drawn: exactly so, though float16 has rounded its share."""
        draws = self.settings["keep"]["draws"]
        times = np.rint(np.exp(logps.astype(np.float32)) * draws).astype(np.int64)
        ids_NK = torch.from_numpy(np.repeat(ids.astype(np.int64), times).reshape(-1, draws))
        return Taught(ids_NK, torch.full(ids_NK.shape, -math.log(draws)), torch.zeros(len(ids_NK)))

    def _complete(self) -> dict[int, Line]:
        """Lines of all shards in order; UserError where one is missing or cut off."""
        lines = read_index(self.folder)
        data, per_shard = self.settings["data"], self.settings["rows_per_shard"]
        wanted = range(-(-data["rows"] // per_shard))
        missing = [number for number in wanted if number not in lines]
        if missing:
            raise UserError(
                f"{self.folder} is not finished: {len(missing)} of its {len(wanted)} shards are missing, the "
                f"first is shard {missing[0]}. Run the same quiet data teacher command to its end."
            )
        for number in wanted:
            if not is_whole(self.folder, lines[number]):
                raise damaged(self.folder / lines[number]["file"])
        return {number: lines[number] for number in wanted}

    def _names(self, line: Line) -> np.ndarray:
        """Keys of a shard's rows [R, 16]; UserError where it was not made with these settings."""
        path = self.folder / line["file"]
        try:
            with safe_open(path, "numpy") as file:
                made, keys = file.metadata()["settings"], file.get_tensor("keys")
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise damaged(path) from error
        if made != content_hash(self.settings):
            raise UserError(
                f"shard {path} was made with other settings than the header of {self.folder} says (settings "
                f"{content_hash(self.settings)}, the shard {made}). Take a copy of the header, or {AGAIN}."
            )
        if keys.shape != (line["rows"], KEY_BYTES):
            raise damaged(path)
        return keys

    def _find(self, key: bytes) -> int | None:
        name = np.frombuffer(key, f"S{KEY_BYTES}")[0]
        at = int(np.searchsorted(self._keys, name))
        return at if at < len(self._keys) and self._keys[at] == name else None

    def _row(self, key: bytes) -> tuple[np.ndarray, ...]:
        """ids [E], logps [E], counts [P] and rest [P, T] of one row."""
        at = self._find(key)
        if at is None:
            for number in self._lines:  # perhaps it was here, and its key is what is damaged
                self._open(number)
            raise UserError(
                f"{self.folder}: row {key.hex()} is not among the {len(self)} that the teacher read: its "
                "tokens or its learned positions are others. Train on the data and the format that were "
                f"captured (see about and settings.data in its header), or {AGAIN}."
            )
        number, place = int(self._shards[at]), int(self._places[at])
        arrays = self._open(number)
        (first, entry), (last, end) = arrays["begins"][place : place + 2].tolist()
        if arrays["keys"][place].tobytes() != key:
            raise damaged(self.folder / self._lines[number]["file"])
        if "counts" in arrays:
            counts = arrays["counts"][first:last].astype(np.int64)
        else:
            counts = np.full(last - first, (end - entry) // (last - first))
        return arrays["ids"][entry:end], arrays["logps"][entry:end], counts, arrays["rest"][first:last]

    def _open(self, number: int) -> dict[str, Any]:
        """The arrays of a shard, mapped and not read, once its hash has been checked."""
        if number not in self._files:
            line = self._lines[number]
            path = self.folder / line["file"]
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != line["sha256"]:
                    raise damaged(path)
                file = safe_open(path, "numpy")
                self._files[number] = {name: file.get_slice(name) for name in file.keys()}
            except (OSError, SafetensorError) as error:
                raise damaged(path) from error
        return self._files[number]


__all__ = ["Taught", "TeacherCache", "row_key", "row_keys"]
