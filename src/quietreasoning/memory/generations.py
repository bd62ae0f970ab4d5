"""A folder of which one generation counts: made aside, put in force by one rename, taken back by another.

    pkm/current.json    which generation is in force, and all that were ever given a number
    pkm/000002/         a generation; nothing in it changes once it stands there
    pkm/.tmp-000002/    one that is being made

A process killed at any point leaves the old generation in force or the new one, each whole. The one before
the present one is kept, to be taken back to; what neither is nor was in force is removed by the next writer.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quietreasoning.config import UserError
from quietreasoning.disk import alone, sync
from quietreasoning.memory.sidecar import replacing

FORMAT = 1
CURRENT, ABOUT, TEMPORARY = "current.json", "generation.json", ".tmp-"


@dataclass(frozen=True)
class State:
    """What `current.json` says."""

    name: str  # of the folder itself, drawn once; what others note down about it
    current: int = 0  # the generation in force; 0: none, as before the first
    before: int = 0  # the one it replaced
    last: int = 0  # the highest number ever in force


class Generations:
    """One folder of them; it need not exist yet."""

    def __init__(self, folder: Path):
        self.folder = folder

    def state(self) -> State:
        """UserError where the file is damaged."""
        path = self.folder / CURRENT
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            state = State(**body["state"])
            if body["format"] == FORMAT and 0 <= state.before <= state.last >= state.current >= 0:
                return state
        except FileNotFoundError:
            return State("")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}). Put a copy back") from error
        raise UserError(f"{path} is of another format, or damaged. Put a copy back")

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    def about(self, number: int) -> dict[str, Any]:
        """What a generation was made of; nothing of number 0. UserError where it is gone."""
        if not number:
            return {}
        path = self.path(number) / ABOUT
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is missing or damaged ({error}). Put a copy back") from error

    @contextmanager
    def alone(self) -> Iterator[State]:
        """The one writer; the lock dies with its process. Removes what a killed writer left; the state."""
        with alone(self.folder):
            state = self.state()
            if not state.name:
                state = State(uuid.uuid4().hex)
                self._point(state)
            self._prune(state)
            yield state

    @contextmanager
    def made(self, state: State) -> Iterator[Path]:
        """Inside `alone`: an empty folder for the next generation, gone at the end unless committed."""
        temporary = self.folder / f"{TEMPORARY}{state.last + 1:06d}"
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def commit(self, temporary: Path, state: State, about: Mapping[str, Any]) -> State:
        """Put what `made` gave in force. The files in it are synced by whoever wrote them."""
        number = state.last + 1
        with replacing(temporary / ABOUT) as file:
            file.write_text(json.dumps(dict(about), indent=1) + "\n", encoding="utf-8")
        temporary.rename(self.path(number))
        sync(self.folder)
        new = State(state.name, number, state.current, number)
        self._point(new)
        return new

    def rollback(self, state: State) -> State:
        """Inside `alone`: the generation before is in force again, to the byte. UserError where none is."""
        if not state.current:
            raise UserError(f"{self.folder}: nothing is in force that could be taken back")
        if state.before and not self.path(state.before).is_dir():
            raise UserError(
                f"{self.folder}: generation {state.before} is gone, only the last change can be taken back"
            )
        earlier = self.about(state.before).get("before", 0)
        new = State(state.name, state.before, earlier, state.last)
        self._point(new)
        return new

    def _point(self, state: State) -> None:
        with replacing(self.folder / CURRENT) as file:
            body = {"format": FORMAT, "state": asdict(state)}
            file.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")

    def _prune(self, state: State) -> None:
        kept = {self.path(number) for number in (state.current, state.before)}
        for path in self.folder.iterdir():
            if path.is_dir() and path not in kept:
                shutil.rmtree(path)
