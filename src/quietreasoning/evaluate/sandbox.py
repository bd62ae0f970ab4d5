"""Run code that a model wrote: `run(code, Limits())` -> Verdict. Never in this process.

A child process of its own session: limits on CPU, memory, file size, open files and processes; no
network where the system lets us unshare it; an audit hook that refuses sockets, new processes and
files outside its temporary folder; the whole group is killed at the end. Run as root, the child
becomes `nobody`. This stops accidents, not an attacker who aims at this file: run the evaluation of a
model you distrust in a container as well. Linux and macOS.

This file is also the child's script, so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NOBODY = 65534
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 1, 8, 38
CAPABILITY_VERSION, CAP_DAC_READ_SEARCH = 0x20080522, 2

REFUSED = (
    "socket.", "subprocess.", "ctypes.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.kill", "os.setxattr", "pty.", "signal.", "sys.addaudithook", "gc.get_",
)  # fmt: skip
WRITES = {
    "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.chdir": 1,
}  # fmt: skip
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero")


@dataclass(frozen=True)
class Limits:
    seconds: float = 5.0
    """Wall time; CPU time is limited to one second more."""
    memory_mb: int = 1024
    """Address space."""
    file_mb: int = 8
    """Size of each file, the output among them."""
    files: int = 64
    """Files open at once, and files written in all."""


@dataclass(frozen=True)
class Verdict:
    passed: bool
    why: str
    """"passed", "timeout", "memory", "exited", "crashed: signal 11", or "NameError: ..."."""
    stdout: str
    seconds: float


def run(
    code: str,
    limits: Limits = Limits(),
    *,
    stdin: str = "",
    program: bool = False,
    inherit: Sequence[int] = (),
) -> Verdict:
    """Run `code` and say whether it reached its end without an exception.

    program: leaving by `sys.exit(0)` counts as reaching the end, and `__name__` is "__main__". Without
    it (a candidate followed by its asserts) leaving early is a failure.
    inherit: open file descriptors that the code may use under the same numbers, such as ends of pipes.
    """
    with tempfile.TemporaryDirectory(prefix="quiet-sandbox-", ignore_cleanup_errors=True) as folder:
        home = Path(folder).resolve()
        nonce = secrets.token_hex(16)
        job = {"code": code, "program": program, "nonce": nonce, "home": str(home), **asdict(limits)}
        (home / "stdin.txt").write_text(stdin, encoding="utf-8", errors="surrogateescape")
        read_end, write_end = os.pipe()
        try:
            (home / "job.json").write_text(json.dumps({**job, "verdict": write_end}))
            started = time.monotonic()
            status = _spawn(home, (write_end, *inherit), limits.seconds)
            seconds = time.monotonic() - started
            os.close(write_end)
            write_end = -1
            said = _said(read_end, nonce)
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)
        with open(home / "stdout.txt", "rb") as file:
            stdout = file.read(limits.file_mb << 20).decode("utf-8", "replace")
    if said is not None:
        return Verdict(said == "passed", said, stdout, seconds)
    if status is None or status == -signal.SIGXCPU:
        return Verdict(False, "timeout", stdout, seconds)
    why = f"crashed: signal {-status}" if status < 0 else "exited"
    return Verdict(False, why, stdout, seconds)


def _spawn(home: Path, inherit: Sequence[int], seconds: float) -> int | None:
    """Exit status of the child, or None where it ran out of time. Nothing of its group survives."""
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with open(home / "stdin.txt", "rb") as stdin, open(home / "stdout.txt", "wb") as stdout:
        child = subprocess.Popen(
            # -P: this folder holds a statistics.py that must not shadow the standard one
            [sys.executable, "-s", "-P", "-B", __file__, str(home / "job.json")],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            cwd=home,
            env=environment,
            pass_fds=inherit,
            start_new_session=True,
        )
    try:
        return child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _said(read_end: int, nonce: str) -> str | None:
    """The child's own verdict, or None where it left without one."""
    os.set_blocking(read_end, False)
    with contextlib.suppress(BlockingIOError):
        words = os.read(read_end, 4096).decode("utf-8", "replace").partition(" ")
        if words[0] == nonce:
            return words[2]
    return None


