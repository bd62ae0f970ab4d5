"""Stop without loss: SIGTERM or Ctrl-C asks, work reaches a safe point, saves and exits with 75.

Touch a file named `SAVE` in the run folder to save at the next step and go on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_RESUMABLE = 75
SAVE_FILE = "SAVE"


class Stopped(SystemExit):
    """The run was asked to stop and can be resumed by the same command. A SystemExit, so that no
    `except Exception` on the way swallows it; its exit code is 75 and `note` says what was kept."""

    def __init__(self, note: str = "stopped; the same command resumes"):
        super().__init__(EXIT_RESUMABLE)
        self.note = note

    def __str__(self) -> str:
        return self.note


class StopFlag:
    """Set by the first signal; long work polls `requested` or calls `check()` between items."""

    def __init__(self, save_file: SaveFile | None = None) -> None:
        self.requested = False
        self.save_file = save_file

    def request(self) -> None:
        self.requested = True

    def save_requested(self) -> bool:
        """Whether someone touched the run folder's `SAVE` since the last look."""
        return self.save_file is not None and self.save_file.found()

    def check(self) -> None:
        """Raises `Stopped` once a stop was requested."""
        if self.requested:
            raise Stopped()

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """SIGTERM and SIGINT set this flag inside the block; a second one leaves at once, with 75 too."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # Python lets only the main thread listen
            return
        before = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(EXIT_RESUMABLE)
        self.requested = True
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: saving, then leaving; again to leave at once\n".encode())


class SaveFile:
    """Looks for `SAVE` in the run folder, at most once a second, and takes it away when found."""

    def __init__(self, run_dir: Path, interval_seconds: float = 1.0):
        self.path = run_dir / SAVE_FILE
        self.interval_seconds = interval_seconds
        self.next_look = 0.0

    def found(self) -> bool:
        now = time.monotonic()
        if now < self.next_look:
            return False
        self.next_look = now + self.interval_seconds
        if not self.path.exists():
            return False
        self.path.unlink(missing_ok=True)
        return True
