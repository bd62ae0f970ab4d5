"""From the state that ends one thought to the embedding that begins the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Feedback(nn.Module):
    """h -> scale * RMSNorm(h + W2 gelu(W1 h)), W2 = 0 at the start: latents are as long as token embeddings.

    The projection of CODI (arXiv 2502.21074) is an MLP and a norm; the residual and the learned scale are
    ours, so that a warm-started model first sees a latent of familiar size.
    """

    def __init__(self, width: int, scale: float):
        super().__init__()
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.constant_(self.norm.weight, scale)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        hidden = hidden.to(self.up.weight.dtype)  # the backbone may hold its weights in bf16
        return self.norm(hidden + self.down(nn.functional.gelu(self.up(hidden))))


class StepDecoder(nn.Module):
    """Auxiliary decoder: from one thought's state to all tokens of its step; not used at inference.

    One GRU whose first state is the thought (SIM-CoT, arXiv 2509.20317, trains a whole decoder).
    """

    def __init__(self, width: int):
        super().__init__()
        self.start = nn.Linear(width, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, width)

    def forward(self, thought_ND: Tensor, embeds_NSD: Tensor) -> Tensor:
        """States [N, S, D] that predict the S tokens whose embeddings are given (teacher forcing)."""
        thought_ND = thought_ND.to(self.start.weight.dtype)
        embeds_NSD = embeds_NSD.to(self.start.weight.dtype)
        dtype = self.out.weight.dtype
        shifted_NSD = torch.cat([torch.zeros_like(embeds_NSD[:, :1]), embeds_NSD[:, :-1]], 1).to(dtype)
        hidden_NSD, _ = self.cell(shifted_NSD, torch.tanh(self.start(thought_ND.to(dtype)))[None])
        return self.out(hidden_NSD)
