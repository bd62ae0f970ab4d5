"""States of the student's layers against those of the teacher, through projections that learn.

    hidden = sum_t 1/P sum_(i,j) d( W_ij s_i,t , h_j,t )

over P pairs of layers (FitNets, arXiv 1412.6550; TinyBERT, arXiv 1909.10351). d is 1 - cos or the squared
error, one of them: after normalisation they are the same loss. The projections belong to the method: they
are in the optimizer and in checkpoints, and not in an exported model.
Shapes: L layers, N positions, D student's width, E teacher's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.backbone import Backbone
from quietreasoning.config import UserError
from quietreasoning.losses.rows import statistic
from quietreasoning.methods.distill.settings import HiddenSettings


class Layers(nn.Module):
    """Pairs of layers and a projection for each."""

    def __init__(self, student: Backbone, teacher: Backbone, config: HiddenSettings):
        super().__init__()
        self.distance = config.distance
        self.pairs = layer_pairs(config, student.num_layers, teacher.num_layers)
        like = next(student.parameters())
        self.project = nn.ModuleList(
            nn.Linear(student.width, teacher.width, bias=False, device=like.device, dtype=torch.float32)
            for _ in self.pairs
        )
        for one in self.project:
            if not one.weight.is_meta:
                nn.init.orthogonal_(one.weight)  # of equal widths: a rotation, so nothing is lost

    def forward(self, student_LND: Tensor, teacher_LNE: Tensor) -> Tensor:
        """Sum over positions of the mean distance of the pairs. The teacher gets no gradient."""
        total = statistic(student_LND.flatten()[:0]).sum()
        for project, (own, taught) in zip(self.project, self.pairs, strict=True):
            mine_NE = project(student_LND[own].to(project.weight.dtype))
            wanted_NE = statistic(teacher_LNE[taught].detach())
            if self.distance == "cosine":
                apart_N = 1 - F.cosine_similarity(statistic(mine_NE), wanted_NE, dim=-1)
            else:
                size_N1 = wanted_NE.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
                apart_N = ((statistic(mine_NE) - wanted_NE) / size_N1).square().mean(-1)
            total = total + apart_N.sum()
        return total / len(self.pairs)


def layer_pairs(config: HiddenSettings, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer) from 0; UserError for a layer that is not there."""
    if isinstance(config.layers, str):
        count = min(config.pairs or 2, student, teacher)
        if config.layers == "last":
            return tuple((student - i, teacher - i) for i in range(count, 0, -1))
        return tuple(((i + 1) * student // count - 1, (i + 1) * teacher // count - 1) for i in range(count))
    for own, taught in config.layers:
        if not (0 <= own < student and 0 <= taught < teacher):
            raise UserError(
                f"method.hidden.layers has ({own}, {taught}); the student's layers are 0 to {student - 1}, "
                f"the teacher's 0 to {teacher - 1}"
            )
    if not config.layers:
        raise UserError("method.hidden.layers is empty; give pairs, uniform or last")
    return config.layers
