"""What the doctor reads off one forward, its gradients and one optimizer step.

Every function adds its findings to the exam. A gradient that is zero counts as missing only if it stays
zero on slightly jittered weights: a part may start at zero.

Shapes: B rows, T positions of one backbone forward, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from quietreasoning.contract import IGNORE, Batch, Method, Role
from quietreasoning.optim.optimizers import build_optimizer
from quietreasoning.optim.settings import OptimConfig
from quietreasoning.train import probes
from quietreasoning.train.probes import READ_AS, Pass, Reading
from quietreasoning.train.term_gradients import held


@dataclass
class Exam:
    """One method, one batch, and what was found so far."""

    method: Method
    batch: Batch
    enabled: set[str]  # names of the parameters this stage trains
    known: frozenset[str]  # names of all parameters before any forward
    findings: list[tuple[str, str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, check: str, where: str, problem: str, cure: str) -> None:
        self.findings.append((check, where, problem, cure))

    def has(self, *names: str) -> bool:
        return any(finding[0] in names for finding in self.findings)

    def blamed(self, name: str) -> bool:
        return any(finding[1] == f"term {name}" for finding in self.findings)


@dataclass(frozen=True)
class Gradient:
    """What one term's sum does: norm over the trainable parameters, and the final states it reads."""

    norm: float
    connected: bool
    touched: list[tuple[Tensor, Pass]]  # bool [B, T] beside each pass


def trainable(method: Method) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in method.named_parameters() if p.requires_grad and p.numel()}


def weights(exam: Exam, reading: Reading) -> None:
    """`weight-ignored`: the recipe's weights and the terms' weights are the same numbers."""
    terms = reading.output.terms
    for name, value in exam.method.term_weights.items():
        if value and name not in terms:
            exam.find(
                "weight-ignored",
                f"method.weights.{name}",
                f"forward produces no term of this name (it produces {', '.join(terms) or 'none'})",
                f"Set method.weights.{name}=0, or rename the term.",
            )
        elif name in terms and terms[name].weight != value:
            exam.find(
                "weight-ignored",
                f"method.weights.{name}",
                f"the recipe says {value:g}, the term is weighted {terms[name].weight:g}",
                "Pass the configured weight to Term.",
            )


def outputs(exam: Exam, reading: Reading) -> None:
    """`stray-gradient` and `not-a-sum`: scalars with a graph in terms only."""
    for name, term in reading.output.terms.items():
        if term.total.ndim:
            exam.find("not-a-sum", f"term {name}", f"its total has shape {list(term.total.shape)}", "Sum it.")
    for name, pair in reading.output.metrics.items():
        if any(value.requires_grad for value in pair):
            exam.find("stray-gradient", f"metric {name}", "it carries a gradient", "Detach it.")
    if any(tensor.requires_grad for tensor in _tensors(reading.output.carry)):
        exam.find("stray-gradient", "carry", "it holds a graph that ends with this step", "Detach it.")


def finite(exam: Exam, reading: Reading) -> bool:
    """`not-finite`, values; nothing can be compared after that."""
    output = reading.output
    values = {f"term {name}": [term.total] for name, term in output.terms.items()}
    values |= {f"metric {name}": list(pair) for name, pair in output.metrics.items()}
    for where, tensors in values.items():
        if not all(tensor.isfinite().all() for tensor in tensors):
            shown = ", ".join(f"{float(tensor.detach().sum()):g}" for tensor in tensors)
            exam.find("not-finite", where, f"its value is {shown}", "Look for a log or a division of zero.")
    return not exam.has("not-finite", "not-a-sum")


def counts(exam: Exam, reading: Reading) -> None:
    """`units` and `missing-field`: every term has a unit, and something to count."""
    empty = [name for name in READ_AS if not (getattr(exam.batch, name) != IGNORE).any()]
    for name, term in reading.output.terms.items():
        where, unit = f"term {name}", term.unit
        if unit not in reading.counts:
            known = ", ".join(reading.counts) or "nothing"
            exam.find(
                "units", where, f"units() counts {known}, not its unit {unit!r}", f"Count {unit!r} there."
            )
            continue
        count = reading.counts[unit]
        if count < 0 or (count == 0 and float(term.total.detach()) != 0):
            exam.find(
                "units",
                where,
                f"{count} {unit}s, but its sum is {float(term.total.detach()):g}",
                "Count what is summed.",
            )
        elif count == 0 and term.weight:
            exam.find(
                "missing-field",
                where,
                f"weight {term.weight:g}, but no {unit} to count"
                + (f"; empty here: {', '.join(empty)}" if empty else ""),
                f"Give data that has it, or set method.weights.{name}=0.",
            )


def gradient(exam: Exam, reading: Reading, name: str) -> Gradient:
    """Differentiate one term's sum by the trainable parameters and by every final state."""
    total, params = reading.output.terms[name].total, list(trainable(exam.method).values())
    if not (total.requires_grad and params):
        return Gradient(0.0, False, [])
    grads = torch.autograd.grad(total, params, retain_graph=True, allow_unused=True)
    reached = [grad for grad in grads if grad is not None]
    norm = math.sqrt(sum(float(held(grad).float().pow(2).sum()) for grad in reached))
    if not math.isfinite(norm):
        problem = f"its gradient norm is {norm:g}"
        exam.find("not-finite", f"term {name}", problem, "Look for a root or a log at zero.")
    return Gradient(norm, bool(reached), touched(reading, name))


