"""`python -m quietreasoning.tools.build_indices COMMAND ...` is `quiet index COMMAND ...`."""

from __future__ import annotations

import sys


def run() -> None:
    """Become that command; ends in SystemExit with its code."""
    from quietreasoning.cli.main import main

    sys.argv = ["quiet", "index", *sys.argv[1:]]
    main()


if __name__ == "__main__":
    run()