def _child(path: str) -> None:
    """Read the job, lock the door, run the code, say how it went."""
    with open(path) as file:
        job = json.load(file)
    os.unlink(path)
    _drop_rights(job["home"])
    _set_limits(job)
    nonce, verdict, program = job.pop("nonce"), job["verdict"], job["program"]
    code, say = job.pop("code"), os.write
    sys.argv = ["candidate.py"]
    sys.setrecursionlimit(5000)
    _set_hook(job["home"], job["files"])
    try:
        exec(compile(code, "candidate.py", "exec"), {"__name__": "__main__" if program else "candidate"})
        why = "passed"
    except SystemExit as leaving:
        why = "passed" if program and leaving.code in (None, 0) else "exited"
    except MemoryError:
        why = "memory"
    except BaseException as error:
        why = f"{type(error).__name__}: {error}"[:300]
    try:
        sys.stdout.flush()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"[:300]
    say(verdict, f"{nonce} {why}".encode("utf-8", "replace"))
    os._exit(0)


def _drop_rights(home: str) -> None:
    """No network, no new rights, no life beyond the parent's; and not root."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    cut_off = False
    if os.geteuid() == 0:
        cut_off = libc is not None and libc.unshare(CLONE_NEWNET) == 0
        _become_nobody(home, libc)
    if libc is not None:
        if not cut_off:
            libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)  # refused on some systems: the hook remains
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after setuid, which clears it


def _become_nobody(home: str, libc: ctypes.CDLL | None) -> None:
    """The limit on processes does not bind root. A Python under /root keeps the right to read alone."""
    reads = _nobody_reads(os.__file__)
    if not reads and libc is None:
        return
    for name in (home, *(os.path.join(home, name) for name in os.listdir(home))):
        os.chown(name, NOBODY, NOBODY)
    if not reads:
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    if not reads:
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
        one = 1 << CAP_DAC_READ_SEARCH
        libc.capset(header, (ctypes.c_uint32 * 6)(one, one, 0, 0, 0, 0))  # effective, permitted, inherited


def _nobody_reads(path: str) -> bool:
    """Whether `nobody` may open `path`."""
    os.seteuid(NOBODY)
    try:
        with open(path):
            return True
    except OSError:
        return False
    finally:
        os.seteuid(0)


def _set_limits(job: dict[str, Any]) -> None:
    wanted = {
        resource.RLIMIT_CPU: math.ceil(job["seconds"]) + 1,
        resource.RLIMIT_FSIZE: job["file_mb"] << 20,
        resource.RLIMIT_NOFILE: job["files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    if sys.platform == "linux":  # macOS refuses a limit below what is mapped already
        wanted[resource.RLIMIT_AS] = job["memory_mb"] << 20
    for which, value in wanted.items():
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _set_hook(home: str, files: int) -> None:
    """Refuse what the limits cannot. An audit hook stays for the life of the process."""
    readable = tuple(
        os.path.join(os.path.realpath(path), "")
        for path in (home, sys.prefix, sys.base_prefix, sys.exec_prefix, "/usr/lib", "/usr/share", "/lib")
    )
    home = os.path.join(home, "")
    within, real = str.startswith, os.path.realpath
    written = 0

    def check(path: Any, roots: tuple[str, ...]) -> None:
        if isinstance(path, int) or path is None:
            return
        place = real(os.fsdecode(path))
        if place not in DEVICES and not within(os.path.join(place, ""), roots):
            raise PermissionError(f"the sandbox refuses {place}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal written
        if event == "open":
            path, _, flags = args
            writes = bool((flags or 0) & WRITE_FLAGS)
            check(path, (home,) if writes else readable)
            written += writes
            if written > files:
                raise PermissionError(f"the sandbox refuses more than {files} written files")
        elif event in WRITES:
            for path in args[: WRITES[event]]:
                check(path, (home,))
            written += event == "os.mkdir"
        elif within(event, REFUSED):
            raise PermissionError(f"the sandbox refuses {event}")

    sys.addaudithook(hook)


if __name__ == "__main__":
    _child(sys.argv[1])
