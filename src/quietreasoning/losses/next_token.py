"""Cross-entropy of the next token, as a sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def next_token(logits_NV: Tensor, labels_N: Tensor, ignore: int = -100) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of -log p(label) in nats over labels that are not `ignore`.

    Returns the sum (fp32, with gradient), how many labels the arg max hits, and how many there are.
    """
    labels_N = labels_N.flatten()
    logits_NV = logits_NV.flatten(0, -2).float()
    total = F.cross_entropy(logits_NV, labels_N, ignore_index=ignore, reduction="sum")
    with torch.no_grad():
        hits = (logits_NV.argmax(-1) == labels_N).sum()  # ignore is no class, so it never hits
    return total, hits, (labels_N != ignore).sum()
