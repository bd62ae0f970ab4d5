"""Keys and values of kNN-LM, taken from a model's reading of token rows, in shards on disk.

    datastore.json      what all was made with; written once
    keys-00003.npy      float32 [n, D]: what the last feed-forward layer reads at position t
    values-00003.npy    int32 [n]: the token at t + 1

Shard 3 holds the entries of rows 3 S to 4 S, whole rows, in their order. Each file has a sidecar, and a shard
counts once that of its values stands there, which comes last. Which rows are read together depends on the
rows alone, so that a shard that a kill took is made again to the same bytes. Nothing is left out for being
there twice: an entry's count is its weight.

Shapes: N entries, n of a shard, D width, T tokens of a row, B rows read together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quietreasoning.config import UserError
from quietreasoning.disk import alone
from quietreasoning.layers import diff
from quietreasoning.memory.arrays import KEYS, VALUES
from quietreasoning.memory.ffn_input import LAYER, read_ffn
from quietreasoning.memory.knn_index import Show, quiet
from quietreasoning.memory.sidecar import read, replacing, seal, sidecar_of

HEADER = "datastore.json"
FORMAT = 1
AGAIN = "make the datastore anew, in another folder"
Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Source:
    """Whose states a key is made of, and what its value means."""

    model_sha256: str
    tokenizer_sha256: str
    dim: int
    vocabulary: int  # one more than the largest id
    layer: str = LAYER

    def check(self, said: Any, where: str) -> None:
        """UserError where a file was made of another model, tokenizer or layer."""
        said = said if isinstance(said, Mapping) else {}
        for name, own in asdict(self).items():
            if said.get(name) != own:
                raise UserError(
                    f"{where}: {name} is {_short(said.get(name))} in it, and {_short(own)} of the model at "
                    "hand. Give the model and tokenizer it was made of, or build keys and index anew."
                )


@dataclass(frozen=True)
class Size:
    """How the work is cut; part of the settings, for it moves rounding."""

    rows_per_shard: int = 256
    batch_size: int = 8


def build_datastore(
    model: nn.Module,
    rows: Sequence[Ids],
    folder: Path,
    source: Source,
    *,
    size: Size | None = None,
    show: Show = quiet,
) -> dict[str, int]:
    """Write the shards that are missing; counts of rows, entries and rows too short to have one.

    rows: token ids of each, [T], as the model shall read them. The same call goes on where it ended, whatever
    ended it. UserError where the folder was made with other settings, and for ids that the model has not.
    """
    size = size or Size()
    _refuse(rows, source)
    settings = asdict(source) | asdict(size) | {"rows": len(rows), "rows_sha256": _fingerprint(rows)}
    model.eval()
    with alone(folder):
        _settle(folder, settings)
        for shard, first in enumerate(range(0, len(rows), size.rows_per_shard)):
            part = rows[first : first + size.rows_per_shard]
            if not _closed(folder, shard):
                _write(folder, shard, *_entries(model, part, size.batch_size, source.dim), source)
            show("rows read", first + len(part), len(rows))
    short = sum(len(row) < 2 for row in rows)
    return {
        "rows": len(rows),
        "entries": sum(max(len(row) - 1, 0) for row in rows),
        "rows_without_entry": short,
    }


def source_in(folder: Path) -> dict[str, Any]:
    """The settings of a datastore that is whole; UserError for one that is damaged or not finished."""
    settings = _read(folder)
    shards = range(-(-settings["rows"] // settings["rows_per_shard"]))
    missing = [shard for shard in shards if not _closed(folder, shard)]
    if missing:
        raise UserError(
            f"{folder} is not finished: {len(missing)} of {len(shards)} shards are missing, the first is "
            f"shard {missing[0]}. Run what made it once more, to its end."
        )
    return settings


def _refuse(rows: Sequence[Ids], source: Source) -> None:
    if not any(len(row) > 1 for row in rows):
        raise UserError("no row has two tokens, so there is no next token to learn; give longer texts")
    for number, row in enumerate(rows):
        if len(row) and not 0 <= int(row.min()) <= int(row.max()) < source.vocabulary:
            raise UserError(
                f"row {number} has ids from {row.min()} to {row.max()}, and the model knows 0 to "
                f"{source.vocabulary - 1}. Encode the texts with its own tokenizer."
            )


def _entries(model: nn.Module, rows: Sequence[Ids], batch_size: int, dim: int) -> tuple[NDArray, NDArray]:
    """Keys [n, D] and values [n] of rows, in their order.

    Rows of one length are read together and none is padded: a key is what its row alone would give, but for
    rounding, in any family.
    """
    device = next(model.parameters()).device
    lengths = np.array([len(row) for row in rows])
    keys: dict[int, NDArray] = {}
    for length in np.unique(lengths[lengths > 1]):
        alike = np.flatnonzero(lengths == length)
        for at in range(0, len(alike), batch_size):
            batch = alike[at : at + batch_size]
            ids_BT = torch.from_numpy(np.stack([rows[i] for i in batch]).astype(np.int64)).to(device)
            states_BTD = read_ffn(model, ids_BT).numpy()
            keys |= {int(i): states_TD[:-1] for i, states_TD in zip(batch, states_BTD, strict=True)}
    values = [row[1:] for row in rows if len(row) > 1]
    if not values:
        return np.zeros((0, dim), np.float32), np.zeros(0, np.int32)
    return (
        np.concatenate([keys[i] for i in sorted(keys)]).astype(np.float32),
        np.concatenate(values).astype(np.int32),
    )


def _write(folder: Path, shard: int, keys_nD: NDArray, values_n: NDArray, source: Source) -> None:
    if not np.isfinite(keys_nD).all():
        raise UserError(
            f"shard {shard}: the model's states hold what is no finite number; read it in float32"
        )
    for kind, array, metric in ((KEYS, keys_nD, "l2"), (VALUES, values_n, "none")):
        path = _file(folder, kind, shard)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        about = {"made_by": "datastore", "source": asdict(source)}
        counts = {"entries": len(array)}
        seal(path, kind=kind, dim=keys_nD.shape[1], metric=metric, counts=counts, made_by=about)


def _closed(folder: Path, shard: int) -> bool:
    """Whether both files stand there as long as their sidecars say; hashes are for whoever reads them."""
    for kind in (VALUES, KEYS):
        path = _file(folder, kind, shard)
        if not path.exists() or not sidecar_of(path).exists():
            return False
        if read(path, AGAIN).bytes != path.stat().st_size:
            return False
    return True


def _file(folder: Path, kind: str, shard: int) -> Path:
    return folder / f"{kind.removeprefix('knn-')}-{shard:05d}.npy"


def _settle(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / HEADER
    if not path.exists():
        if any(folder.glob("*.npy")):
            raise UserError(f"{folder} holds arrays without {HEADER}. Put it back, or give another folder.")
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "settings": settings}, indent=1) + "\n")
    if changes := diff(_read(folder), settings):
        raise UserError(
            f"{folder} was made with other settings: {'; '.join(changes)}. Take those, or {AGAIN}."
        )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] == FORMAT and min(body["settings"]["rows"], body["settings"]["rows_per_shard"]) > 0:
            return dict(body["settings"])
    except FileNotFoundError:
        raise UserError(f"{folder} is no datastore: it has no {HEADER}. Give a folder that has.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged. Take a copy, or {AGAIN}.") from error
    raise UserError(f"{path} is of another format, or damaged; {AGAIN}")


def _fingerprint(rows: Sequence[Ids]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + np.asarray(row).astype("<u4").tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    return f"{value:.12}" if isinstance(value, str) else repr(value)[:40]
