"""`--nproc N`: the same command once per rank, under torch.distributed's elastic agent (torchrun).

The agent's own command hides the exit code of the ranks; its library does not, so 75 stays 75.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

from quietreasoning.cli.guard import EXIT_FAILED, EXIT_RESUMABLE, complain

SAVE_SECONDS = 600  # how long the ranks may take to save after a signal
QUIET = (sys.executable, "-m", "quietreasoning.cli.main")


def launch(arguments: Sequence[str], num_ranks: int, program: Sequence[str] = QUIET) -> int:
    """Run PROGRAM ARGUMENTS on `num_ranks` local ranks; returns the exit code of the first that failed."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # ranks speak for themselves
    try:
        with tempfile.TemporaryDirectory() as scratch:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=num_ranks,
                run_id="quiet",
                rdzv_backend="c10d",
                rdzv_endpoint="127.0.0.1:0",
                local_addr="127.0.0.1",
                max_restarts=0,
                shutdown_timeout=SAVE_SECONDS,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
            )
            elastic_launch(config, program[0])(*program[1:], *arguments)
    except SignalException:
        return EXIT_RESUMABLE
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        complain(f"rank {rank} was killed by {name}. The same command resumes from the last checkpoint.")
        return EXIT_FAILED
    return 0
