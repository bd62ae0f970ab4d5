"""Which Python and packages are here: for `run.json`, error logs and `quiet doctor`."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = (
    "quietreasoning",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
)


def version(package: str) -> str | None:
    """The installed version; None where there is none. Imports nothing of the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Python and the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) or "missing" for name in PACKAGES}
