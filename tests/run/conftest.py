"""The tiny SmolLM3 that these tests share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_smollm3 import write_model, write_sums


@pytest.fixture(scope="session")
def sums(tmp_path_factory):
    """A folder in GSM8K's form."""
    return write_sums(tmp_path_factory.mktemp("sums"))


@pytest.fixture(scope="session")
def smollm3(sums, tmp_path_factory):
    """A model folder with its weights."""
    return write_model(tmp_path_factory.mktemp("smollm3"), sums)
