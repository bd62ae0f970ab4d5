"""`quiet` in a process of its own: what a forked child runs."""

import os
import resource
import signal
import sys


def command(arguments, pipe, limit_bytes):
    """Run a command with both outputs in `pipe`; no file may grow beyond `limit_bytes`."""
    for number in (1, 2):
        os.dup2(pipe.fileno(), number)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)
    if limit_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    sys.argv = ["quiet", *arguments]
    from quietreasoning.cli.main import main

    main()
