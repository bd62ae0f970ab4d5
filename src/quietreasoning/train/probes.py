"""How the doctor looks at a method: record its forwards, vary its batch, jitter its weights, put all back.

Shapes: B rows, T positions of one backbone forward, D width, L flattened ids of one batch field.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from quietreasoning.contract import IGNORE, Batch, Method, Role, StepOutput
from quietreasoning.train.rng import kept_rng

ROOT, UNKNOWN = -1, -2


@dataclass(frozen=True)
class Pass:
    """One backbone forward: what went in, what came out, and which forward's cache it continued."""

    role_BT: Tensor
    inputs: Tensor  # ids [B, T] or embeddings [B, T, D]
    hidden_BTD: Tensor
    parent: int  # index of the forward whose cache it read; ROOT without one, UNKNOWN for a foreign cache


@dataclass(frozen=True)
class Reading:
    """One training step without its update."""

    output: StepOutput
    counts: dict[str, int]
    passes: list[Pass]

    def totals(self) -> dict[str, float]:
        return {name: float(term.total.detach()) for name, term in self.output.terms.items()}

    def weighted(self) -> Tensor:
        """What the loop would differentiate: every weighted term divided by its count."""
        return sum(
            term.weight * term.total / max(self.counts.get(term.unit, 1), 1)
            for term in self.output.terms.values()
            if term.weight and term.total.requires_grad
        )


def read(method: Method, batch: Batch, seed: int = 0) -> Reading:
    """Count, then forward, with every pass recorded. `seed` starts the global generators."""
    torch.manual_seed(seed)
    counts = method.units(batch, None)
    with watch(method) as passes:
        output = method(batch, None)
    return Reading(output, counts, passes)


