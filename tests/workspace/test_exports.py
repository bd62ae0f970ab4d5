"""The package's top level offers the model, and loads nothing until it is asked for."""

import subprocess
import sys

import pytest

import quietreasoning
from quietreasoning import workspace


def test_the_model_stands_at_the_top_level():
    for name in ("WorkspaceConfig", "WorkspaceModel", "WorkspaceForCausalLM"):
        assert getattr(quietreasoning, name) is getattr(workspace, name)
        assert name in dir(quietreasoning) and name in quietreasoning.__all__
    with pytest.raises(ImportError):
        from quietreasoning import WorkspaceModell  # noqa: F401


def test_importing_the_package_loads_no_library():
    code = "import quietreasoning, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
