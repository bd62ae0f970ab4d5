"""A call within the first tokens of an answer where one is due, and none where none is.

    early_tool = - sum over rows that call of log(1 - prod_t (1 - h_t))
                 - sum over the others of sum_t log(1 - h_t)

h_t is the mass of `Markers.openers` at the answer's t-th token, t in the window, from the same pass over the
gold text (`losses/early_tool.py`). What was read is gold, and that sets three limits. A row's window ends
where its call opens, since what follows stands inside of it. Where prose itself says an opener, nothing is
held against it. An opener of several tokens counts by its first: h_t is then an upper bound, for the product
along all of them would take a pass from each place of the window.
Shapes: B rows, T visible tokens, N places of the window, C those that count, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Markers, Term
from quietreasoning.kinds import CALL_KINDS
from quietreasoning.losses.early_tool import early_tool, window
from quietreasoning.losses.odds import Event, any_of, heard
from quietreasoning.methods.distill.settings import EarlyToolSettings
from quietreasoning.methods.distill.spans import check_classes, placed
from quietreasoning.methods.sequence import Visible

NAME = "early_tool"


def count(
    batch: Batch, visible: Visible, markers: Markers, config: EarlyToolSettings | None
) -> dict[str, int]:
    """Rows that have a window. UserError where nothing says what opens a call, or what is one."""
    if config is None:
        return {}
    check_classes(batch, NAME)
    if not markers.openers:
        raise UserError(
            "method.weights.early_tool needs to know what opens a call: set data.format.spans.dialect to the "
            "one that the rows speak, such as json"
        )
    _, counted_BN, _ = _windows(visible.labels_BT, batch, visible, markers, config.window)
    return {NAME: int(counted_BN.any(1).sum())}


def term(
    backbone: Backbone,
    batch: Batch,
    visible: Visible,
    hidden_BTD: Tensor,
    markers: Markers,
    config: EarlyToolSettings,
    chunk: int,
    weight: float,
) -> tuple[Term, dict[str, tuple[Tensor, Tensor]]]:
    """The term; and how likely it is that a call opens in the window, where one is due and where none is."""
    hidden_BND, counted_BN, calls_B = _windows(hidden_BTD, batch, visible, markers, config.window)
    openers_J = torch.tensor(markers.openers, device=hidden_BTD.device)
    told = heard(hidden_BND[counted_BN], backbone.logits, openers_J, chunk=chunk)
    blank_BN = told.log_p.new_zeros(counted_BN.shape)
    opened_BN = Event(*(blank_BN.masked_scatter(counted_BN, part_C) for part_C in told))
    found = early_tool(opened_BN, counted_BN, calls_B)
    p_B = any_of(Event(*(part.detach() for part in opened_BN)), counted_BN).log_p.exp()
    there_B = counted_BN.any(1)
    metrics = {
        name: (p_B.masked_fill(~rows_B, 0).sum(), rows_B.sum())
        for name, rows_B in (("early_call", calls_B & there_B), ("needless_call", ~calls_B & there_B))
    }
    return Term(found.called + found.refrained, NAME, weight), metrics


def _windows(
    values_BT: Tensor, batch: Batch, visible: Visible, markers: Markers, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of [B, T, ...] what predicts the first `size` tokens of each answer [B, N, ...]; where a call may open
    there [B, N]: up to the first token of the row's own, but for prose that says an opener; and the rows that
    have one [B]."""
    class_BT = placed(batch, visible, batch.classes_BA)
    answer_BT = class_BT != IGNORE
    call_BT = torch.isin(class_BT, torch.tensor(CALL_KINDS, device=class_BT.device))
    before_BT = call_BT.cumsum(1) - call_BT.long() == 0
    openers_J = torch.tensor(markers.openers, device=class_BT.device)
    free_BT = answer_BT & before_BT & (call_BT | ~torch.isin(visible.labels_BT, openers_J))
    end = answer_BT.shape[1]
    first_B = torch.where(answer_BT, torch.arange(end, device=class_BT.device), end).amin(1)
    # column i predicts visible token i, where `window` reads states that predict the token after them
    at = first_B + 1, torch.full_like(first_B, end + 1)
    values_BN, inside_BN = window(values_BT, *at, size)
    return values_BN, inside_BN & window(free_BT, *at, size)[0], call_BT.any(1)
