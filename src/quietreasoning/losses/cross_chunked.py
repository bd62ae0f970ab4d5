"""`cross_vocabulary` from last hidden states, some rows of logits at a time.

Chunks of text go through both heads in groups; the student's head runs again in the backward pass, so that no
more than two [chunk, V] are ever alive.
Shapes: N and M states of teacher and student, D and E their widths, C chunks of text, R rows of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quietreasoning.losses.cross_vocabulary import Chunks, Crossed, SharedIds, cross_vocabulary
from quietreasoning.losses.divergence import Head
from quietreasoning.losses.kd import Divergence


def chunked_cross(
    taught_ND: Tensor,
    teacher: Head,
    hidden_ME: Tensor,
    student: Head,
    chunks: Chunks,
    shared: SharedIds,
    choice: Divergence,
    *,
    chunk: int = 1024,
) -> Crossed:
    """The sums of `cross_vocabulary`, with at most `chunk` rows of logits of either side at a time; a chunk
    of text that has more is a group by itself. The teacher gets no gradient; no chunks are zeros with one.
    ValueError where states and rows do not fit, or chunk < 1."""
    states = (taught_ND, chunks.taught_next_N), (hidden_ME, chunks.student_next_M)
    if any(len(hidden) != len(following) for hidden, following in states) or chunk < 1:
        rows = [(len(hidden), len(following)) for hidden, following in states]
        raise ValueError(f"states and the ids that follow: {rows}, chunk={chunk}; they must fit")

    def part(taught_RD: Tensor, hidden_RE: Tensor, some: Chunks) -> Crossed:
        with torch.no_grad():
            taught_RV = teacher(taught_RD)
        return cross_vocabulary(taught_RV, student(hidden_RE), some, shared, choice)

    none = hidden_ME.flatten()[:0].sum().to(torch.promote_types(hidden_ME.dtype, torch.float32))
    count = torch.zeros((), dtype=torch.int64, device=hidden_ME.device)
    total = Crossed(none, none, none, count, count)
    for own_C in groups(chunks, chunk):
        some, taught_R, student_R = gathered(chunks, own_C)
        states = taught_ND.detach()[taught_R], hidden_ME[student_R], some
        found = part(*states) if len(own_C) == len(chunks) else checkpoint(part, *states, use_reentrant=False)
        total = Crossed(*(a + b for a, b in zip(total, found, strict=True)))
    return total


def groups(chunks: Chunks, most: int) -> Iterator[Tensor]:
    """The chunks [C] in their order, in groups of at most `most` rows of either side, or of one chunk."""
    counts = ((rows >= 0).sum(1) for rows in (chunks.taught_CK, chunks.student_CL))
    size_C = torch.stack(list(counts)).amax(0).tolist()
    first = held = 0
    for at, size in enumerate(size_C):
        if at > first and held + size > most:
            yield torch.arange(first, at, device=chunks.taught_CK.device)
            first, held = at, 0
        held += size
    if size_C:
        yield torch.arange(first, len(size_C), device=chunks.taught_CK.device)


def gathered(chunks: Chunks, own_C: Tensor) -> tuple[Chunks, Tensor, Tensor]:
    """(some chunks over the rows that they read alone, those rows of the teacher [R], and of the student)."""
    sides = []
    for rows_CK, following_N in (
        (chunks.taught_CK[own_C], chunks.taught_next_N),
        (chunks.student_CL[own_C], chunks.student_next_M),
    ):
        used_CK = rows_CK >= 0
        rows_R = rows_CK[used_CK]
        place_CK = torch.full_like(rows_CK, -1)
        place_CK[used_CK] = torch.arange(len(rows_R), device=rows_R.device)
        sides.append((place_CK, following_N[rows_R], rows_R))
    (taught_CK, taught_next, taught_R), (student_CL, student_next, student_R) = sides
    return Chunks(taught_CK, student_CL, taught_next, student_next), taught_R, student_R