@contextmanager
def watch(method: Method) -> Iterator[list[Pass]]:
    """Record every forward of the method's backbone inside the block; hidden states keep their graph."""
    signature = inspect.signature(method.backbone.forward)
    passes: list[Pass] = []
    grown: list[Tensor] = []  # the lengths a cache had after each pass: the tensor itself names the cache

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], states: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        past = given.get("past")
        parent = ROOT
        if past is not None:
            found = [i for i, length_B in enumerate(grown) if length_B is past.length_B]
            parent = found[-1] if found else UNKNOWN
        passes.append(Pass(given["role_BT"], given["inputs"].detach(), states.hidden_BTD, parent))
        grown.append(states.hidden_BTD if states.past is None else states.past.length_B)

    handle = method.backbone.register_forward_hook(record, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


class Original:
    """Weights, buffers, flags and gradients of a method, put back bit by bit."""

    def __init__(self, method: Method):
        self.method = method
        self.tensors = {name: t.detach().clone() for name, t in named_tensors(method).items()}
        self.flags = {name: p.requires_grad for name, p in method.named_parameters()}
        self.grads = {name: p.grad for name, p in method.named_parameters()}
        self.modes = [(module, module.training) for module in method.modules()]

    @torch.no_grad()
    def restore(self) -> None:
        now = named_tensors(self.method)  # may hold what a forward created
        for name, tensor in self.tensors.items():
            now[name].copy_(tensor)
        for name, required in self.flags.items():
            now[name].requires_grad_(required)
            now[name].grad = self.grads[name]
        for module, training in self.modes:
            module.training = training

    def changed(self) -> list[str]:
        """Names of the tensors whose bits differ from the original."""
        now = named_tensors(self.method)
        return [name for name, old in self.tensors.items() if not same_bits(now[name], old)]


@contextmanager
def restored(method: Method) -> Iterator[Original]:
    """Whatever happens inside the block, the method and every generator end as they began."""
    original = Original(method)
    method.zero_grad(set_to_none=True)
    try:
        with kept_rng():
            yield original
    finally:
        original.restore()


def named_tensors(method: Method) -> dict[str, Tensor]:
    return {**dict(method.named_parameters()), **dict(method.named_buffers())}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, with NaN equal to NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


@torch.no_grad()
def jitter(method: Method) -> None:
    """Move every weight a little: what is zero only because of its initial value is not zero any more."""
    generator = torch.Generator().manual_seed(0)
    for p in method.parameters():
        if not p.is_floating_point() or p.numel() == 0:
            continue
        rms = float(p.float().pow(2).mean().sqrt())
        noise = torch.randn(p.shape, generator=generator) * (0.1 * rms or 0.02)
        p.add_(noise.to(p))


def tolerance(method: Method) -> float:
    """Relative difference that rounding alone explains, in the coarsest weights of the method."""
    coarsest = max((torch.finfo(p.dtype).eps for p in method.parameters()), default=1e-7)
    return max(1e3 * coarsest, 1e-8) if coarsest < 1e-4 else 8 * coarsest


def rows_of(batch: Batch, rows: slice | Tensor) -> Batch:
    return replace(batch, **{f.name: getattr(batch, f.name)[rows] for f in fields(batch)})


def shortest(batch: Batch, rows: int) -> Batch:
    """The rows with the fewest tokens, in their order, less the columns and steps that are all padding."""
    size_B = sum((getattr(batch, name) != IGNORE).flatten(1).sum(1) for name in READ_AS)
    kept = rows_of(batch, size_B.argsort(stable=True)[:rows].sort().values)
    steps_K = ((kept.steps_BKS != IGNORE) | _any_result(kept)).any(-1).any(0)
    kept = replace(kept, steps_BKS=kept.steps_BKS[:, steps_K], results_BKR=kept.results_BKR[:, steps_K])
    trimmed = {}
    for name in READ_AS:
        ids = getattr(kept, name)
        trimmed[name] = ids[..., (ids != IGNORE).flatten(0, -2).any(0)]
    for name, tokens in SAID_OF.items():
        trimmed[name] = getattr(kept, name)[:, : trimmed[tokens].shape[1]]
    return replace(kept, **trimmed)


def _any_result(batch: Batch) -> Tensor:
    return (batch.results_BKR != IGNORE).any(-1, keepdim=True)


def doubled(batch: Batch) -> Batch:
    return replace(batch, **{f.name: torch.cat([getattr(batch, f.name)] * 2) for f in fields(batch)})


def padded(batch: Batch) -> Batch:
    """The same rows with more padding: columns on every side that may grow, and one more empty step."""
    beside = ("classes_BA", "rejected_BA", "rejected_classes_BA")
    return replace(
        batch,
        prompt_BP=_grow(batch.prompt_BP, (3, 0)),
        steps_BKS=_grow(batch.steps_BKS, (0, 2, 0, 1)),
        results_BKR=_grow(batch.results_BKR, (0, 1, 0, 1)),
        answer_BA=_grow(batch.answer_BA, (0, 2)),
        instructed_BP=_grow(batch.instructed_BP, (2, 0)) if batch.instructed_BP.shape[1] else None,
        **{name: _grow(getattr(batch, name), (0, 2)) for name in beside if getattr(batch, name).shape[1]},
        allowed_BAW=nn.functional.pad(batch.allowed_BAW, (0, 0, 0, 2))
        if batch.allowed_BAW.shape[1]
        else None,
        taught_BT=_grow(batch.taught_BT, (0, 2)) if batch.taught_BT.shape[1] else None,
        taught_role_BT=_grow(batch.taught_role_BT, (0, 2)) if batch.taught_BT.shape[1] else None,
        chunks_BC4=_grow(batch.chunks_BC4, (0, 0, 0, 1)) if batch.taught_BT.shape[1] else None,
    )


def _grow(ids: Tensor, sides: tuple[int, ...]) -> Tensor:
    return nn.functional.pad(ids, sides, value=IGNORE)


def shortened(batch: Batch) -> dict[str, Batch]:
    """The batch less a prompt token, less an answer token, less the last step of every row."""
    steps_BK = (batch.steps_BKS != IGNORE).any(-1)
    last_BK = steps_BK & (steps_BK.cumsum(1) == steps_BK.sum(1, keepdim=True))
    return {
        "prompt token": replace(batch, prompt_BP=_without(batch.prompt_BP, first=True)),
        "answer token": replace(batch, answer_BA=_without(batch.answer_BA, first=False)),
        "step": replace(
            batch,
            steps_BKS=batch.steps_BKS.masked_fill(last_BK[..., None], IGNORE),
            results_BKR=batch.results_BKR.masked_fill(last_BK[..., None], IGNORE),
        ),
    }


def _without(ids_BT: Tensor, *, first: bool) -> Tensor:
    """Each row that has three tokens or more, less its first or its last one."""
    real_BT = ids_BT != IGNORE
    number_BT = real_BT.cumsum(1)
    at_BT = real_BT & (number_BT == (1 if first else number_BT[:, -1:]))
    return ids_BT.masked_fill(at_BT & (number_BT[:, -1:] >= (3 if first else 2)), IGNORE)


READ_AS = {  # batch field -> the roles under which its tokens may be read
    "prompt_BP": (Role.PROMPT,),
    "steps_BKS": (Role.STEP,),
    "results_BKR": (Role.STEP,),
    "answer_BA": (Role.ANSWER,),
    "rejected_BA": (Role.ANSWER,),
}
SAID_OF = {"classes_BA": "answer_BA", "allowed_BAW": "answer_BA", "rejected_classes_BA": "rejected_BA"}


def edited(batch: Batch, name: str, which: str, vocab_size: int) -> Batch | None:
    """Each row with its "middle" token of one field replaced, or "all" of them; None for an empty field."""
    ids = getattr(batch, name)
    ids_BL = ids.flatten(1).clone()
    known = sorted(set(ids_BL[ids_BL != IGNORE].tolist()))
    if not known:
        return None
    following = dict(zip(known, known[1:] + known[:1], strict=True))
    if len(known) == 1:
        following = {known[0]: (known[0] + 1) % vocab_size}
    for row_L in ids_BL:
        real = (row_L != IGNORE).nonzero().flatten().tolist()
        if real:
            for at in real if which == "all" else [real[len(real) // 2]]:
                row_L[at] = following[int(row_L[at])]
    new = ids_BL.reshape(ids.shape)
    held = {"allowed_BAW": _allowing(batch.allowed_BAW, new)} if name == "answer_BA" else {}
    return replace(batch, **{name: new}, **held)


def _allowing(allowed_BAW: Tensor, answer_BA: Tensor) -> Tensor:
    """The bits, with the answer's own tokens allowed wherever they say anything: gold is never forbidden."""
    if not allowed_BAW.shape[1]:
        return allowed_BAW
    ids_BA1 = answer_BA.clamp(min=0)[..., None]
    bit_BA1 = (128 >> ids_BA1 % 8).to(torch.uint8)
    byte_BA1 = allowed_BAW.gather(2, ids_BA1 // 8) | bit_BA1
    told_BA1 = (allowed_BAW != 0).any(-1, keepdim=True)
    return torch.where(told_BA1, allowed_BAW.scatter(2, ids_BA1 // 8, byte_BA1), allowed_BAW)


@dataclass(frozen=True)
class Place:
    """One position of one pass."""

    index: int
    row: int
    column: int
    role: str

    def __str__(self) -> str:
        return f"{self.role.lower()} position {self.column} of row {self.row} in pass {self.index}"


def first_place(mask_BT: Tensor, passes: list[Pass], index: int) -> Place:
    row, column = mask_BT.nonzero()[0].tolist()
    return Place(index, row, column, Role(int(passes[index].role_BT[row, column])).name)


def leak(base: list[Pass], other: list[Pass], roles: tuple[Role, ...], tol: float) -> Place | None:
    """Where a state differs although it stands before the edited token, or in a pass that never read it.

    A pass may differ from the first input on that differs under one of `roles`; wholly, where its cache
    comes from a pass that read the token. Thoughts fed by anything else are still bound.
    """
    knows: list[Tensor] = []
    for i, (a, b) in enumerate(zip(base, other, strict=False)):
        if a.hidden_BTD.shape != b.hidden_BTD.shape:
            return None if any(k.any() for k in knows) else Place(i, 0, 0, "PAD")
        differs_BT = a.inputs != b.inputs if a.inputs.ndim == 2 else (a.inputs != b.inputs).any(-1)
        edit_BT = differs_BT & torch.isin(a.role_BT, torch.tensor(roles, device=a.role_BT.device))
        knows_B = _inherited(a, knows) | edit_BT.any(1)
        free_BT = (edit_BT.cumsum(1) > 0) | _inherited(a, knows)[:, None]
        if roles == (Role.PROMPT,) and not (a.role_BT == Role.PROMPT).any() and any(k.any() for k in knows):
            free_BT = torch.ones_like(free_BT)  # thoughts about a prompt may be read without its cache
        moved_BT = (a.hidden_BTD - b.hidden_BTD).detach().abs().amax(
            -1
        ) > tol * a.hidden_BTD.detach().abs().mean()
        wrong_BT = moved_BT & ~free_BT & (a.role_BT != Role.PAD)
        if wrong_BT.any():
            return first_place(wrong_BT, base, i)
        knows.append(knows_B)
    return None


def _inherited(call: Pass, knows: list[Tensor]) -> Tensor:
    """Which rows [B] continue a cache that holds the edited token."""
    rows = len(call.role_BT)
    blank_B = torch.zeros(rows, dtype=torch.bool, device=call.role_BT.device)
    if call.parent == ROOT:
        return blank_B
    if call.parent == UNKNOWN:
        return blank_B | any(bool(k.any()) for k in knows)
    known_B = knows[call.parent]
    return known_B if len(known_B) == rows else blank_B | bool(known_B.any())
