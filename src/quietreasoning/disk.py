"""What makes a file last, who may write, and what names a folder that is not there or cannot be."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quietreasoning.config import UserError

MADE_BY = {  # folders that shipped recipes read -> the recipe and the run that they are exported from
    "runs/teacher": ("distill/teacher-tiny", "runs/distill-teacher-tiny-0"),
    "runs/student": ("distill/kd-tiny", "runs/distill-kd-tiny-0"),
}


def sync(path: Path) -> None:
    """A file, or the names in a folder, onto the disk: a new name is there once its folder is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_file(folder: Path) -> None:
    """UserError where a file stands in the place of a folder or of one above it."""
    for there in (folder, *folder.absolute().parents):
        if os.path.lexists(there) and not os.path.isdir(there):
            above = "" if there == folder else f"{folder}: "
            raise UserError(f"{above}{there} is a file; name a folder")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it is not there; UserError where that cannot be."""
    refuse_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}. Name another folder") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The one writer of a folder, which is made; the lock dies with its process."""
    make_folder(folder)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another process writes here. Wait for it, or give another.") from None
        yield


def missing_run(path: str) -> bool:
    """Whether a path lies in runs/, where everything trained here goes, and is not there.

    `runs/teacher` has the shape of a hub id, which would be looked for in the network.
    """
    return Path(path).parts[:1] == ("runs",) and not Path(path).exists()


def no_folder(path: str, error: Exception | None = None) -> str | None:
    """What to say where there is no folder of a model or tokenizer; None where there is one.

    error: of the hub, where a name that may be an id (`owner/name`, or an old one such as `gpt2`) was looked
    for there too.
    """
    if Path(path).exists():
        return None
    if made := MADE_BY.get(os.path.normpath(path)):
        return f"no such folder. Make it: quiet train {made[0]} ; quiet export {made[1]} {path}"
    if error is None or "Repo id must" in str(error):
        return "no such folder. Give a folder written by save_pretrained or quiet export, or a hub id"
    return f"no folder {path} here, and {path} was not found on the hub: {whole_sentences(error)}"


def whole_sentences(error: Exception, most: int = 300) -> str:
    """What another library said, on one line: its first sentences, as many as fit; the first in any case."""
    first, *more = re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(str(error).split()))
    for sentence in more:
        if len(first) + len(sentence) >= most:
            break
        first += f" {sentence}"
    return first.rstrip(".")
