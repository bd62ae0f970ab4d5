"""One thread per test process, no network, reproducible products; set before torch is imported."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# Else MKL's products depend, on some processors, on where a weight lies in memory; tests compare bits.
os.environ["MKL_CBWR"] = "AUTO"

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """`real("gsm8k/test.jsonl")` gives a path in QUIET_DATA or ../shared/data, or skips with the reason."""
    root = Path(os.environ.get("QUIET_DATA", REPOSITORY.parent / "shared" / "data"))

    def locate(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"{root / name} is absent; set QUIET_DATA to a folder that holds {name}")
        return root / name

    return locate
