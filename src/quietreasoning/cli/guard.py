"""What users see when something goes wrong: one line and an exit code, never a traceback.

0 done · 1 unexpected (traceback in a log file, or shown with QUIET_DEBUG=1) · 2 bad input ·
75 stopped by a signal, the same command resumes · 130 interrupted.
"""

from __future__ import annotations

import errno
import functools
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUMABLE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 75, 130, 141


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """A command that ends in `typer.Exit` with the code it returned, or the code of what it raised."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        raise typer.Exit(_run(functools.partial(command, *args, **kwargs)))

    return wrapper


def resumable(work: Callable[[], int | None]) -> int | None:
    """`work` under SIGTERM and Ctrl-C: 75, until it listens to them itself."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, stop) for number in signals]
    try:
        return work()
    except (KeyboardInterrupt, Exception):
        if not asked:  # libraries turn an interrupt during their import into errors of their own
            raise
        complain("stopped before the work began; nothing was lost, run the same command again")
        return EXIT_RESUMABLE
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def complain(line: str) -> None:
    """One line on stderr; one of several ranks says which it is."""
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    typer.echo(f"quiet: {rank}{line}", err=True)


def _run(command: Callable[[], int | None]) -> int:
    debug = bool(os.environ.get("QUIET_DEBUG"))
    try:
        return command() or 0
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    except SystemExit as stop:
        if stop.code == EXIT_RESUMABLE:
            complain(str(stop))
        raise
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # the reader left; closing the pipe must not complain again
        return EXIT_PIPE
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    from quietreasoning.config import UserError

    if isinstance(error, UserError):
        complain(" ".join(str(error).split()))
        return EXIT_BAD_INPUT
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" at {error.filename}" if error.filename else ""
        complain(
            f"the disk is full{where}. What was saved before is intact: free space, run the same command."
        )
        return EXIT_FAILED
    if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: torch may not be imported here
        complain("out of memory. Halve train.batch_size, or double train.accumulate and keep the batch.")
        return EXIT_FAILED
    what = " ".join(str(error).split())[:300] or "no message"
    complain(f"unexpected {type(error).__name__}: {what} (details: {_write_log()}; QUIET_DEBUG=1 shows them)")
    return EXIT_FAILED


def _write_log() -> str:
    """Save the traceback that is being handled; returns the file's name."""
    from quietreasoning.versions import versions

    with tempfile.NamedTemporaryFile(
        "w", prefix="quiet-error-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"$ {shlex.join(sys.argv)}\n")
        log.writelines(f"{name} {version}\n" for name, version in versions().items())
        log.write(traceback.format_exc())
    return log.name
