"""From what a reasoner says to soft tokens that a frozen language model can read.

A predicted state is no embedding, even where the embedding matrix is also the head: it lives in another space
and is far longer. So it is either mapped there (`SoftTokens`), or it is read by the model's own head and the
distribution is turned into a mixture of real embeddings (Soft Thinking, arXiv 2505.15778; HRPO, 2505.18454),
which needs no parameter and lives in the method. Shapes: K soft tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SoftTokens(nn.Module):
    """e_k = g_k * rms * unit(A y_k + b_k): as long as an embedding, wherever y came from."""

    no_decay = ("start_KD", "gate_K")

    def __init__(self, width: int, slots: int, rms: float, start_D: Tensor):
        """rms: root mean square of the model's embeddings. start_D: every b_k at first but for a little
        noise, such as the embedding of a marker that stands before thoughts."""
        super().__init__()
        # kept with the weights: a method is built before its model's weights are loaded
        self.register_buffer("rms", torch.tensor(float(rms)))
        self.map = nn.Linear(width, width, bias=False)
        self.start_KD = nn.Parameter(start_D / rms + 0.1 * torch.randn(slots, width))
        self.gate_K = nn.Parameter(torch.ones(slots))

    def forward(self, y_BKD: Tensor) -> Tensor:
        """[B, K, D] -> [B, K, D], each of root mean square g_k * rms."""
        mapped_BKD = self.map(y_BKD.to(self.map.weight.dtype)) + self.start_KD
        return self.gate_K[:, None] * self.rms * F.rms_norm(mapped_BKD, mapped_BKD.shape[-1:], eps=1e-6)
