"""Distance between hidden states of a teacher path and a student path, as a sum."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def hidden_match(student_LBD: Tensor, teacher_LBD: Tensor, rows_B: Tensor) -> Tensor:
    """Sum over rows of the smooth L1 distance, averaged over layers and width.

    Each state is divided by the teacher's standard deviation, so that deep layers do not drown the
    rest (CODI, arXiv 2502.21074, section 3.2; there it is taken over the batch, here over the width, so
    that a row does not depend on its neighbours). The teacher carries no gradient. rows_B: bool, the
    rows that count.
    """
    if not student_LBD.numel():  # no row, or no step in any: a deviation of nothing would warn
        return student_LBD.float().sum()
    teacher_LBD = teacher_LBD.detach().float()
    scale_LB1 = teacher_LBD.std(dim=2, unbiased=False, keepdim=True).clamp(min=1e-6)
    distance_LBD = F.smooth_l1_loss(student_LBD.float(), teacher_LBD, reduction="none") / scale_LB1
    return (distance_LBD.mean(dim=(0, 2)) * rows_B).sum()
