"""Lines of JSON to and from a process in the sandbox, read as what a stranger wrote."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Self

WAIT = 0.05  # seconds between looks at whether the other side is gone


class Channel:
    """Two pipes. `theirs`: the ends (to read, to write) for the child; closed here by `close`."""

    def __init__(self) -> None:
        self._in, their_out = os.pipe()
        their_in, self._out = os.pipe()
        self.theirs = (their_in, their_out)
        self.gone = threading.Event()  # set once the child is dead
        self._rest, self._over = b"", False
        for end in (self._in, self._out):
            os.set_blocking(end, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        for end in self.theirs:
            os.close(end)

    def hang_up(self) -> None:
        """Nothing is read or sent any more; the child sees its pipes end."""
        if not self._over:
            self._over = True
            os.close(self._in)
            os.close(self._out)

    def receive(self, most: int, seconds: float = float("inf")) -> str | None:
        """The next line; None where the child is gone, takes longer, or sends more than `most` bytes."""
        pieces, size, until = [self._rest], len(self._rest), time.monotonic() + seconds
        while b"\n" not in pieces[-1]:
            if size > most or time.monotonic() > until:
                return None
            gone = self.gone.is_set()  # asked first: what a dead child sent is still read
            if not select.select([self._in], [], [], 0 if gone else WAIT)[0]:
                if gone:
                    return None
                continue
            pieces.append(os.read(self._in, 1 << 16))
            size += len(pieces[-1])
            if not pieces[-1]:
                return None
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return line.decode("utf-8", "replace") if len(line) <= most else None

    def send(self, line: str) -> bool:
        """Whether all of it went out."""
        data = memoryview(line.encode("utf-8", "surrogatepass") + b"\n")
        while data:
            if self.gone.is_set():
                return False
            if select.select([], [self._out], [], WAIT)[1]:
                try:
                    data = data[os.write(self._out, data) :]
                except BrokenPipeError:
                    return False
        return True
