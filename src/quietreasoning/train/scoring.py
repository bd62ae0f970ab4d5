"""What a term is made of: the state that each gold token is scored on, the batch, registered parameters.

A state before token t should predict it. To see where a token is a label, apart from where it is read, a
gold token is changed while every backbone in the method answers with the states it had before: the gradient
of a term by its final states then moves exactly at those states that are scored on that token.

Shapes: B rows, T positions of one backbone forward, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quietreasoning.contract import Batch, Role
from quietreasoning.train import probes
from quietreasoning.train.checks import Exam
from quietreasoning.train.probes import Reading

NEAR = 3  # columns between a token and a state that is scored on it by mistake


def labels(exam: Exam, batch: Batch) -> None:
    """`label-shift`: a token is a label of the state right before it, if of any."""
    if exam.has("future-leak"):  # explains it
        return
    told: list[Any] = []
    with _remembering(exam.method, told):
        base = _slopes(probes.read(exam.method, batch))
    for name in ("prompt_BP", "steps_BKS", "answer_BA"):
        if name == "prompt_BP" and not exam.method.learns_prompt:
            continue
        other_batch = probes.edited(batch, name, "middle", exam.method.backbone.vocab_size)
        if other_batch is None:
            continue
        with _remembering(exam.method, told, repeat=True) as same:
            other = _slopes(probes.read(exam.method, other_batch))
        if same and len(base[0].passes) == len(other[0].passes):
            _compare(exam, base, other)


Slopes = tuple[Reading, dict[str, list[Tensor | None]]]  # term -> gradient by each pass's final states


def _slopes(reading: Reading) -> Slopes:
    hidden = [call.hidden_BTD for call in reading.passes if call.hidden_BTD.requires_grad]
    found = {}
    for name, term in reading.output.terms.items():
        if term.weight and term.total.requires_grad and hidden:
            grads = iter(torch.autograd.grad(term.total, hidden, retain_graph=True, allow_unused=True))
            found[name] = [next(grads) if c.hidden_BTD.requires_grad else None for c in reading.passes]
    return reading, found


def _compare(exam: Exam, base: Slopes, other: Slopes) -> None:
    """Where one input differs in a row and a term's gradient moved, it must have moved right before it."""
    for index, (one, two) in enumerate(zip(base[0].passes, other[0].passes, strict=True)):
        if one.inputs.shape != two.inputs.shape:
            continue
        differs_BT = one.inputs != two.inputs if one.inputs.ndim == 2 else (one.inputs != two.inputs).any(-1)
        for name in base[1].keys() & other[1].keys():
            before, after = base[1][name][index], other[1][name][index]
            if before is None or after is None or before.shape != after.shape or exam.blamed(name):
                continue
            moved_BT = (before != after).any(-1)
            for row in (differs_BT.sum(1) == 1).nonzero().flatten().tolist():
                _judge(exam, name, one, index, row, int(differs_BT[row].nonzero()), moved_BT[row])


def _judge(
    exam: Exam, name: str, call: probes.Pass, index: int, row: int, column: int, moved_T: Tensor
) -> None:
    earlier = [at for at in range(column) if call.role_BT[row, at] != Role.PAD]
    moved = moved_T.nonzero().flatten().tolist()
    if exam.blamed(name) or not earlier or len(moved) != 1 or moved[0] == earlier[-1]:
        return
    wrong = moved[0]
    if abs(wrong - column) > NEAR:  # a reward for what the token tells, not a label
        return
    place = probes.Place(index, row, column, Role(int(call.role_BT[row, column])).name)
    exam.find(
        "label-shift",
        f"term {name}",
        f"the token at {place} is a label of the state at column {wrong}, not of the one right before it",
        "Score states [:, :-1] on labels [:, 1:], once.",
    )


@contextmanager
def _remembering(method: nn.Module, told: list[Any], repeat: bool = False) -> Iterator[list[bool]]:
    """Record what every backbone in the method answers, or have it answer as it did; yields [] once a pass
    has no twin of its shape."""
    kind, same, turn = type(method.backbone), [True], iter(list(told))

    def answer(_: nn.Module, args: Any, kwargs: Any, states: Any) -> Any:
        if not repeat:
            told.append(states)
            return None
        was = next(turn, None)
        if was is None or was.hidden_BTD.shape != states.hidden_BTD.shape:
            same.clear()
            return None
        kept = {key: value for key, value in vars(was).items() if key != "past"}
        return replace(states, **kept)

    with ExitStack() as stack:
        for module in method.modules():
            if isinstance(module, kind):
                handle = module.register_forward_hook(answer, with_kwargs=True, prepend=True)
                stack.callback(handle.remove)
        yield same


def unread(exam: Exam, base: Reading, others: list[Reading]) -> None:
    """`constant`: a weighted term gives the same whatever the gold tokens of any field are."""
    for name, total in base.totals().items():
        term = base.output.terms[name]
        known = [other.totals() for other in others]
        if not (known and term.weight and total) or exam.blamed(name):
            continue
        if all(other.get(name) == total for other in known):
            exam.find(
                "constant",
                f"term {name}",
                f"it stays {total:g} whatever the tokens of the batch are",
                f"Let it read the batch, or set method.weights.{name}=0.",
            )


def strangers(exam: Exam, reading: Reading) -> None:
    """`unregistered`: what terms learn through is a parameter of the method, and was one before forward."""
    own = dict(exam.method.named_parameters())
    late = sorted(own.keys() - exam.known)
    for name in late:
        exam.find(
            "unregistered",
            f"parameter {name}",
            "forward creates it, after the optimizer was built",
            "Create it in __init__.",
        )
    exam.enabled |= set(late)
    ours = {id(p) for p in own.values()}
    for name, term in reading.output.terms.items():
        shapes = [list(leaf.shape) for leaf in _leaves(term.total) if id(leaf) not in ours]
        if shapes:
            exam.find(
                "unregistered",
                f"term {name}",
                f"its gradient ends in a tensor of shape {shapes[0]} that is no parameter of the method, so "
                "nothing trains, saves or moves it",
                "Make it a parameter, or keep the module that holds it as an attribute.",
            )


def _leaves(total: Tensor) -> list[Tensor]:
    """The tensors with a gradient at which the graph of `total` ends; none where it has no graph."""
    found, seen, following = [], set(), [total.grad_fn]
    while following:
        node = following.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        following += [each for each, _ in node.next_functions]
    return found