def touched(reading: Reading, name: str) -> list[tuple[Tensor, Pass]]:
    """For each pass that the term depends on: which final states [B, T] its gradient reaches."""
    total = reading.output.terms[name].total
    passes = [p for p in reading.passes if p.hidden_BTD.requires_grad]
    if not (total.requires_grad and passes):
        return []
    hidden = [p.hidden_BTD for p in passes]
    grads = torch.autograd.grad(total, hidden, retain_graph=True, allow_unused=True)
    pairs = zip(grads, passes, strict=True)
    return [((grad != 0).any(-1), call) for grad, call in pairs if grad is not None]


def positions(exam: Exam, reading: Reading, name: str, grad: Gradient) -> None:
    """`prompt-touched` and `pad-touched`: which final states a term reads. The last prompt state is free, and
    all of them are where the method learns prompts."""
    for touched_BT, call in grad.touched:
        index = next(i for i, other in enumerate(reading.passes) if other is call)
        inside_BT = (call.role_BT == Role.PROMPT) & (_next_role(call.role_BT) == Role.PROMPT)
        inside_BT = inside_BT & (not exam.method.learns_prompt)
        for check, wrong_BT, what, cure in (
            ("prompt-touched", touched_BT & inside_BT, "predict prompt tokens", "Mask the prompt's labels."),
            (
                "pad-touched",
                touched_BT & (call.role_BT == Role.PAD),
                "are padding",
                "Mask labels equal to IGNORE.",
            ),
        ):
            if wrong_BT.any():
                place = probes.first_place(wrong_BT, reading.passes, index)
                exam.find(
                    check,
                    f"term {name}",
                    f"its gradient reaches {int(wrong_BT.sum())} states that {what}, first {place}",
                    cure,
                )


def _next_role(role_BT: Tensor) -> Tensor:
    """The role of the next column that is no padding; PAD where none follows."""
    following_BT = torch.zeros_like(role_BT)
    for column in range(role_BT.shape[1] - 2, -1, -1):
        beside_B = role_BT[:, column + 1]
        following_BT[:, column] = torch.where(beside_B == Role.PAD, following_BT[:, column + 1], beside_B)
    return following_BT


def optimizer_step(exam: Exam, optim: OptimConfig) -> None:
    """`disabled-changed` and `no-step`: one throwaway step; what is enabled moves, and nothing else."""
    method = exam.method
    with probes.restored(method) as before:
        params = {name: p for name, p in trainable(method).items() if name in exam.enabled}
        loss = probes.read(method, exam.batch).weighted()
        if params and isinstance(loss, Tensor):
            loss.backward()
            build_optimizer(method, params, optim).step()
        changed = set(before.changed())
        pulled = [n for n, p in params.items() if p.grad is not None and (held(p.grad) != 0).any()]
        if pulled and not changed & params.keys():
            exam.find(
                "no-step",
                "optimizer",
                f"{len(pulled)} parameters have a gradient, yet a step of {optim.name} with lr {optim.lr:g} "
                "leaves every bit of them",
                "Raise optim.lr or optim.lr_scale, or keep the weights in a finer precision.",
            )
        for name, p in method.named_parameters():
            if name not in exam.enabled and (name in changed or p.requires_grad):
                what = "changes in one optimizer step" if name in changed else "is switched on by forward"
                exam.find(
                    "disabled-changed",
                    f"parameter {name}",
                    f"it is not enabled, yet it {what}",
                    "Leave it alone.",
                )
        moved = [name for name, _ in method.named_buffers() if name in changed and not method.counts]
        if moved:
            exam.notes.append(
                f"forward changes buffers ({', '.join(moved)}); what must survive a step belongs in the carry"
            )


def reach(exam: Exam, reading: Reading, grads: dict[str, Gradient]) -> None:
    """`no-gradient` and `unreached-parameter`; a zero counts only if it stays zero on jittered weights, and a
    term that the method calls slack may be all zero. A method that counts needs none."""
    if exam.method.counts:
        return
    method, terms = exam.method, reading.output.terms
    silent = [n for n, t in terms.items() if t.weight and grads[n].norm == 0 and not exam.blamed(n)]
    slack = {n for n in silent if n in method.slack and grads[n].connected and not terms[n].total.any()}
    silent = [name for name in silent if name not in slack]
    idle = bool(slack) and all(name in slack or not term.weight for name, term in terms.items())
    exam.notes += [f"term {name} is slack on these rows: nothing breaks its limit" for name in sorted(slack)]
    zero = [] if idle else _unreached(method, reading)
    if silent or zero:
        with probes.restored(method):
            probes.jitter(method)
            again = probes.read(method, exam.batch)
            silent = [name for name in silent if gradient(exam, again, name).norm == 0]
            zero = [name for name in _unreached(method, again) if name in zero]
    for name in silent:
        cut = "" if grads[name].connected else "; it is cut off from all of them"
        exam.find(
            "no-gradient",
            f"term {name}",
            f"weight {terms[name].weight:g}, but no trainable parameter gets a gradient{cut}",
            f"Look for a detach or no_grad, enable its module, or set method.weights.{name}=0.",
        )
    if exam.has("no-gradient", "missing-field"):
        return  # mend the term first: its parameters would all be named
    for name in zero:
        exam.find(
            "unreached-parameter",
            f"parameter {name}",
            "no weighted term gives it a gradient",
            "Use it, make it a buffer, or switch it off with train.enable.",
        )


def _unreached(method: Method, reading: Reading) -> list[str]:
    params, loss = trainable(method), reading.weighted()
    if not isinstance(loss, Tensor):
        return list(params)
    grads = (
        torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
        if params
        else ()
    )
    pairs = zip(params, grads, strict=True)
    return [name for name, grad in pairs if grad is None or not (held(grad) != 0).any()]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return [t for f in fields(value) for t in _tensors(getattr(value, f.name))]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    return []
