"""Controls: replace thoughts by something that cannot carry the answer."""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.contract import CONTROLS


def corrupt(
    thoughts_BKD: Tensor,
    control: str,
    filler_D: Tensor,
    seeds_B: list[int],
    real_BK: Tensor | None = None,
) -> Tensor:
    """Corrupted copy of thoughts [B, K, D].

    zero: zero vectors. shuffle: each row gets the thoughts of the row before it (needs B >= 2).
    mean: each row gets the batch's mean thoughts. noise: Gaussian of each thought's own norm, drawn from
    the row's seed. filler: the same given vector [D] everywhere. real_BK: bool, where rows differ in length;
    the mean is over these alone.
    """
    if control == "zero":
        return torch.zeros_like(thoughts_BKD)
    if control == "shuffle":
        if len(thoughts_BKD) < 2:
            raise ValueError("control='shuffle' needs at least 2 prompts in the batch")
        return thoughts_BKD.roll(1, dims=0)
    if control == "mean":
        if real_BK is None:
            return thoughts_BKD.mean(0, keepdim=True).expand_as(thoughts_BKD)
        mean_1KD = (thoughts_BKD * real_BK[..., None]).sum(0, keepdim=True)
        return (mean_1KD / real_BK.sum(0).clamp(min=1)[None, :, None]).expand_as(thoughts_BKD)
    if control == "noise":
        _, thoughts, width = thoughts_BKD.shape
        # a thought's noise is the same whatever the number of thoughts: randn fills in blocks of 16
        drawn = (thoughts, -(-width // 16) * 16)
        noise = torch.stack(
            [torch.randn(drawn, generator=torch.Generator().manual_seed(seed)) for seed in seeds_B]
        )[..., :width].to(thoughts_BKD)
        return noise * thoughts_BKD.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    if control == "filler":
        return filler_D.expand_as(thoughts_BKD)
    raise ValueError(f"control={control!r} is unknown; choose one of {', '.join(CONTROLS)}")
