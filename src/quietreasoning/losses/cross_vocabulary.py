"""How far a student is from a teacher that reads the same text in other tokens.

The text is cut into chunks, the smallest stretches that are whole tokens of both. In a chunk that is one
token on both sides, and the same one, both distributions are held against each other over the ids that stand
for the same in both vocabularies, each with its own probability, and one bin for all others:

    exact = T^2 D( (p_i)_shared, p_rest || (q_i)_shared, q_rest )

Nothing is renormalised, so no probability is invented. What lies in the two last bins is compared sorted,
since its ids say nothing to the other side (Universal Logit Distillation, arXiv 2402.12030; the two together
as in General On-policy Logit Distillation, Hugging Face 2025):

    rest = T sum_r | p_(r) - q_(r) |, r the rank among the ids that are not shared

Any other chunk is one event, what stands there or anything else, whose probability is the product of those of
its tokens (the binarised divergence of arXiv 2503.20083):

    chunk = T^2 D( (P, 1 - P) || (Q, 1 - Q) ), log P = sum log p(token | text before)

With one tokenizer every chunk is one token, the rest is empty, and `exact` is `losses/kd.py`.
Shapes: N and M rows of logits, V and U ids, C chunks of at most K and L tokens, I shared ids.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from quietreasoning.losses.kd import FLOOR, Divergence, cooled, heat, measure
from quietreasoning.losses.rows import row_mean


@dataclass(frozen=True, eq=False)
class Chunks:
    """Which rows of logits predict the tokens of each chunk, in order; -1 where a chunk has fewer.

    taught_next_N, student_next_M: the id that stands in the text where each row of logits predicts; read at
    the rows of chunks alone.
    """

    taught_CK: Tensor
    student_CL: Tensor
    taught_next_N: Tensor
    student_next_M: Tensor

    @classmethod
    def of(
        cls, taught_C2: Tensor, student_C2: Tensor, taught_next_N: Tensor, student_next_M: Tensor
    ) -> Chunks:
        """From [first, end) of the rows of each chunk, of both sides."""
        return cls(_counted(taught_C2), _counted(student_C2), taught_next_N, student_next_M)

    def __len__(self) -> int:
        return len(self.taught_CK)

    def only(self, kept_C: Tensor) -> Chunks:
        return replace(self, taught_CK=self.taught_CK[kept_C], student_CL=self.student_CL[kept_C])

    def same(self, shared: SharedIds) -> Tensor:
        """Which are one token on both sides, and the same one, [C]."""
        first = self.taught_next_N[self.taught_CK[:, 0]], self.student_next_M[self.student_CL[:, 0]]
        single_C = (self.taught_CK[:, 1:] < 0).all(1) & (self.student_CL[:, 1:] < 0).all(1)
        return single_C & (shared.student_of_V[first[0]] == first[1])

    def to(self, device: torch.device | str) -> Chunks:
        return Chunks(*(getattr(self, field.name).to(device) for field in fields(self)))


class SharedIds:
    """Which ids of two vocabularies stand for the same.

    student_of_V: id of the teacher -> id of the student, or -1; no two have the same. student_size: ids of
    the student's tokenizer. Logits beyond either vocabulary (padded tables) are cut. ValueError for an id
    that is shared twice or is not there, and where none is shared.
    """

    def __init__(self, student_of_V: Tensor, student_size: int):
        self.student_of_V = student_of_V
        self.taught_I = (student_of_V >= 0).nonzero()[:, 0]
        self.student_I = student_of_V[self.taught_I]
        if not len(self.taught_I):
            raise ValueError("no id stands for the same in both vocabularies")
        counts_U = self.student_I.bincount(minlength=student_size)
        if len(counts_U) > student_size or counts_U.max() > 1:
            raise ValueError(
                f"student_of_V maps to ids beyond {student_size}, or two ids to one; each must have its own"
            )
        self.sizes = len(student_of_V), student_size
        self.taught_rest = (student_of_V < 0).nonzero()[:, 0]
        self.student_rest = (counts_U == 0).nonzero()[:, 0]

    def to(self, device: torch.device | str) -> SharedIds:
        return SharedIds(self.student_of_V.to(device), self.sizes[1])

    def cut(self, teacher_NV: Tensor, student_NU: Tensor) -> tuple[Tensor, Tensor]:
        """Both over the ids of their tokenizers; ValueError where one has fewer."""
        found = teacher_NV.shape[-1], student_NU.shape[-1]
        if found[0] < self.sizes[0] or found[1] < self.sizes[1]:
            raise ValueError(f"teacher and student have {found} logits, their tokenizers {self.sizes} ids")
        return teacher_NV[..., : self.sizes[0]], student_NU[..., : self.sizes[1]]


class Crossed(NamedTuple):
    """Sums over chunks that weigh something, and how many. `rest` is of the same chunks as `exact`."""

    exact: Tensor
    rest: Tensor
    chunk: Tensor
    exact_count: Tensor
    chunk_count: Tensor


def cross_vocabulary(
    teacher_NV: Tensor,
    student_MU: Tensor,
    chunks: Chunks,
    shared: SharedIds,
    choice: Divergence,
    weight_M: Tensor | None = None,
) -> Crossed:
    """The three sums in nats, over all chunks, from logits; the teacher gets no gradient.

    weight_M: of the student's rows; a chunk weighs the mean of its own. A chunk depends on its own rows
    alone, and what weighs nothing may hold anything. ValueError where logits, rows and ids do not fit.
    """
    _check(teacher_NV, student_MU, chunks)
    teacher_NV, student_MU = shared.cut(teacher_NV.detach(), student_MU)
    weight_C = _weights(chunks, weight_M, student_MU)
    chunks, weight_C = chunks.only(weight_C != 0), weight_C[weight_C != 0]
    same_C = chunks.same(shared)
    rows = chunks.taught_CK[same_C, 0], chunks.student_CL[same_C, 0]
    exact_S, rest_S = by_ids(teacher_NV[rows[0]], student_MU[rows[1]], shared, choice)
    events = (
        as_event(teacher_NV, chunks.taught_CK[~same_C], chunks.taught_next_N, choice.temperature),
        as_event(student_MU, chunks.student_CL[~same_C], chunks.student_next_M, choice.temperature),
    )
    chunk_E = measure(choice)(*events) * heat(choice, choice.temperature)
    return Crossed(
        (exact_S * weight_C[same_C]).sum(),
        (rest_S * weight_C[same_C]).sum(),
        (chunk_E * weight_C[~same_C]).sum(),
        same_C.sum(),
        (~same_C).sum(),
    )


def by_ids(
    teacher_NV: Tensor, student_NU: Tensor, shared: SharedIds, choice: Divergence
) -> tuple[Tensor, Tensor]:
    """(divergence [N] over shared ids and one bin of all others, L1 distance [N] of the others sorted).

    Where one side has no other ids those of the other side are cut, as `kd.divergence` cuts the longer of
    two tables: a bin that one side can never fill would be infinitely far.
    """
    temperature = choice.temperature
    teacher_NV, student_NU = cooled(teacher_NV.detach(), temperature), cooled(student_NU, temperature)
    taught_NB, student_NB = teacher_NV[:, shared.taught_I], student_NU[:, shared.student_I]
    rest_N = student_NB.new_zeros(len(student_NB))
    if len(shared.taught_rest) and len(shared.student_rest):
        taught_NR, student_NR = teacher_NV[:, shared.taught_rest], student_NU[:, shared.student_rest]
        rest_N = _sorted_distance(
            (taught_NR - teacher_NV.logsumexp(-1, keepdim=True)).exp(),
            (student_NR - student_NU.logsumexp(-1, keepdim=True)).exp(),
        )
        taught_NB = torch.cat([taught_NB, taught_NR.logsumexp(-1, keepdim=True)], 1)
        student_NB = torch.cat([student_NB, student_NR.logsumexp(-1, keepdim=True)], 1)
    return measure(choice)(taught_NB, student_NB) * heat(choice, temperature), rest_N * temperature


def as_event(logits_NV: Tensor, rows_CK: Tensor, next_N: Tensor, temperature: float = 1.0) -> Tensor:
    """log-probability of each chunk by the chain rule, and of anything else, [C, 2].

    rows_CK: rows of its tokens, -1 beyond; next_N: the id of each row's token. Anything else is added up
    from what is not the first token, not the second after the first, ...: 1 - P would lose its digits.
    """
    used_CK = rows_CK >= 0
    rows_P = rows_CK[used_CK]
    logits_PV, next_P1 = cooled(logits_NV[rows_P], temperature), next_N[rows_P][:, None]
    whole_P = logits_PV.logsumexp(-1)
    own_P = logits_PV.gather(1, next_P1)[:, 0] - whole_P
    other_P = (logits_PV.scatter(1, next_P1, FLOOR).logsumexp(-1) - whole_P).clamp(min=FLOOR)
    own_CK = own_P.new_zeros(used_CK.shape).masked_scatter(used_CK, own_P)
    other_CK = torch.full_like(own_CK, FLOOR).masked_scatter(used_CK, other_P)
    before_CK = own_CK.cumsum(1) - own_CK
    missed_C = (before_CK + other_CK).logsumexp(1)
    return torch.stack([own_CK.sum(1), missed_C], 1).clamp(min=FLOOR)


def _sorted_distance(p_NR: Tensor, q_NS: Tensor) -> Tensor:
    """L1 distance [N] of both from the largest on; the shorter one goes on with zeros."""
    longest = max(p_NR.shape[1], q_NS.shape[1])
    ranked = (x.sort(-1, descending=True).values for x in (p_NR, q_NS))
    p_NX, q_NX = (pad(x, (0, longest - x.shape[1])) for x in ranked)
    return (p_NX - q_NX).abs().sum(-1)


def following(ids_BT: Tensor) -> Tensor:
    """The id after each, flattened; 0 after the last and where there is padding, which no chunk reads."""
    return pad(ids_BT[:, 1:], (0, 1)).clamp(min=0).flatten()


def _counted(range_C2: Tensor) -> Tensor:
    """[first, end) -> first, first + 1, ... [C, K], -1 from `end` on."""
    longest = int((range_C2[:, 1] - range_C2[:, 0]).max()) if len(range_C2) else 1
    place_CK = range_C2[:, :1] + torch.arange(longest, device=range_C2.device)
    return torch.where(place_CK < range_C2[:, 1:], place_CK, -1)


def _weights(chunks: Chunks, weight_M: Tensor | None, like: Tensor) -> Tensor:
    if weight_M is None:
        return torch.ones(len(chunks), device=like.device)
    counted_CL = chunks.student_CL >= 0
    return row_mean(weight_M.detach()[chunks.student_CL.clamp(min=0)], counted_CL)


def _check(teacher_NV: Tensor, student_MU: Tensor, chunks: Chunks) -> None:
    for name, logits, following, rows in (
        ("teacher", teacher_NV, chunks.taught_next_N, chunks.taught_CK),
        ("student", student_MU, chunks.student_next_M, chunks.student_CL),
    ):
        if logits.dim() != 2 or len(logits) != len(following) or rows.dim() != 2 or not rows.shape[1]:
            raise ValueError(
                f"{name}: logits {tuple(logits.shape)}, ids {tuple(following.shape)} and rows of chunks "
                f"{tuple(rows.shape)} do not fit; give [N, V], [N] and [C, K], K at least 1"
            )
    counts = len(chunks.taught_CK), len(chunks.student_CL)
    if counts[0] != counts[1]:
        raise ValueError(f"{counts[0]} chunks of the teacher, {counts[1]} of the student; give pairs")
