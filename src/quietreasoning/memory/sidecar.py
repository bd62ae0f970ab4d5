"""The JSON file beside an index or an array: what it holds, and the hash it must have before it is read.

    knn.index        the file
    knn.index.json   its sidecar: kind, format, SHA-256, bytes, dim, metric, counts, what made it

faiss reads a file with flipped bytes, or with absurd counts in its header, without a word, so nothing is
given to it that its sidecar does not vouch for. The one path that a sidecar names, of the keys of an index,
is read by what checks an index. A hash keeps out damage and mix-ups, not someone who writes both files.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.disk import make_folder, sync

FORMAT = 1
MAX_BYTES = 1 << 16  # of a sidecar
MAX_COUNT = 1 << 48  # of bytes or entries; more is no file of ours
MAX_DIM = 1 << 17
METRICS = ("l2", "ip", "none")  # l2: squared, as faiss gives it; ip: inner product; none: not compared
_FIELDS = ("format", "file", "kind", "sha256", "bytes", "dim", "metric", "counts", "made_by")


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says of its file."""

    kind: str  # "knn-index"
    sha256: str
    bytes: int
    dim: int  # width of a vector
    metric: str
    counts: dict[str, int]  # "entries" and whatever else can be counted
    made_by: dict[str, Any] = field(default_factory=dict)  # JSON: command, settings, model

    def agree(self, path: Path, again: str, *, entries: int, dim: int, metric: str | None = None) -> None:
        """UserError where what was read of `path` is not what the sidecar said before."""
        found = {"entries": entries, "dim": dim, "metric": metric or self.metric}
        said = {"entries": self.counts.get("entries"), "dim": self.dim, "metric": self.metric}
        for name, value in found.items():
            if value != said[name]:
                raise UserError(f"{path}: its {name} is {value}, its sidecar says {said[name]}; {again}")


def sidecar_of(path: Path) -> Path:
    """Where the sidecar of a file stands: `knn.index` -> `knn.index.json`."""
    return path.with_name(f"{path.name}.json")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to: synced and renamed at the end, removed after a failure.

    One writer at a time: whoever may have company takes a lock first. UserError where the disk refuses.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    make_folder(path.parent)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} could not be written: {error.strerror or error}. What stood there is as it was: make "
            "room, or give another path, and run the same command again."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def seal(
    path: Path,
    *,
    kind: str,
    dim: int,
    metric: str,
    counts: Mapping[str, int],
    made_by: Mapping[str, Any] | None = None,
) -> Sidecar:
    """Write the sidecar of a file that is whole and on disk; what it says.

    Where a file is replaced and the process dies before this, the old sidecar refuses the new file.
    ValueError where the content is none that `check` would take.
    """
    sidecar = Sidecar(
        kind, hash_of(path), path.stat().st_size, dim, metric, dict(counts), dict(made_by or {})
    )
    body = {"format": FORMAT, "file": path.name} | asdict(sidecar)
    text = json.dumps(body, indent=1, allow_nan=False) + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(f"a sidecar of {len(text.encode())} bytes; at most {MAX_BYTES} are read")
    if wrong := _wrong(json.loads(text), path.name):
        raise ValueError(f"sidecar of {path}: {wrong}")
    with replacing(sidecar_of(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return sidecar


def check(path: Path, *, kind: str, again: str, dim: int | None = None, metric: str | None = None) -> Sidecar:
    """The sidecar of a file, once the file's size and SHA-256 are what it says.

    again: the cure, "build it anew with quiet index knn". UserError for a sidecar that is missing, too large,
    unreadable, of another format, kind, dim or metric or of another file, and for a file that is missing,
    cut off or damaged.
    """
    sidecar = read(path, again)
    for name, wanted in {"kind": kind, "dim": dim, "metric": metric}.items():
        found = getattr(sidecar, name)
        if wanted is not None and found != wanted:
            raise UserError(
                f"{path}: {name} is {found} in its sidecar, and {wanted} is needed. Give one that fits, or "
                f"{again}."
            )
    size = _regular(path, again).st_size
    if size != sidecar.bytes:
        raise UserError(
            f"{path} is cut off or replaced: it has {size} bytes, its sidecar says {sidecar.bytes}. Take a "
            f"copy, or {again}."
        )
    if hash_of(path) != sidecar.sha256:
        raise UserError(
            f"{path} is damaged: its SHA-256 is not the one in its sidecar. Take a copy, or {again}."
        )
    return sidecar


def read(path: Path, again: str) -> Sidecar:
    """What the sidecar of `path` says; the file itself is not looked at. UserError as `check` has it."""
    beside = sidecar_of(path)
    size = _regular(beside, again).st_size
    if size > MAX_BYTES:
        raise UserError(
            f"{beside} has {size} bytes, and a sidecar at most {MAX_BYTES}: it is none. {_cure(again)}"
        )
    try:
        body = json.loads(
            beside.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"{beside} is no sidecar: it cannot be read as JSON. {_cure(again)}") from error
    except OSError as error:
        raise UserError(f"{beside} cannot be read: {error.strerror or error}. {_cure(again)}") from error
    if wrong := _wrong(body, path.name):
        raise UserError(f"{beside}: {wrong}. {_cure(again)}")
    return Sidecar(**{name: body[name] for name in _FIELDS[2:]})


def hash_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _regular(path: Path, again: str) -> os.stat_result:
    """Its facts; UserError where it is missing or a folder, a pipe or a device."""
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise UserError(f"{path} is missing or cannot be reached. {_cure(again)}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path} is no regular file. {_cure(again)}")
    return facts


def _cure(again: str) -> str:
    return f"Put the right one back, or {again}."


def _wrong(body: Any, name: str) -> str:
    """What is wrong with the content of a sidecar of a file called `name`; empty where nothing is."""
    if not isinstance(body, dict) or set(body) != set(_FIELDS):
        if isinstance(body, dict) and isinstance(body.get("format"), int) and body["format"] != FORMAT:
            return f"format is {body['format']}, and this version reads {FORMAT}"
        return f"it must have the fields {', '.join(_FIELDS)} and no others"
    counts, sha256 = body["counts"], body["sha256"]
    is_hash = isinstance(sha256, str) and len(sha256) == 64 and not set(sha256) - set("0123456789abcdef")
    right = {
        "format": _whole(body["format"], FORMAT, FORMAT),
        "file": body["file"] == name,
        "kind": isinstance(body["kind"], str) and 0 < len(body["kind"]) <= 64,
        "sha256": is_hash,
        "bytes": _whole(body["bytes"], 0, MAX_COUNT),
        "dim": _whole(body["dim"], 1, MAX_DIM),
        "metric": isinstance(body["metric"], str) and body["metric"] in METRICS,
        "counts": isinstance(counts, dict) and all(_whole(n, 0, MAX_COUNT) for n in counts.values()),
        "made_by": isinstance(body["made_by"], dict),
    }
    bad = next((field for field, fine in right.items() if not fine), None)
    return "" if bad is None else f"{bad} is {body[bad]!r:.60}, which cannot be"


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a name stands twice, for readers differ on which of them counts."""
    body = dict(pairs)
    if len(body) < len(pairs):
        raise ValueError("a name stands twice")
    return body


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
