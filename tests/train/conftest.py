"""Puts the toys on the path and forks children from a server that has imported torch already."""

import multiprocessing
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

SLOW_IMPORTS = [
    "quietreasoning.train.stages",
    "torch._dynamo",  # building an optimizer imports it
    "accelerate",
    "torch.distributed.fsdp",
    "torch.distributed.device_mesh",
]


@pytest.fixture(scope="session")
def processes():
    """A multiprocessing context whose children start in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    return context
