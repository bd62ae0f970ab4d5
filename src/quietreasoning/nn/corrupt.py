"""Controls: replace thoughts by something that cannot carry the answer."""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.contract import CONTROLS


def corrupt(thoughts_BKD: Tensor, control: str, filler_D: Tensor, seeds_B: list[int]) -> Tensor:
    """Corrupted copy of thoughts [B, K, D].

    zero: zero vectors. shuffle: each row gets the thoughts of the row before it (needs B >= 2).
    mean: each row gets the batch's mean thoughts. noise: Gaussian of each thought's own norm, drawn from
    the row's seed. filler: the same given vector [D] everywhere.
    """
    if control == "zero":
        return torch.zeros_like(thoughts_BKD)
    if control == "shuffle":
        if len(thoughts_BKD) < 2:
            raise ValueError("control='shuffle' needs at least 2 prompts in the batch")
        return thoughts_BKD.roll(1, dims=0)
    if control == "mean":
        return thoughts_BKD.mean(0, keepdim=True).expand_as(thoughts_BKD)
    if control == "noise":
        noise = torch.stack(
            [
                torch.randn(thoughts_BKD.shape[1:], generator=torch.Generator().manual_seed(seed))
                for seed in seeds_B
            ]
        ).to(thoughts_BKD)
        return noise * thoughts_BKD.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    if control == "filler":
        return filler_D.expand_as(thoughts_BKD)
    raise ValueError(f"control={control!r} is unknown; choose one of {', '.join(CONTROLS)}")
