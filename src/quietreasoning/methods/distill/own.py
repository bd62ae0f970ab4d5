"""Text of the student's own, and what the teacher says of it (on-policy distillation, arXiv 2306.13649).

    own = sum over texts of mean_t D( p_teacher(. | x, y_<t), p_student(. | x, y_<t) ),  y ~ p_student(. | x)

The whole law of both is compared at each token, so the gradient is exact given the text; how the text came
about carries none. A text counts once, whatever its length, since its length is not known before it is
written. Shapes: B rows, R rows chosen, T tokens, N positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone, States, last_hidden, role_of
from quietreasoning.backbone.sampling import draw, sample
from quietreasoning.contract import IGNORE, Batch, Markers, Role, Term
from quietreasoning.losses.kd import Divergence
from quietreasoning.losses.kd_chunked import chunked_kd
from quietreasoning.losses.kd_targets import StateTeacher
from quietreasoning.methods.distill import length
from quietreasoning.methods.distill.settings import DistillConfig, OwnSettings
from quietreasoning.methods.grpo import still, uniforms
from quietreasoning.methods.sequence import Visible, padded, prefix_ids, visible_part

UNIT = "own text"


class Pupil(Protocol):
    """What is asked of the method: its two models, and how they read."""

    backbone: Backbone
    teacher: Backbone
    config: DistillConfig
    markers: Markers
    first_step: int | None

    def read(
        self, backbone: Backbone, prompt_BP: Tensor, visible: Visible, *, learns: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """States that predict each visible token."""

    def ready(self, backbone: Backbone, prompt_BP: Tensor) -> States:
        """A model before the first token of its own."""


def chosen(keys_B: Tensor, config: OwnSettings | None) -> Tensor:
    """Rows [B] that learn from their own text, by their keys alone: anew each time a row returns."""
    if config is None:
        return torch.zeros_like(keys_B, dtype=torch.bool)
    return (uniforms(keys_B, 1)[:, 0] < config.share).to(keys_B.device)


def terms(
    method: Pupil, batch: Batch, own_B: Tensor, weight: Callable[[str], float]
) -> tuple[dict[str, Term], dict[str, tuple[Tensor, Tensor]]]:
    """The terms of the chosen rows, and how long and how often unfinished their texts are."""
    config, shorter = method.config.own, method.config.length
    names = ("own",) if shorter is None else ("own", "length")
    if not own_B.any():
        zero = sum(p.flatten()[:0].sum() for p in method.backbone.parameters() if p.requires_grad)
        return {name: Term(zero, UNIT, weight(name)) for name in names}, {}
    prompt_RP, keys_R = batch.prompt_BP[own_B], batch.keys_B[own_B]
    with still(method):
        ids_RT = write(method, prompt_RP, keys_R)
    given = 0 if method.config.steps else len(method.markers.answer_prefix)
    role_RT = role_of(ids_RT, Role.STEP if method.config.steps else Role.ANSWER)
    if given:
        prefix_RM = prefix_ids(method.markers, len(ids_RT), ids_RT.device)
        ids_RT = torch.cat([prefix_RM, ids_RT], 1)
        role_RT = torch.cat([torch.full_like(prefix_RM, int(Role.MARKER)), role_RT], 1)
    labels_RT = ids_RT.clone()
    labels_RT[:, :given] = IGNORE
    text = Visible(ids_RT, role_RT, labels_RT)
    counted_RT = labels_RT != IGNORE
    hidden_RTD, _ = method.read(method.backbone, prompt_RP, text)
    taught_RTD, _ = method.read(method.teacher, prompt_RP, text, learns=False)
    length_R1 = counted_RT.sum(1, keepdim=True)
    found = chunked_kd(
        hidden_RTD[counted_RT],
        method.backbone.logits,
        [p for p in method.backbone.model.get_output_embeddings().parameters() if p.requires_grad],
        StateTeacher(taught_RTD[counted_RT], method.teacher.logits),
        None,
        Divergence(beta=config.beta),
        kd_weight_N=(1 / length_R1).expand_as(counted_RT)[counted_RT],
        chunk=method.chunk,
    )
    rows = own_B.sum()
    ended_R = (ids_RT == method.markers.eos).any(1)
    metrics = {"own_length": (length_R1.sum(), rows), "own_unfinished": ((~ended_R).sum(), rows)}
    made = {"own": Term(found.kd, UNIT, weight("own"))}
    if shorter is not None:
        rows_R = own_B.nonzero()[:, 0].tolist()
        needed, gold = length.required(batch), visible_part(batch, method.markers, method.first_step)
        late, told = length.total(
            method.backbone,
            method.markers.eos,
            hidden_RTD[:, given:],
            labels_RT[:, given:],
            (gold.labels_BT != IGNORE).sum(1)[own_B],
            [needed[row] for row in rows_R],
            shorter,
            method.chunk,
        )
        made["length"], metrics["own_overlong"] = Term(late, UNIT, weight("length")), (told, rows)
    return made, metrics


@torch.no_grad()
def write(method: Pupil, prompt_RP: Tensor, keys_R: Tensor) -> Tensor:
    """A text of each row [R, T], end of sequence included, padded with IGNORE."""
    config, limit = method.config.own, method.config.own.max_tokens
    uniforms_RN = uniforms(keys_R, 1 + 2 * limit)[:, 1:].to(prompt_RP.device)
    student = method.ready(method.backbone, prompt_RP)
    if config.interleave is not None:
        rows = interleaved(method, prompt_RP, student, uniforms_RN)
    else:
        rows = sample(
            method.backbone,
            student.past,
            last_hidden(student),
            max_new_tokens=limit,
            eos=method.markers.eos,
            temperature=config.temperature,
            uniforms_BN=uniforms_RN,
        )
    return padded(rows, prompt_RP.device)


def interleaved(method: Pupil, prompt_RP: Tensor, student: States, uniforms_RN: Tensor) -> list[list[int]]:
    """The student draws, and the teacher draws in its place wherever that token is not among the teacher's
    `interleave` likeliest. Both read every token."""
    config = method.config.own
    teacher = method.ready(method.teacher, prompt_RP)
    open_R = torch.ones(len(prompt_RP), dtype=torch.bool, device=prompt_RP.device)
    columns: list[Tensor] = []
    for i in range(config.max_tokens):
        taught_RV = method.teacher.logits(last_hidden(teacher))
        token_R = draw(
            method.backbone.logits(last_hidden(student)), config.temperature, uniforms_RN[:, 2 * i]
        )
        other_R = draw(taught_RV, config.temperature, uniforms_RN[:, 2 * i + 1])
        rank_R = (taught_RV > taught_RV.gather(1, token_R[:, None])).sum(1)
        token_R = torch.where(rank_R < config.interleave, token_R, other_R)
        columns.append(token_R.masked_fill(~open_R, IGNORE))
        open_R = open_R & (token_R != method.markers.eos)
        if not open_R.any():
            break
        next_R1 = token_R.masked_fill(~open_R, IGNORE)[:, None]
        role_R1 = role_of(next_R1, Role.STEP)
        student = method.backbone(next_R1, role_R1, student.past)
        teacher = method.teacher(next_R1, role_R1, teacher.past)
    return [[id for id in row if id != IGNORE] for row in torch.stack(columns, 1).tolist()]
