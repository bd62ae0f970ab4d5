"""A folder that a command makes, in several goes and by several ranks: its settings, and who writes there.

The settings are written once, by whoever comes first, and every later go must have the same. A rank is alone
in its folder, and a file has its name when it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.disk import make_folder
from quietreasoning.layers import diff

TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Made:
    """What a kind of folder is called, and the file that says with what it was made."""

    what: str  # "folder of pairs"
    command: str  # "quiet data pairs"
    file: str
    format: int
    again: str  # what to do where it cannot be read

    def settle(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        rank: int = 0,
        ranks: int = 1,
    ) -> dict[str, Any]:
        """Write the settings, or compare with those that stand there; UserError names what differs.

        about: what may change between goes (paths, sizes); the first is kept for the reader's sake. Ranks may
        call this at once: the same content is renamed over itself. Returns the settings as read back.
        """
        settings = json.loads(json.dumps(settings))
        path = folder / self.file
        if not path.exists():
            make_folder(folder)
            if any(folder.glob("shard-*")):
                raise UserError(
                    f"{folder} holds shards without {self.file}. Put it back, or give another --out."
                )
            body = {"format": self.format, "settings": settings, "about": about}
            put(path, json.dumps(body, indent=1) + "\n", rank, ranks)
        if changes := diff(self.read(folder)["settings"], settings):
            raise UserError(
                f"{folder} was made with other settings: {'; '.join(changes)}. Take those back, give another "
                "--out, or --no-auto-resume, which moves the folder aside and starts anew."
            )
        return settings

    def read(self, folder: Path) -> dict[str, Any]:
        """`settings`, and `about`, which may have changed since. UserError where they cannot be read."""
        path = folder / self.file
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            found = body["format"]
            if found == self.format:
                return {"settings": dict(body["settings"]), "about": dict(body["about"])}
        except FileNotFoundError:
            raise UserError(
                f"{folder} is no {self.what}: it has no {self.file}. Give one that {self.command} wrote."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged. Take a copy, or {self.again}.") from error
        raise UserError(f"{path}: format is {found}, and this version reads {self.format}; {self.again}")

    @contextmanager
    def alone(self, folder: Path, rank: int, ranks: int) -> Iterator[None]:
        """Alone as this rank in this folder, and without what a killed go left half-written.

        UserError where another process writes as the same rank. The lock is the process's: it dies with it.
        """
        make_folder(folder)
        with (folder / f".lock-r{rank}of{ranks}").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{folder}: another {self.command} writes here as rank {rank} of {ranks}. Wait for it, "
                    "or give another --out."
                ) from None
            for path in folder.glob(f"{temporary_name(rank, ranks)}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            yield


def content_hash(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def temporary_name(rank: int, ranks: int) -> str:
    """How the files that this rank has not finished begin."""
    return f"{TEMPORARY}r{rank}of{ranks}-"


def put(path: Path, text: str, rank: int, ranks: int) -> None:
    """Write a file under a temporary name, sync it, rename it; UserError where the disk refuses."""
    temporary = path.with_name(temporary_name(rank, ranks) + path.name)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise refused_by_disk(path, error) from error


def refused_by_disk(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        f"{path} could not be written: {reason}. What was saved before is intact: free some space and run "
        "the same command again."
    )


def move_aside(folder: Path) -> Path | None:
    """Rename a folder that holds anything to `DIR.before-1`, or the next free number; None if it is empty."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside
