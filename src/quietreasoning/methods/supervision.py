"""Gold steps as targets of thoughts: which tokens, which thoughts, which loss."""

from __future__ import annotations

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.contract import IGNORE, Batch
from quietreasoning.losses.next_token import next_token
from quietreasoning.nn.latents import StepDecoder


def step_targets(batch: Batch, target: str, blocks: int, width: int, *, repeat_last: bool) -> Tensor:
    """Ids [B, blocks, width]: the first `width` tokens of each step ("step") or of its result ("result").

    Steps beyond the last block have no thought. Blocks beyond the last step say the last step again
    (`repeat_last`: the thought holds what it found) or are free (IGNORE).
    """
    source_BKS = batch.results_BKR if target == "result" else batch.steps_BKS
    rows, steps, length = source_BKS.shape
    target_BJW = source_BKS.new_full((rows, blocks, width), IGNORE)
    shared, length = min(steps, blocks), min(length, width)
    target_BJW[:, :shared, :length] = source_BKS[:, :shared, :length]
    if repeat_last and steps:
        count_B = (batch.steps_BKS != IGNORE).any(-1).sum(1)
        last_BS = source_BKS[torch.arange(rows), (count_B - 1).clamp(min=0)]
        beyond_BJ = torch.arange(blocks, device=source_BKS.device)[None] >= count_B[:, None]
        target_BJW[:, :, :length] = torch.where(
            beyond_BJ[:, :, None], last_BS[:, None, :length], target_BJW[:, :, :length]
        )
    return target_BJW


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
