"""How much of a thought enters a prediction: a gate that starts near "nothing", and shares among thoughts.

    h = (1 - w) h_base + w sum_g a_g h_g,   w = sigmoid(MLP([h_base; h_thought]))

The head of Quiet-STaR (arXiv 2403.09629, section 4.3) mixes what enters the output matrix, as here; its w is
unbounded and starts at 0. Here w is a share, which starts small but not at zero, so that the gate learns.

Shapes: G thoughts, D width; `...` is anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mixer(nn.Module):
    """A gate, and shares among thoughts.

    bias: w = sigmoid(bias) at the start, whatever the states say; -4 gives 0.018.
    """

    def __init__(self, width: int, *, bias: float = -4.0):
        super().__init__()
        self.gate = _still(width, 2 * width, bias)
        self.score = _still(width, 2 * width, None)  # softmax does not see what is added to all scores

    def share(self, base_D: Tensor, thought_D: Tensor) -> Tensor:
        """w [...], the thought's share, in (0, 1), in fp32 or wider; both states are [..., D]."""
        return _read(self.gate, base_D, thought_D).sigmoid()

    def weights(self, base_D: Tensor, thought_GD: Tensor, prior_G: Tensor) -> Tensor:
        """a [..., G], adding up to 1: softmax of the prior's logits plus a learned score that starts at 0.

        base [..., D] and thoughts [..., G, D], at their end markers; prior: scores without labels.
        """
        base_GD = base_D[..., None, :].expand_as(thought_GD)
        return (prior_G + _read(self.score, base_GD, thought_GD)).softmax(-1)


def gather_thoughts(weight_G: Tensor, thought_GD: Tensor) -> Tensor:
    """sum_g a_g h_g [..., D], in the states' precision."""
    return (weight_G[..., None] * thought_GD).sum(-2).to(thought_GD.dtype)


def mix(base_D: Tensor, thought_D: Tensor, share: Tensor) -> Tensor:
    """(1 - w) h_base + w h_thought [..., D], in the base's precision; where w is 0, the base bit by bit.

    A thought that is removed (w = 0) leaves no trace, not even where its states are not finite.
    """
    off = (share == 0)[..., None]
    share_1 = share[..., None]
    mixed_D = (1 - share_1) * base_D + share_1 * thought_D.masked_fill(off, 0.0)
    return torch.where(off, base_D, mixed_D.to(base_D.dtype))


def _still(width: int, inputs: int, bias: float | None) -> nn.Sequential:
    """Three layers whose output is `bias`, or 0 without one, until they have learned. The bias is a vector of
    one: sharding refuses scalars."""
    last = nn.Linear(width, 1, bias=bias is not None)
    nn.init.zeros_(last.weight)
    if bias is not None:
        nn.init.constant_(last.bias, bias)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)


def _read(layers: nn.Sequential, *states: Tensor) -> Tensor:
    read = layers(torch.cat(states, -1).to(layers[0].weight.dtype))[..., 0]
    return read if read.itemsize >= 4 else read.float()
