"""Gold steps as targets of thoughts: which tokens, which thoughts, which loss."""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.contract import IGNORE, Batch
from quietreasoning.losses.next_token import next_token
from quietreasoning.nn.latents import StepDecoder


def step_targets(
    batch: Batch, target: str, blocks: int, width: int, *, repeat_last: bool, align: str = "first"
) -> Tensor:
    """Ids [B, blocks, width]: the first `width` tokens of each step ("step") or of its result ("result").

    Steps beyond the last block have no thought. Blocks beyond the last step say the last step again
    (`repeat_last`: the thought holds what it found) or are free (IGNORE). align="last" moves all to the
    right, so that the last step stands in the last block, as a visible chain stands before its answer; the
    free or repeating blocks then come first, and say the first step.
    """
    source_BKS = batch.results_BKR if target == "result" else batch.steps_BKS
    rows, steps, length = source_BKS.shape
    target_BJW = source_BKS.new_full((rows, blocks, width), IGNORE)
    if not steps:
        return target_BJW
    length = min(length, width)
    step_BJ, due_BJ = _placed(batch, blocks, align)
    said_BJS = source_BKS[torch.arange(rows)[:, None], step_BJ]
    wanted_BJ1 = ((due_BJ | repeat_last) & (step_BJ < steps))[..., None]
    target_BJW[:, :, :length] = said_BJS[:, :, :length].masked_fill(~wanted_BJ1, IGNORE)
    return target_BJW


def _placed(batch: Batch, blocks: int, align: str) -> tuple[Tensor, Tensor]:
    """For each block [B, blocks] the step that stands there, and whether it is the step's own place; where it
    is not, the nearest step."""
    count_B1 = (batch.steps_BKS != IGNORE).any(-1).sum(1, keepdim=True)
    step_BJ = torch.arange(blocks, device=count_B1.device).expand(len(count_B1), -1)
    if align == "last":
        step_BJ = step_BJ - (blocks - count_B1).clamp(min=0)
    due_BJ = (step_BJ >= 0) & (step_BJ < count_B1)
    return step_BJ.clamp(min=0).minimum((count_B1 - 1).clamp(min=0)), due_BJ


def due_targets(
    batch: Batch, target_BJW: Tensor, supervise: str, times: int, *, align: str = "first"
) -> list[Tensor]:
    """What of `target_BJW` is asked after each of `times` loops, IGNORE elsewhere.

    All of it after the "last" loop or after "all"; or block j from loop j on ("reached"), which is when a
    chain of one step a loop can first have reached it; with align="last" the block of step j.
    """
    if supervise != "reached":
        none = torch.full_like(target_BJW, IGNORE)
        return [target_BJW if supervise == "all" or i == times - 1 else none for i in range(times)]
    blocks = target_BJW.shape[1]
    step_BJ = torch.arange(blocks, device=target_BJW.device)[None]
    if align == "last":
        step_BJ = _placed(batch, blocks, align)[0]
    first_BJ = step_BJ.clamp(max=times - 1)
    return [target_BJW.masked_fill((first_BJ > i)[..., None], IGNORE) for i in range(times)]


def score_slots(backbone: Backbone, hidden_BJWD: Tensor, target_BJW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each thought's state predicts its own token: sum, hits, count."""
    counted = target_BJW != IGNORE
    return next_token(backbone.logits(hidden_BJWD[counted]), target_BJW[counted])


def score_decoded(
    backbone: Backbone, decoder: StepDecoder, hidden_BJD: Tensor, target_BJS: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One thought's state predicts all tokens of its step through the decoder: sum, hits, count."""
    has_step_BJ = (target_BJS != IGNORE).any(-1)
    if not has_step_BJ.any():  # no row of this lane has a step, and a GRU refuses to read nothing
        none = torch.zeros((), dtype=torch.long, device=target_BJS.device)
        return empty_sum(hidden_BJD), none, none
    target_NS = target_BJS[has_step_BJ]
    hidden_NSD = decoder(hidden_BJD[has_step_BJ], backbone.embed(target_NS))
    counted_NS = target_NS != IGNORE
    return next_token(backbone.logits(hidden_NSD[counted_NS]), target_NS[counted_NS])


def count_targets(target: Tensor) -> int:
    return int((target != IGNORE).sum())


def empty_sum(like: Tensor) -> Tensor:
    """A zero that still carries a graph, so that a batch without targets trains like any other."""
    return like.sum() * 0


def embedding_rms(backbone: Backbone) -> float:
    """Root mean square of the token embeddings: the size a latent should have."""
    with torch.no_grad():
        table_VD = backbone.embed(torch.arange(backbone.vocab_size))
        if table_VD.is_meta:  # sizes alone are asked for, as by quiet plan
            return 1.0
        return float(table_VD.float().pow(2).mean().sqrt())
