"""Terms by what the answer's tokens are: names, arguments, syntax, repeated results, and the call's grammar.

Each is divided by its own count, so that a name of two tokens is not drowned by prose. Only answer tokens
have a class; steps and prefix are `OTHER`.
Shapes: B rows, T visible tokens, A answer tokens, D width, N positions in these terms, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quietreasoning.backbone import Backbone
from quietreasoning.config import UserError
from quietreasoning.contract import IGNORE, Batch, Role, Term
from quietreasoning.kinds import Kind
from quietreasoning.losses.spans import span_sums
from quietreasoning.methods.distill.settings import SPAN_TERMS
from quietreasoning.methods.sequence import Visible

GRAMMAR = ("grammar", "tool_choice")


def count(batch: Batch, visible: Visible, names: Sequence[str]) -> dict[str, int]:
    """How many tokens each of these terms sums over: its unit has its own name. UserError where the batch
    does not say what its tokens are."""
    if not names:
        return {}
    _check(batch, names)
    class_BT = placed(batch, visible, batch.classes_BA)
    found = {}
    if any(name in GRAMMAR for name in names):
        told_BT = placed(batch, visible, (batch.allowed_BAW != 0).any(-1)) & (class_BT != IGNORE)
    for name in names:
        if name == "grammar":
            counted_BT = told_BT
        elif name == "tool_choice":
            counted_BT = told_BT & (class_BT == Kind.TOOL_NAME)
        else:
            counted_BT = class_BT == SPAN_TERMS[name]
        found[name] = int(counted_BT.sum())
    return found


def terms(
    backbone: Backbone,
    batch: Batch,
    visible: Visible,
    hidden_BTD: Tensor,
    names: Sequence[str],
    chunk: int,
    weight: Callable[[str], float],
) -> tuple[dict[str, Term], dict[str, tuple[Tensor, Tensor]]]:
    """The terms, and how many names and values the student would write right, the text before them given."""
    class_BT = placed(batch, visible, batch.classes_BA)
    wanted = torch.tensor([SPAN_TERMS[name] for name in names if name in SPAN_TERMS], device=class_BT.device)
    counted_BT, allowed_NW = torch.isin(class_BT, wanted), None
    if any(name in GRAMMAR for name in names):
        allowed_BTW = placed(batch, visible, batch.allowed_BAW)
        counted_BT = counted_BT | ((allowed_BTW != 0).any(-1) & (class_BT != IGNORE))
        allowed_NW = allowed_BTW[counted_BT]
    class_N = class_BT[counted_BT]
    found = span_sums(
        hidden_BTD[counted_BT],
        backbone.logits,
        visible.labels_BT[counted_BT],
        class_N,
        len(Kind),
        allowed_NW,
        chunk=chunk,
    )
    sums = {name: found.ce_K[kind] for name, kind in SPAN_TERMS.items()}
    sums |= {"grammar": found.grammar, "tool_choice": found.choice_K[Kind.TOOL_NAME]}
    made = {name: Term(sums[name], name, weight(name)) for name in names}
    metrics = {
        f"{name}_accuracy": (found.hits_K[SPAN_TERMS[name]], (class_N == SPAN_TERMS[name]).sum())
        for name in names
        if name in ("tool_name", "arg_value")
    }
    return made, metrics


def placed(batch: Batch, visible: Visible, facts_BA: Tensor) -> Tensor:
    """What is known of each answer token [B, A, ...], at its place among the visible ones [B, T, ...]; IGNORE
    (of a mask: false; of bits: 0) elsewhere, and where the token is no label."""
    blank = IGNORE if facts_BA.dtype == torch.int64 else 0
    facts_BT = facts_BA.new_full((*visible.ids_BT.shape, *facts_BA.shape[2:]), blank)
    # both masks run through a row's answer in its order, and hold as many places
    facts_BT[visible.role_BT == Role.ANSWER] = facts_BA[batch.answer_BA != IGNORE]
    none_BT = visible.labels_BT == IGNORE
    return facts_BT.masked_fill(none_BT.view(*none_BT.shape, *[1] * (facts_BT.dim() - 2)), blank)


def check_classes(batch: Batch, name: str) -> None:
    """UserError where the batch does not say what its answers' tokens are, which the term needs."""
    if batch.answer_BA.shape[1] and not batch.classes_BA.shape[1]:
        raise UserError(
            f"method.weights.{name} needs to know what the tokens of an answer are: set "
            "data.format.spans.dialect, such as json"
        )


def _check(batch: Batch, names: Sequence[str]) -> None:
    check_classes(batch, names[0])
    missing = [name for name in names if name in GRAMMAR]
    if missing and batch.answer_BA.shape[1] and not batch.allowed_BAW.shape[1]:
        raise UserError(
            f"method.weights.{missing[0]} needs the grammar of calls: set data.format.spans.grammar=true"
        )
