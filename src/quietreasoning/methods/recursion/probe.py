"""The first answer token without another pass of the model: what the frozen head reads in the last slot."""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.methods.recursion.method import Recursion


@torch.no_grad()
def head_alone(method: Recursion, prompt_BP: Tensor, effort: int | None = None) -> Tensor:
    """The most likely token [B] of the last slot after all supervision steps, or `effort` of them.

    A probe, and enough for multiple choice: it tells whether the answer is already there before the model has
    read any soft token. It knows of one token alone.
    """
    given = method.given(method.open(prompt_BP))
    state = method.reasoner.begin(given)
    for _ in range(method.config.steps if effort is None else effort):
        thought = method.reasoner(given, state)
        state = thought.carry
    return method.backbone.logits(thought.output_BPO[:, -1]).argmax(-1)
