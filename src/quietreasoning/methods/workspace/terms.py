"""Losses and figures of what the workspace did, from the trace of one forward.

Every term is a sum over chunks or over sequences; none couples two sequences, so that accumulation and
ranks change nothing.

Shapes: B sequences, R streams of a column, C chunks, K slots, D widths, G experts, E adapters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from quietreasoning.contract import IGNORE, Term
from quietreasoning.losses import halting, latent, routing
from quietreasoning.losses.rows import sum_rows
from quietreasoning.methods.workspace.settings import Workspace as Config
from quietreasoning.nn.product_key_memory import usage
from quietreasoning.nn.slots import Advance
from quietreasoning.workspace import Trace

Terms = dict[str, Term]
Metrics = dict[str, tuple[Tensor, Tensor]]
BINS = 20  # of the histogram of the experts' gates


def advanced(trace: Trace) -> Iterator[tuple[int, Advance]]:
    """The columns that began with an update of the slots, and that update."""
    for number, advance in enumerate(trace.advances):
        if advance is not None:
            yield number, advance


def slot_terms(config: Config, trace: Trace, predict: torch.nn.Module | None, rate: float) -> Terms:
    """Losses of the slots themselves; unit "chunk" is an update, "pair" two in a row."""
    w = config.weights
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, value: tuple[Tensor, ...]) -> None:
        sums.setdefault(name, []).append(value[0])

    for number, update in advanced(trace):
        slots_RKD = trace.slots[number]
        every_R = torch.ones(len(slots_RKD), dtype=torch.bool, device=slots_RKD.device)
        if w.orthogonality:
            add("orthogonality", latent.orthogonality(slots_RKD, every_R))
        if w.sparsity:
            add("sparsity", latent.read_entropy(update.reads_RNK, trace.open_valid[number]))
        if w.halting:
            add("halting", halting.halting_kl(update.halting_RT, rate, every_R))
        before = trace.slots[number - 1][: len(slots_RKD)]
        if predict is not None and number > 1:  # the first slots have read nothing to predict from
            ahead_RKD = predict(before)
            if w.next_latent:
                add("next_latent", latent.next_latent(ahead_RKD, slots_RKD, every_R))
            if w.spread:
                add("spread", latent.spread(ahead_RKD, every_R))
    zero = trace.slots[0].sum() * 0 if trace.slots else None
    terms = {}
    for name, unit in _UNITS.items():
        if getattr(w, name):
            terms[name] = Term(
                torch.stack(sums[name]).sum() if name in sums else zero, unit, getattr(w, name)
            )
    return terms


_UNITS = {
    "orthogonality": "chunk",
    "sparsity": "chunk",
    "halting": "chunk",
    "next_latent": "pair",
    "spread": "pair",
}


def router_terms(config: Config, trace: Trace) -> Terms:
    """Regularisers of the plan, each over the chunks of one sequence."""
    w, terms = config.weights, {}
    logits, there_BC = by_sequence(trace)
    binary = [part for part in ("ssm", "pkm", "knn") if part in logits]
    several = [part for part in ("adapters", "episodic") if part in logits]
    if w.router_z and logits:
        parts = [routing.router_z(logits[p], there_BC, binary=True)[0] for p in binary]
        parts += [routing.router_z(logits[p], there_BC)[0] for p in several]
        if parts:
            terms["router_z"] = Term(torch.stack(parts).sum(), "sequence", w.router_z)
    if w.balance:
        share_BCE = logits["adapters"].softmax(-1)
        terms["balance"] = Term(routing.balance(share_BCE, there_BC)[0], "sequence", w.balance)
    if w.entropy and logits:
        floor = config.entropy_floor
        parts = [routing.entropy_floor(logits[p].sigmoid(), there_BC, floor, binary=True)[0] for p in binary]
        parts += [routing.entropy_floor(logits[p].softmax(-1), there_BC, floor)[0] for p in several]
        if parts:
            terms["entropy"] = Term(torch.stack(parts).sum(), "sequence", w.entropy)
    if w.gate:
        terms["gate"] = Term(routing.gate_target(logits["ssm"].sigmoid(), there_BC)[0], "sequence", w.gate)
    if w.budget and binary:
        p_BCJ = torch.cat([logits[p].sigmoid() for p in binary], -1)
        spent_B = routing.expected_cost(p_BCJ, p_BCJ.new_ones(p_BCJ.shape[-1]), there_BC)
        over = routing.budget(spent_B, there_BC.any(1), config.budget * there_BC.sum(1))[0]
        terms["budget"] = Term(over, "sequence", w.budget)
    return terms


def retrieval_term(config: Config, logits: dict[str, Tensor], rare_B: Tensor) -> Term:
    """Memories are asked for where the answer is rare (PopQA, arXiv 2212.10511, section 5).

    Cross-entropy of each use decision of the chunk that answers; unit "question". logits: of that chunk, by
    part [B, outputs].
    """
    known_B = rare_B != IGNORE
    wanted_B = (rare_B == 1).float()
    losses = [
        F.binary_cross_entropy_with_logits(logits[part][:, 0], wanted_B, reduction="none")
        for part in ("pkm", "knn")
        if part in logits
    ]
    if "episodic" in logits:  # the first choice is to fetch nothing
        none_B, some_B = logits["episodic"][:, 0], logits["episodic"][:, 1:].logsumexp(-1)
        losses.append(F.binary_cross_entropy_with_logits(some_B - none_B, wanted_B, reduction="none"))
    return Term(sum_rows(torch.stack(losses).mean(0), known_B)[0], "question", config.weights.retrieval)


def by_sequence(trace: Trace) -> tuple[dict[str, Tensor], Tensor]:
    """Router logits by part [B, C, outputs], and which chunks exist [B, C]."""
    parts = trace.plans[0].logits if trace.plans else {}
    logits = {part: _stack([plan.logits[part] for plan in trace.plans], trace) for part in parts}
    there = [torch.ones(len(c.fresh_R), dtype=torch.bool, device=c.fresh_R.device) for c in trace.columns]
    return logits, _stack(there, trace)


def _stack(values: list[Tensor], trace: Trace) -> Tensor:
    """Columns of ever fewer streams as one [B, C, ...], in the order of the sequences; zero where absent."""
    rows = len(trace.row_R)
    full = [torch.cat([v, v.new_zeros(rows - len(v), *v.shape[1:])]) if len(v) < rows else v for v in values]
    return torch.stack(full, 1)[trace.row_R.argsort()]


@torch.no_grad()
def figures(trace: Trace, slots: int) -> Metrics:
    """What the log shows: executed steps, collapse alarm, gates, use of the memory. slots: the memory's."""
    found: Metrics = {}

    def add(name: str, total: Tensor, count: Tensor | int) -> None:
        count = torch.as_tensor(count, device=total.device)
        old = found.get(name)
        found[name] = (total + old[0], count + old[1]) if old else (total, count)

    for _, update in advanced(trace):
        add("workspace_steps", update.executed_R.float().sum(), len(update.executed_R))
    held = [*(len(slots) for slots in trace.slots[1:]), 0]
    if len(held) > 1:  # of each sequence that was read at all, its last slots: no company decides which
        last = torch.cat([slots[n:] for slots, n in zip(trace.slots[1:], held[1:], strict=True)])
        cosine_R, rank_R = latent.slot_health(last)
        add("slot_cosine", cosine_R.sum(), len(cosine_R))
        add("slot_rank", rank_R.sum(), len(rank_R))
        add("slot_norm", last.float().norm(dim=-1).mean(1).sum(), len(last))
    for column, plan in zip(trace.columns, trace.plans, strict=True):
        rows = len(column.fresh_R)
        if "ssm" in plan.logits:
            gate_RG = plan.logits["ssm"].sigmoid()
            add("ssm_gate", gate_RG.sum(), gate_RG.numel())
            add("ssm_gate_square", gate_RG.square().sum(), gate_RG.numel())
            for at, count in enumerate(torch.histc(gate_RG, BINS, 0, 1)):
                add(f"ssm_gate_bin_{at:02d}", count, gate_RG.numel())
            add("ssm_used", (plan.ssm_RG > 0).float().sum(), gate_RG.numel())
        if "pkm" in plan.logits:
            add("pkm_gate", plan.logits["pkm"].sigmoid().sum(), rows)
            add("pkm_used", (plan.pkm_R > 0).float().sum(), rows)
        if "adapters" in plan.logits:
            share_RE = plan.logits["adapters"].softmax(-1)
            add("adapter_entropy", torch.special.entr(share_RE).sum(), rows)
    for number in trace.reads:
        indices, counted = trace.hits(number)
        seen = usage(indices, slots, counted)
        add("pkm_hit_rate", seen.share, 1)
        add("pkm_entropy", seen.entropy, 1)
    return found
