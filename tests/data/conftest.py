"""Real public files, where they stand: QUIET_DATA, or ../shared/data beside the repository."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """`real("gsm8k/test.jsonl")` gives a path, or skips with the reason."""
    root = Path(os.environ.get("QUIET_DATA", REPOSITORY.parent / "shared" / "data"))

    def locate(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"{root / name} is absent; set QUIET_DATA to a folder that holds {name}")
        return root / name

    return locate
