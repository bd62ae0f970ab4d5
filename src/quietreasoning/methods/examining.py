"""What can be read of thoughts: what they say, what the model would have said, and what they are worth.

Shapes: B rows, K thoughts, T visible tokens, L tokens of a continuation, X branches, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, States, last_hidden, role_of
from quietreasoning.contract import IGNORE, Examined, Markers, Role
from quietreasoning.losses.policy import token_log_probs
from quietreasoning.losses.rows import statistic
from quietreasoning.methods.sequence import Visible


def examine_latents(
    backbone: Backbone,
    markers: Markers,
    prompt: States,
    said_BKD: Tensor,
    visible: Visible,
    with_BTD: Tensor,
    without_BTD: Tensor,
) -> Examined:
    """One thought a row: K latents, read by the head as K tokens.

    said_BKD: states that the head reads. with_BTD, without_BTD: states of the latents and the visible tokens
    but the last, with the thoughts as they are and zeroed. The score is the mean log-probability of what was
    read; the utility is that of the labels with the thoughts less that without, summed.
    """
    logp_BKV = statistic(backbone.logits(said_BKD)).log_softmax(-1)
    score_BK, read_BK = logp_BKV.max(-1)
    latents, rows = said_BKD.shape[1], len(said_BKD)
    past = prompt.past.fork()

    def step(token_B: Tensor) -> Tensor:
        nonlocal past
        ids_B1 = token_B[:, None]
        states = backbone(ids_B1, role_of(ids_B1, Role.STEP), past)
        past = states.past
        return last_hidden(states)

    plain_BL = continued(backbone, markers, last_hidden(prompt), step, latents)
    before_B1D = prompt.hidden_BTD[:, -1:]
    worth = []
    for read_BTD in (with_BTD, without_BTD):
        predicting_BTD = torch.cat([before_B1D, read_BTD], 1)[:, latents:]
        worth.append(label_log_probs(backbone, predicting_BTD, visible.labels_BT))
    return Examined(
        row=list(range(rows)),
        tokens=read_BK.tolist(),
        continuation=plain_BL.tolist(),
        score=score_BK.mean(1).tolist(),
        utility=(worth[0] - worth[1]).tolist(),
    )


def label_log_probs(backbone: Backbone, hidden_BTD: Tensor, labels_BT: Tensor) -> Tensor:
    """log p of each row's labels, summed [B]; IGNORE does not count."""
    counted_BT = labels_BT != IGNORE
    logp_C = token_log_probs(backbone.logits(hidden_BTD[counted_BT]), labels_BT[counted_BT])
    return logp_C.new_zeros(labels_BT.shape).masked_scatter(counted_BT, logp_C).sum(1)


def continued(
    backbone: Backbone, markers: Markers, hidden_XD: Tensor, step: Callable[[Tensor], Tensor], length: int
) -> Tensor:
    """`length` tokens [..., L] that the model says next, the likeliest ones, without thinking tokens and end
    of sequence. hidden_XD: states [..., D] that predict the first; step: from tokens to the states behind."""
    closed = torch.tensor([markers.eos, *markers.thinking], device=hidden_XD.device)
    said = []
    for i in range(length):
        logits_XV = backbone.logits(hidden_XD).index_fill(-1, closed, -torch.inf)
        said.append(logits_XV.argmax(-1))
        if i + 1 < length:
            hidden_XD = step(said[-1])
    empty_X0 = torch.zeros(*hidden_XD.shape[:-1], 0, dtype=torch.long, device=hidden_XD.device)
    return torch.stack(said, -1) if said else empty_X0
