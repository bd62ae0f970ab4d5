"""Puts the child's half on the path and forks children from a server that has imported torch already."""

import multiprocessing
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

SLOW_IMPORTS = ["quietreasoning.run", "quietreasoning.cli.main", "torch._dynamo"]


@pytest.fixture(scope="session")
def commands():
    """A multiprocessing context whose children start in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    return context
