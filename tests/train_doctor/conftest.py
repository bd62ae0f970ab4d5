"""A tiny real backbone, and a batch with every field, lengths that differ and padding on every side."""

import pytest
import torch

from quietreasoning.backbone import BackboneConfig, ScratchConfig, load_backbone
from quietreasoning.contract import IGNORE, Batch, Markers

VOCAB = 40
MARKERS = Markers(answer_prefix=(38,), eos=39)


def random_batch(rows: int = 5, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 36, (count,), generator=draw).tolist()

    prompt_BP = torch.full((rows, 9), IGNORE)
    steps_BKS = torch.full((rows, 3, 4), IGNORE)
    results_BKR = torch.full((rows, 3, 1), IGNORE)
    answer_BA = torch.full((rows, 4), IGNORE)
    for row in range(rows):
        length = 4 + (row * 2) % 6
        prompt_BP[row, 9 - length :] = torch.tensor(ids(length))
        for step in range(2 + row % 2):
            tokens = [*ids(2 + (row + step) % 2), 37]
            steps_BKS[row, step, : len(tokens)] = torch.tensor(tokens)
            results_BKR[row, step, 0] = tokens[-2]
        tokens = [*ids(1 + row % 3), MARKERS.eos]
        answer_BA[row, : len(tokens)] = torch.tensor(tokens)
    unknown_B = torch.full((rows,), IGNORE)
    return Batch(torch.arange(rows) + 100, prompt_BP, steps_BKS, results_BKR, answer_BA, unknown_B)


@pytest.fixture
def batch():
    return random_batch()


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return load_backbone(
        BackboneConfig(scratch=ScratchConfig(layers=2, width=32, heads=2, context=64)), vocab_size=VOCAB
    )


@pytest.fixture
def markers():
    return MARKERS
