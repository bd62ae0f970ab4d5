"""Text of the student's own that goes on though all is said is told to end.

    length = sum over texts of mean_t -log q(end | y_<t),  t > (1 + hinge) * the gold text's length

and only where the text has said, token by token, each tool's name, each value and each repeated result of the
row's gold answer (`losses/early_tool.py`). A row without any of them is never cut short, since nothing tells
that it has said all. Gold text is as long as it is, so it has no such term; how long a text became carries no
gradient, only where it should have ended.
Shapes: B rows, R texts, T tokens of a text, C those that come too late, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.contract import IGNORE, Batch
from quietreasoning.kinds import Kind
from quietreasoning.losses.early_tool import overlong
from quietreasoning.losses.odds import heard
from quietreasoning.methods.distill.settings import LengthSettings
from quietreasoning.methods.distill.spans import check_classes

REQUIRED = (Kind.TOOL_NAME, Kind.ARG_VALUE, Kind.INTEGRATION)


def total(
    backbone: Backbone,
    eos: int,
    hidden_RTD: Tensor,
    ids_RT: Tensor,
    reference_R: Tensor,
    required_R: Sequence[Sequence[tuple[int, ...]]],
    config: LengthSettings,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """(the sum, how many texts were told to end). ids_RT: the texts, padded with IGNORE; hidden_RTD predicts
    them; reference_R: tokens that would do, end of sequence included; required_R: what each text must say."""
    counted_RT, complete_RT = ids_RT != IGNORE, torch.zeros_like(ids_RT, dtype=torch.bool)
    for row, (ids_T, runs) in enumerate(zip(ids_RT.tolist(), required_R, strict=True)):
        after = said_after(ids_T, runs)
        if after is not None:
            complete_RT[row, after:] = True
    wanted_RT = counted_RT & complete_RT
    end = torch.tensor([eos], device=ids_RT.device)
    log_end_C = heard(hidden_RTD[wanted_RT], backbone.logits, end, chunk=chunk).log_p
    log_end_RT = log_end_C.new_zeros(ids_RT.shape).masked_scatter(wanted_RT, log_end_C)
    each = [
        overlong(
            *(part[row : row + 1] for part in (log_end_RT, reference_R, complete_RT, counted_RT)),
            config.hinge,
        )
        for row in range(len(ids_RT))
    ]
    late_R = torch.stack([late for _, late in each])
    return (torch.stack([lost for lost, _ in each]) / late_R.clamp(min=1)).sum(), (late_R > 0).sum()


def required(batch: Batch) -> list[list[tuple[int, ...]]]:
    """The tokens of each name, value and repeated result in each row's gold answer."""
    check_classes(batch, "length")
    found = []
    for ids_A, classes_A in zip(batch.answer_BA.tolist(), batch.classes_BA.tolist(), strict=True):
        runs = groupby(zip(classes_A, ids_A, strict=True), key=lambda pair: pair[0])
        found.append([tuple(id for _, id in run) for kind, run in runs if kind in REQUIRED])
    return found


def said_after(ids: Sequence[int], runs: Sequence[tuple[int, ...]]) -> int | None:
    """After how many of the tokens all runs have been said; None where they never are, or there are none."""
    ends = [
        next((at for at in range(len(run), len(ids) + 1) if tuple(ids[at - len(run) : at]) == run), None)
        for run in runs
    ]
    return None if not ends or None in ends else max(ends)
