"""What a thinking model is made of: the model, its markers, gates, heads, and the figures it keeps.

Shapes: B rows, G thoughts, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from quietreasoning.backbone import Backbone
from quietreasoning.backbone.tree import check_trees
from quietreasoning.config import UserError
from quietreasoning.contract import Markers
from quietreasoning.losses import thoughts as losses
from quietreasoning.methods.grpo_reference import Reference
from quietreasoning.methods.thoughts.running import Centre, Running, Threshold
from quietreasoning.methods.thoughts.settings import ThinkerConfig
from quietreasoning.methods.writing import Speaker
from quietreasoning.nn.mixing import Mixer

T = TypeVar("T")
ADVANTAGE, SCORES = 0, slice(1, 4)  # kinds of running figures


class Thinking(Speaker):
    """Parts of a method that thinks in hidden tokens."""

    config: ThinkerConfig

    def __init__(self, backbone: Backbone, config: ThinkerConfig, markers: Markers):
        super().__init__(backbone, config, markers)
        if len(markers.thinking) < 2:
            raise UserError(
                "method thoughts needs tokens that open and close a thought, which this tokenizer lacks; set "
                "data.tokenizer.thinking=true"
            )
        check_trees(backbone)
        start, end = markers.thinking[:2]
        self.law = losses.ThoughtLaw(start, end, (markers.eos,), config.least)
        ids_2 = torch.tensor([start, end], device=next(backbone.parameters()).device)
        self.markers_2D = nn.Parameter(backbone.embed(ids_2).detach().clone())
        self.mixer = Mixer(backbone.width, bias=config.gate)
        self.utility = nn.Sequential(
            nn.Linear(2 * backbone.width, backbone.width), nn.ReLU(), nn.Linear(backbone.width, 1)
        )
        self.running, self.centre, self.threshold = Running(4), Centre(backbone.width), Threshold(config.hard)
        self.reference = Reference(self)

    def pace(self, progress: float) -> None:
        """Take in what the last step saw; before the first, remember the weights."""
        for part in (self.running, self.centre, self.threshold):
            part.settle()
        if progress == 0:
            self.reference.hold(self)

    def expected_utility(self, base_D: Tensor, thought_GD: Tensor) -> Tensor:
        """Nats [..., G] that the head expects thoughts [..., G, D] to add, from states it does not change."""
        both = torch.cat([base_D[..., None, :].expand_as(thought_GD), thought_GD], -1).detach()
        return self.utility(both.to(self.utility[0].weight.dtype))[..., 0]

    def prior(self, scores_3: Tensor) -> Tensor:
        """The composite [...] of scores [..., 3], standardised by running statistics."""
        own = self.config.coherence
        weights_3 = torch.tensor([own.semantic, own.syntactic, own.predictive], device=scores_3.device)
        mean_3, std_3 = self.running.mean_C()[SCORES], self.running.std_C()[SCORES]
        return losses.composite(scores_3, mean_3.to(scores_3), std_3.to(scores_3), weights_3)

    @torch.no_grad()
    def as_it_was(self, function: Callable[[], T]) -> T:
        """What `function` gives with the weights that the stage began with."""
        return self.reference.call(self, function)

    def prior_when_writing(self, base_BD: Tensor, thought_BGD: Tensor) -> Tensor:
        """Logits [B, G] that share an anchor out when the model writes: the expected utility alone, since the
        other scores would ask the model as it was."""
        expected_BG = self.expected_utility(base_BD, thought_BGD)
        scores_BG3 = self.running.mean_C()[SCORES].repeat(*expected_BG.shape, 1).to(expected_BG)
        scores_BG3[..., 2] = expected_BG
        return self.prior(scores_BG3)
