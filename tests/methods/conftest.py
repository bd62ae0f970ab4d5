"""A tiny backbone for what methods do with tokens."""

import sys
from pathlib import Path

import pytest
import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def backbone():
    torch.manual_seed(0)
    shape = ScratchConfig(layers=1, width=16, heads=2, mlp=16, context=64, init_std=0.5)
    return load_backbone(BackboneConfig(scratch=shape), 30).eval()
