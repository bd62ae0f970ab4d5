"""Quiet Reasoning: train, prove and serve language models that think without saying it.

`import quietreasoning` loads nothing else; `from quietreasoning import WorkspaceForCausalLM` loads torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "WorkspaceConfig": "quietreasoning.workspace",
    "WorkspaceForCausalLM": "quietreasoning.workspace",
    "WorkspaceModel": "quietreasoning.workspace",
}
__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
