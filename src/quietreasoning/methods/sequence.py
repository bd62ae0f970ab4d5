"""What every method does with tokens: lay out the visible part, score it, write it out greedily.

Shapes: B rows, T visible tokens, D width, K thoughts. Ids are padded with IGNORE.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from quietreasoning.backbone import Backbone, Past, States, last_hidden, role_of
from quietreasoning.config import Settings
from quietreasoning.contract import IGNORE, Batch, Markers, Response, Role
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


@torch.no_grad()
def greedy(
    backbone: Backbone,
    past: Past,
    hidden_BD: Tensor,
    *,
    max_new_tokens: int,
    eos: int,
    done: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Write the most likely tokens until end of sequence, `done(tokens so far)`, or the limit.

    A row that has ended feeds padding, which no other row sees: answers do not depend on the batch.
    `past` grows in place. Rows keep neither the end of sequence nor what comes after `done`.
    """
    rows: list[list[int]] = [[] for _ in range(len(hidden_BD))]
    open_B = torch.ones(len(hidden_BD), dtype=torch.bool, device=hidden_BD.device)
    for i in range(max_new_tokens):
        token_B = backbone.logits(hidden_BD).argmax(-1)
        for row, (token, is_open) in enumerate(zip(token_B.tolist(), open_B.tolist(), strict=True)):
            if not is_open:
                continue
            if token != eos:
                rows[row].append(token)
            open_B[row] = token != eos and not (done and done(rows[row]))
        if i + 1 == max_new_tokens or not open_B.any():
            break
        token_B1 = token_B.masked_fill(~open_B, IGNORE)[:, None]
        states = backbone(token_B1, role_of(token_B1, Role.STEP), past)
        hidden_BD, past = last_hidden(states), states.past
    return rows


def find(tokens: list[int], prefix: tuple[int, ...]) -> int | None:
    """Where `prefix` begins in `tokens`, or None."""
    for start in range(len(tokens) - len(prefix) + 1):
        if tuple(tokens[start : start + len(prefix)]) == prefix:
            return start
    return None


def respond(
    rows: list[list[int]],
    markers: Markers,
    *,
    given: bool,
    passes: int,
    latent_steps: int,
    started: float,
) -> Response:
    """A Response from written rows.

    given: the answer prefix was given before the first written token; else it is searched for, and
    a row that never wrote it has no answer. passes: sequential passes before the first written token.
    """
    prefix = markers.answer_prefix
    starts = [None if given else find(row, prefix) for row in rows]
    visible = [0 if given else len(row) if at is None else at for row, at in zip(rows, starts, strict=True)]
    if given:
        answers, spent = rows, [passes] * len(rows)
        tokens = [[*prefix, *row] for row in rows]
    else:
        answers = [
            [] if at is None else row[at + len(prefix) :] for row, at in zip(rows, starts, strict=True)
        ]
        spent = [
            passes + count + (0 if at is None else len(prefix))
            for count, at in zip(visible, starts, strict=True)
        ]
        tokens = rows
    milliseconds = (time.perf_counter() - started) * 1000
    return Response(tokens, answers, visible, spent, [latent_steps] * len(rows), milliseconds)


def refuse_control(method: str, control: str | None, allowed: tuple[str, ...]) -> None:
    if control is not None and control not in allowed:
        choices = ", ".join(allowed) or "none: it has no thoughts to corrupt"
        raise ValueError(f"control={control!r} does not apply to {method}; it takes {choices}")


def refuse_effort(method: str, effort: int | None) -> None:
    if effort is not None:
        raise ValueError(f"effort={effort} does not apply to {method}, which has no latent steps to vary")


def row_seeds(prompt_BP: Tensor) -> list[int]:
    """One seed a prompt, from its tokens alone, so that noise does not depend on the batch."""
    weights_P = torch.arange(prompt_BP.shape[1], 0, -1, device=prompt_BP.device)
    return (prompt_BP.clamp(min=0) * weights_P).sum(1).tolist()
