"""Distillation and cross-entropy from last hidden states, some rows at a time: no [N, V] is ever made.

Each chunk of rows passes through head and losses, and the gradients with respect to hidden states and head
are taken in the same pass, while its logits are there (the idea of Liger, arXiv 2410.10989). The head is a
callable, so that bias, softcap, scale, tied weights and adapters need no code here.
Shapes: N positions, M those that count, C those of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quietreasoning.losses.divergence import Head
from quietreasoning.losses.kd import Divergence
from quietreasoning.losses.kd_rows import Rows, Told, facts, plan
from quietreasoning.losses.kd_targets import Teacher

HELD_CPU, HELD = 2**23, 2**27  # numbers in the logits of a chunk: 32 MiB of fp32, and 512


class Distilled(NamedTuple):
    """Sums over positions. `total` is kd + ce; with `joint` it alone has a gradient."""

    total: Tensor
    kd: Tensor  # sum of weight * divergence, nats
    ce: Tensor  # sum of weight * -log q(label), nats, at T = 1
    kd_mass: Tensor  # sum of the weights in kd: what to divide it by
    ce_mass: Tensor
    kd_rows: int  # positions in kd
    ce_rows: int
    entropy: Tensor  # of the student at T = 1, over the positions in kd; 0 without `metrics`, as the next two
    agree: Tensor  # positions in kd where student and teacher have the same arg max
    hits: Tensor  # positions in ce whose label the arg max hits


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows to hold at a time, 16 to 1024. An accelerator needs many to be busy; a CPU is as fast or
    faster with those that its caches hold, until the products of few rows are slow."""
    held = HELD_CPU if device.type == "cpu" else HELD
    return min(max(held // vocabulary, 16), 1024)


def chunked_kd(
    hidden_ND: Tensor,
    head: Head,
    parameters: Iterable[Tensor],
    teacher: Teacher,
    labels_N: Tensor | None,
    choice: Divergence,
    *,
    kd_weight_N: Tensor | None = None,
    ce_weight_N: Tensor | None = None,
    temperature_N: Tensor | None = None,
    chunk: int = 1024,
    joint: bool = False,
    metrics: bool = False,
    ignore: int = -100,
) -> Distilled:
    """Sums of the divergence from `teacher` and of the labels' cross-entropy, both from one pass of the head.

    hidden_ND[i] predicts labels_N[i]: nothing is shifted here. One mask for both sums: a label `ignore` is in
    neither, whatever its weight (labels None: no cross-entropy, and the weights alone say). Weights [N] are 1
    where None, and get no gradient. Rows that are in no sum cost no product and may hold anything.

    head: [C, D] -> logits [C, V], row by row, softcap and scale included; called once for each chunk.
    parameters: every tensor with a gradient that the head reads. Merged weights may be given as they are
    (their own graph is left alone), or merged inside the head.

    Up to `chunk` rows the plain graph is used, which is faster there and keeps a chunk's logits until
    backward. Above that each sum has its own gradient, because two sums are later divided by two counts: in
    all five head products a row, and twice the head's gradient in memory, beside three and once for `joint`,
    where kd and ce are for the log and the weights must say all (first order only). metrics: some more
    passes over the logits.

    ValueError where shapes do not fit, the teacher cannot serve `choice`, or the head reads a tensor with a
    gradient that is not among the parameters, which would be lost.
    """
    known = tuple({id(each): each for each in parameters}.values())  # a tied weight named twice counts once
    _check(hidden_ND, teacher, (labels_N, kd_weight_N, ce_weight_N, temperature_N), chunk)
    teacher.check(choice, temperature_N)
    job = plan(hidden_ND, teacher, labels_N, choice, kd_weight_N, ce_weight_N, temperature_N, ignore)
    grads = torch.is_grad_enabled() and any(each.requires_grad for each in (hidden_ND, *known))
    if grads and len(job.order_M) > chunk:
        *sums, seen = _Chunks.apply(head, job, chunk, joint, metrics, hidden_ND, *known)
        total = sums[0] if joint else sums[0] + sums[1]
        kd, ce = seen[:2] if joint else sums
    else:
        kd, ce, seen = _plain(head, job, chunk, metrics, hidden_ND, known)
        total = kd + ce
        kd, ce = (kd.detach(), ce.detach()) if joint else (kd, ce)
    masses = [each.sum() for each in (job.kd_weight_K, job.ce_weight_E)]
    return Distilled(total, kd, ce, *masses, len(job.kd_weight_K), len(job.ce_weight_E), *seen[2:])


def _plain(
    head: Head, job: Rows, chunk: int, metrics: bool, hidden_ND: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Through torch's own graph, or with none at all."""
    # a sum of nothing: zero, on the graph, and no NaN from rows that may hold anything
    zero = sum(each.flatten()[:0].sum() for each in (hidden_ND, *parameters) if each.requires_grad)
    kd = ce = job.kd_weight_K.new_zeros(()) + zero
    seen = job.kd_weight_K.new_zeros(5)
    for start in range(0, len(job.order_M), chunk):
        rows_C = job.order_M[start : start + chunk]
        hidden_CD = hidden_ND.index_select(0, rows_C)
        logits_CV = _logits(head, hidden_CD, (hidden_CD, *parameters))
        part = job.chunk(start, start + len(rows_C))
        told = part.kd(logits_CV, metrics), part.ce(logits_CV, metrics)
        kd, ce = (one if own is None else one + own.total for one, own in zip((kd, ce), told, strict=True))
        seen += facts(*told, seen)
    return kd, ce, seen


class _Chunks(torch.autograd.Function):
    """Returns (kd, ce, facts), or (kd + ce, facts) if joint; facts as in `Part.facts`."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        job: Rows,
        chunk: int,
        joint: bool,
        metrics: bool,
        hidden_ND: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[5:]
        gradients = [_Gradients(hidden_ND, parameters, wanted) for _ in range(1 if joint else 2)]
        seen = job.kd_weight_K.new_zeros(5)
        for start in range(0, len(job.order_M), chunk):
            rows_C = job.order_M[start : start + chunk]
            with torch.enable_grad():
                hidden_CD = hidden_ND.detach()[rows_C].requires_grad_(wanted[0])
                logits_CV = _logits(head, hidden_CD, (hidden_CD, *parameters))
            part = job.chunk(start, start + len(rows_C))
            kd, slope_CV = _slope(part.kd, logits_CV, metrics)
            if slope_CV is not None and not joint:
                gradients[0].add(rows_C, hidden_CD, logits_CV, slope_CV, keep=True)
                slope_CV = None
            ce, slope_CV = _slope(part.ce, logits_CV, metrics, slope_CV)
            if slope_CV is not None:
                gradients[-1].add(rows_C, hidden_CD, logits_CV, slope_CV)
            seen += facts(kd, ce, seen)
        ctx.save_for_backward(*(each for one in gradients for each in one.done()))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(seen)
        sums = (seen[0] + seen[1],) if joint else (seen[0].clone(), seen[1].clone())
        return *sums, seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        *upstream, _ = upstream
        width = len(ctx.saved_tensors) // len(upstream)
        found: list[Tensor | None] = [None] * width
        for index, slope in enumerate(upstream):
            for place, own in enumerate(ctx.saved_tensors[index * width : (index + 1) * width]):
                if slope is not None and own is not None:
                    scaled = own * slope.to(own.dtype)
                    found[place] = scaled if found[place] is None else found[place].add_(scaled)
        return *[None] * 5, *found


class _Gradients:
    """The gradient of one sum, gathered over chunks: in fp32, since a bf16 sum forgets small parts."""

    def __init__(self, hidden_ND: Tensor, parameters: Sequence[Tensor], wanted: Sequence[bool]) -> None:
        self.hidden_ND = torch.zeros_like(hidden_ND) if wanted[0] else None
        self.leaves = [each for each, want in zip(parameters, wanted[1:], strict=True) if want]
        self.places = [place for place, want in enumerate(wanted) if place and want]
        self.sums: list[Tensor | None] = [None] * len(wanted)

    def add(
        self, rows_C: Tensor, hidden_CD: Tensor, logits_CV: Tensor, slope_CV: Tensor, *, keep: bool = False
    ) -> None:
        leaves = self.leaves if self.hidden_ND is None else [*self.leaves, hidden_CD]
        if not logits_CV.requires_grad:  # the head reads none of them
            return
        with torch.autocast(logits_CV.device.type, enabled=False):  # each product in what its forward ran in
            found = torch.autograd.grad(logits_CV, leaves, slope_CV, retain_graph=keep, allow_unused=True)
        if self.hidden_ND is not None and found[-1] is not None:
            self.hidden_ND[rows_C] = found[-1]
        for place, part in zip(self.places, found, strict=False):
            if part is not None:
                own = self.sums[place]
                if own is None:  # a copy: two leaves may have been given one tensor
                    own = torch.zeros_like(part, dtype=torch.promote_types(part.dtype, torch.float32))
                self.sums[place] = own.add_(part)

    def done(self) -> list[Tensor | None]:
        for place, leaf in zip(self.places, self.leaves, strict=True):
            own = self.sums[place]
            self.sums[place] = None if own is None else own.to(leaf.dtype)
        return [self.hidden_ND, *self.sums[1:]]


def _slope(
    loss: Callable[[Tensor, bool], Told | None],
    logits_CV: Tensor,
    metrics: bool,
    before_CV: Tensor | None = None,
) -> tuple[Told | None, Tensor | None]:
    """(what the loss tells, its gradient [C, V] added to one from before); the loss's graph is gone."""
    leaf_CV = logits_CV.detach().requires_grad_()
    with torch.enable_grad():
        told = loss(leaf_CV, metrics)
    if told is None:
        return None, before_CV
    (slope_CV,) = torch.autograd.grad(told.total, leaf_CV)
    told = told._replace(total=told.total.detach())
    return told, slope_CV if before_CV is None else before_CV.add_(slope_CV)


def _logits(head: Head, hidden_CD: Tensor, known: Sequence[Tensor]) -> Tensor:
    """The head's logits; ValueError where they are none, or take a gradient to a tensor that is not known."""
    logits_CV = head(hidden_CD)
    if logits_CV.dim() != 2 or len(logits_CV) != len(hidden_CD):
        raise ValueError(f"the head made {tuple(logits_CV.shape)} of {tuple(hidden_CD.shape)}, not [C, V]")
    stops = {each.grad_fn for each in known if each.grad_fn is not None}
    leaves = {id(each) for each in known}
    seen, todo = set(stops), [logits_CV.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad" and id(node.variable) not in leaves:
            raise ValueError(
                f"the head reads a tensor {tuple(node.variable.shape)} with a gradient that is not among "
                "`parameters`; name it there, or its gradient is lost"
            )
        todo += [after for after, _ in node.next_functions]
    return logits_CV


def _check(hidden_ND: Tensor, teacher: Teacher, columns: Sequence[Tensor | None], chunk: int) -> None:
    rows = [len(teacher), *(len(each) for each in columns if each is not None)]
    if hidden_ND.dim() != 2 or any(count != len(hidden_ND) for count in rows):
        raise ValueError(
            f"hidden {tuple(hidden_ND.shape)}, and teacher, labels and weights of {rows} rows do not fit; "
            "give [N, D] and N of each"
        )
    if chunk < 1:
        raise ValueError(f"chunk={chunk} holds no row; give at least 1, or 1024 for the usual trade")
