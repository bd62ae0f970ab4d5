"""Running text and whole solutions, and a model to read them."""

from dataclasses import replace

import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.contract import IGNORE, Batch, Markers

VOCAB, WIDTH = 40, 16
MARKERS = Markers((37, 38), 39)


def small_model():
    torch.manual_seed(0)
    shape = ScratchConfig(layers=2, width=WIDTH, heads=2, mlp=16, context=64, init_std=0.4)
    return load_backbone(BackboneConfig(scratch=shape), VOCAB)


def text(rows: int, seed: int = 0) -> Batch:
    """Rows of 4 to 11 tokens."""
    draw = torch.Generator().manual_seed(seed)
    prompt_BP = torch.randint(0, 36, (rows, 11), generator=draw)
    for row in range(rows):
        prompt_BP[row, : row % 8] = IGNORE
    none = torch.full((rows, 0), IGNORE)
    return Batch(
        torch.arange(rows), prompt_BP, none[..., None], none[..., None], none, torch.full((rows,), IGNORE)
    )


def solutions(rows: int, seed: int = 0) -> Batch:
    """Questions, of which every third has no steps."""
    draw = torch.Generator().manual_seed(seed)
    steps_BKS = torch.randint(0, 36, (rows, 2, 3), generator=draw)
    steps_BKS[::3] = IGNORE
    answer_BA = torch.randint(0, 36, (rows, 2), generator=draw)
    return replace(text(rows, seed), steps_BKS=steps_BKS, results_BKR=steps_BKS, answer_BA=answer_BA)
