"""What makes a file last, who may write, and what names a folder that is not there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quietreasoning.config import UserError


def sync(path: Path) -> None:
    """A file, or the names in a folder, onto the disk: a new name is there once its folder is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The one writer of a folder, which is made; the lock dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
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
