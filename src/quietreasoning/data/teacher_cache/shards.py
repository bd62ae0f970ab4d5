"""The files of a teacher cache: writing a shard, listing what is there.

    teacher.json                      what all was made with; written once
    shard-00003-<sha256>.safetensors  rows 3*S to 4*S of the data, S rows a shard
    index-r0of1.jsonl                 a line for each shard that rank 0 of 1 has closed; only ever appended to

A shard gets its name when it is whole and on disk, and counts once its line stands in an index. So whatever
moment a capture is killed at, a shard is there whole or made again, to the same bytes. Which rows stand in
which shard depends on the data alone, not on ranks or interruptions.

Arrays of a shard (R rows, P positions, E entries): `keys` [R, 16]; `begins` [R+1, 2], the first position and
first entry of each row; `ids` [E] uint32; `logps` [E] float16; `rest` [P, T] float16, a column a temperature;
and where positions keep different numbers of entries, `counts` [P].
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from quietreasoning.config import UserError
from quietreasoning.data.made import content_hash, refused_by_disk, temporary_name
from quietreasoning.data.teacher_cache.header import CACHE
from quietreasoning.data.teacher_cache.keys import Row
from quietreasoning.data.teacher_cache.targets import Targets, joined
from quietreasoning.disk import sync

Line = dict[str, Any]


@contextmanager
def writing(folder: Path, rank: int, ranks: int) -> Iterator[None]:
    """Alone as this rank in this folder, and without what a killed capture left: see `Made.alone`."""
    with CACHE.alone(folder, rank, ranks):
        index = _index(folder, rank, ranks)
        if index.exists():
            text = index.read_bytes()
            os.truncate(index, text.rfind(b"\n") + 1)  # a line that was cut off
        yield


def write_shard(
    folder: Path,
    number: int,
    rows: Sequence[Row],
    targets: Sequence[Targets],
    settings: dict[str, Any],
    rank: int = 0,
    ranks: int = 1,
) -> Line:
    """Close shard `number`, whole or not at all, and list it; UserError where the disk refuses."""
    # in a folder of its own, since safetensors writes under yet another name first, which nobody would clear
    temporary = folder / f"{temporary_name(rank, ranks)}shard" / "shard.safetensors"
    arrays = _arrays(rows, targets, settings)
    try:
        temporary.parent.mkdir(exist_ok=True)
        save_file(arrays, temporary, metadata={"settings": content_hash(settings)})
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
            os.fsync(file.fileno())
        line = {
            "shard": number,
            "file": f"shard-{number:05d}-{sha256[:12]}.safetensors",
            "sha256": sha256,
            "bytes": size,
            "rows": len(rows),
            "positions": len(arrays["rest"]),
            "entries": len(arrays["ids"]),
            "mass": sum(part.mass for part in targets),
            "nll": sum(part.nll for part in targets),
        }
        temporary.replace(folder / line["file"])
        temporary.parent.rmdir()
        sync(folder)
        with _index(folder, rank, ranks).open("ab") as index:
            index.write((json.dumps(line | {"check": content_hash(line)}) + "\n").encode())
            index.flush()
            os.fsync(index.fileno())
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary.parent, ignore_errors=True)
        raise refused_by_disk(folder / "shard", error) from error
    return line


def _arrays(
    rows: Sequence[Row], targets: Sequence[Targets], settings: dict[str, Any]
) -> dict[str, np.ndarray]:
    whole = joined(targets)
    sizes = [(0, 0), *((len(part.counts), len(part.ids)) for part in targets)]
    arrays = {
        "keys": np.frombuffer(b"".join(row.key for row in rows), np.uint8).reshape(len(rows), -1),
        "begins": np.cumsum(np.array(sizes, np.int64), axis=0),
        "ids": whole.ids,
        "logps": whole.logps,
        "rest": whole.rest,
    }
    keep = settings["keep"]
    if keep["coverage"] is not None or keep["draws"] is not None:
        arrays["counts"] = whole.counts.astype(np.min_scalar_type(keep["draws"] or keep["k"]))
    return arrays


def _index(folder: Path, rank: int, ranks: int) -> Path:
    return folder / f"index-r{rank}of{ranks}.jsonl"


def read_index(folder: Path) -> dict[int, Line]:
    """The line of each closed shard whose file is there, by its number, whoever closed it.

    A last line that was cut off is no line. UserError for any other that is not what was written.
    """
    found: dict[int, Line] = {}
    for path in sorted(folder.glob("index-*.jsonl")):
        for text in path.read_bytes().split(b"\n")[:-1]:
            try:
                line = json.loads(text)
                sound = line.pop("check") == content_hash(line)
            except (ValueError, KeyError, AttributeError, TypeError):
                sound = False
            if not sound:
                raise UserError(
                    f"{path} is damaged: a line is not what was written. Delete it and run the same quiet "
                    "data teacher command: it makes what is missing again."
                )
            if (folder / line["file"]).exists():
                found[line["shard"]] = line
    return found


def is_whole(folder: Path, line: Line) -> bool:
    """Whether a shard's file has its size; its hash is checked where it is read."""
    return (folder / line["file"]).stat().st_size == line["bytes"]


def damaged(path: Path) -> UserError:
    return UserError(
        f"shard {path} is damaged: it is not what was written. Delete it and run the same quiet data teacher "
        "command: it makes what is missing again."
    )
