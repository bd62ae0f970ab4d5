"""What every method does with tokens: lay out the visible part, read and score it.

Shapes: B rows, T visible tokens, D width, K thoughts. Ids are padded with IGNORE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from quietreasoning.backbone import Backbone, States, role_of
from quietreasoning.config import Settings
from quietreasoning.contract import IGNORE, Batch, Markers, Role
from quietreasoning.losses.next_token import next_token


class AnswerWeights(Settings):
    answer: float = Field(1.0, gt=0)
    """Cross-entropy of the answer tokens."""


@dataclass(frozen=True)
class Visible:
    """The tokens after prompt and thoughts: input of the last forward and its labels."""

    ids_BT: Tensor
    role_BT: Tensor
    labels_BT: Tensor


def visible_part(batch: Batch, markers: Markers, first_step: int | None) -> Visible:
    """Steps from `first_step` on, answer prefix, answer; None leaves out all steps.

    Without visible steps the answer prefix is given, not predicted, so it is no label.
    """
    prefix_BM = prefix_ids(markers, len(batch), batch.answer_BA.device)
    pieces = [(prefix_BM, Role.MARKER), (batch.answer_BA, Role.ANSWER)]
    if first_step is not None:
        pieces.insert(0, (batch.steps_BKS[:, first_step:].flatten(1), Role.STEP))
    ids_BT = torch.cat([ids for ids, _ in pieces], 1)
    role_BT = torch.cat([role_of(ids, role) for ids, role in pieces], 1)
    if first_step is not None:  # steps differ in number and length: close the gaps, stably
        order_BT = (ids_BT == IGNORE).to(torch.uint8).argsort(dim=1, stable=True)
        longest = int((ids_BT != IGNORE).sum(1).max())
        ids_BT = ids_BT.gather(1, order_BT)[:, :longest]
        role_BT = role_BT.gather(1, order_BT)[:, :longest]
    given = (role_BT == Role.MARKER) & (first_step is None)
    return Visible(ids_BT, role_BT, ids_BT.masked_fill(given, IGNORE))


def filler_embedding(backbone: Backbone, markers: Markers, device: torch.device) -> Tensor:
    """What stands for a thought without content [D]: the last token of the answer prefix."""
    return backbone.embed(torch.tensor(markers.answer_prefix[-1:], device=device))[0]


def count_labels(batch: Batch, markers: Markers, first_step: int | None) -> int:
    """How many labels `visible_part` holds."""
    answers = int((batch.answer_BA != IGNORE).sum())
    if first_step is None:
        return answers
    steps = int((batch.steps_BKS[:, first_step:] != IGNORE).sum())
    return answers + steps + len(markers.answer_prefix) * len(batch)


def score_visible(backbone: Backbone, hidden_BTD: Tensor, visible: Visible) -> tuple[Tensor, dict]:
    """Cross-entropy sum of the labels, given the states that predict them, and the metric of the answer.

    hidden_BTD: column i predicts visible token i, so it is the state one position earlier.
    """
    counted_BT = visible.labels_BT != IGNORE
    total, hits, count = next_token(backbone.logits(hidden_BTD[counted_BT]), visible.labels_BT[counted_BT])
    return total, {"token_accuracy": (hits.float(), count)}


def read_prompt(backbone: Backbone, prompt_BP: Tensor) -> States:
    """Read prompts into a fresh cache."""
    return backbone(prompt_BP, role_of(prompt_BP, Role.PROMPT), keep=True)


def read_given(backbone: Backbone, prompt_BP: Tensor, markers: Markers) -> States:
    """Read prompts and the answer prefix behind each into a fresh cache."""
    prefix_BM = prefix_ids(markers, len(prompt_BP), prompt_BP.device)
    roles = role_of(prompt_BP, Role.PROMPT), role_of(prefix_BM, Role.MARKER)
    return backbone(torch.cat([prompt_BP, prefix_BM], 1), torch.cat(roles, 1), keep=True)


def read_visible(backbone: Backbone, prompt_BP: Tensor, visible: Visible) -> Tensor:
    """States [B, T, D] that predict each visible token behind its prompt."""
    ids_BT = torch.cat([prompt_BP, visible.ids_BT[:, :-1]], 1)
    role_BT = torch.cat([role_of(prompt_BP, Role.PROMPT), visible.role_BT[:, :-1]], 1)
    return backbone(ids_BT, role_BT).hidden_BTD[:, prompt_BP.shape[1] - 1 :]


def prefix_ids(markers: Markers, rows: int, device: torch.device) -> Tensor:
    """The answer prefix for every row [B, M]."""
    return torch.tensor(markers.answer_prefix, device=device).expand(rows, -1)


def mixed_inputs(
    backbone: Backbone, prompt_BP: Tensor | None, thoughts_BKD: Tensor, ids_BT: Tensor, role_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Embeddings and roles of [prompt,] thoughts and tokens, in this order."""
    thought_BK = torch.full(thoughts_BKD.shape[:2], int(Role.THOUGHT), device=ids_BT.device)
    embeds, roles = [thoughts_BKD, backbone.embed(ids_BT)], [thought_BK, role_BT]
    if prompt_BP is not None:
        embeds.insert(0, backbone.embed(prompt_BP))
        roles.insert(0, role_of(prompt_BP, Role.PROMPT))
    return torch.cat(embeds, 1), torch.cat(roles, 1)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Written rows of tokens as one tensor [B, T], padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORE] * (longest - len(row))] for row in rows], device=device)


def starts(inside_BT: Tensor) -> Tensor:
    """The first place of each run of places [B, T]."""
    return inside_BT & ~torch.nn.functional.pad(inside_BT, (1, 0))[:, : inside_BT.shape[1]]
