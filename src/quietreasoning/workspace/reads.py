"""How a run of chunks is read: only what waits for the slots goes chunk by chunk.

Shapes: R streams, N tokens of a column, C columns of a run, T = C x N, Q = R x C, D width, K slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quietreasoning.nn.router import Plan, stack
from quietreasoning.nn.slots import Advance
from quietreasoning.nn.trunk import Block, HeldChoice, Piece
from quietreasoning.workspace.cache import State, put_rows
from quietreasoning.workspace.columns import attention_mask, join
from quietreasoning.workspace.layout import Column
from quietreasoning.workspace.trace import Trace


@dataclass(frozen=True)
class Span:
    """What blocks are told about the tokens of a run."""

    run: list[Column]
    whole: Column  # the run as one
    mask: Tensor | None
    rope: Piece
    plan: Plan  # of each chunk, a row each
    held: tuple[HeldChoice, ...]  # the plan's adapters by block, where tokens come one by one
    readable: tuple[Piece, ...]  # keys and values of each chunk's slots, by write block
    trace: Trace | None


class Reads:
    """Mixed into the model, whose modules it expects under their usual names."""

    def read(
        self, state: State, run: list[Column], flat_ND: Tensor, trace: Trace | None, number: int = 0
    ) -> tuple[list[Tensor], State]:
        """Advance every stream by a run of chunks, the last of which need not be whole.

        flat_ND: embeddings of the whole input; number: columns before the run. Returns the embeddings and
        each block's states (the last one normalised), and the state after the run.
        """
        whole = join(run)
        mask, rope = attention_mask(state.valid_RS, whole), self.rotary(whole.position_RN)
        span = Span(run, whole, mask, rope, state.plan, (), state.readable, trace)
        x = flat_ND.index_select(0, whole.index_RN.flatten()).unflatten(0, whole.index_RN.shape)
        past, ssm, seen = list(state.past), list(state.ssm), [x]
        if self.config.has("workspace"):
            state, span = self._lower(state, span, seen, past, ssm, number)
        else:
            state, span = self._hold(state, span)
            if trace is not None:
                trace.note(state, None, None)
        self._blocks(range(len(seen), len(self.blocks) + 1), seen, span, past, ssm)
        valid_RS = torch.cat([state.valid_RS, whole.valid_RN], 1)
        return [*seen[:-1], self.norm(seen[-1])], replace(
            state, past=tuple(past), ssm=tuple(ssm), valid_RS=valid_RS
        )

    def _lower(
        self, state: State, span: Span, seen: list[Tensor], past: list, ssm: list, number: int
    ) -> tuple[State, Span]:
        """The blocks up to the read block, and the slots and plans of all chunks.

        Blocks that obey no plan come first, over the whole run; the rest go chunk by chunk, each with the
        plan that the chunk before led to. Extends `seen` by each block's states.
        """
        first, last, size = self._awaited(), self.config.read_block, span.run[0].index_RN.shape[1]
        self._blocks(range(1, first), seen, span, past, ssm)
        ropes = zip(*(part.split(size, 2) for part in span.rope), strict=True)
        valid_RS, states, slots, plans = state.valid_RS, [], [], []
        for column, x, rope in zip(span.run, seen[-1].split(size, 1), ropes, strict=True):
            read_RN, before = state.open_RN, state.slots_RKD
            state, advance = self.advance(
                self._cut(state, number), column.fresh_R, every=span.trace is not None
            )
            part = replace(span, plan=state.plan)
            if len(span.run) == 1:
                state, part = self._hold(state, part)
            else:
                mask = attention_mask(valid_RS, column) if first <= last else None
                part = replace(part, run=[column], whole=column, mask=mask, rope=rope)
                valid_RS = torch.cat([valid_RS, column.valid_RN], 1)
            chunk = [x]
            self._blocks(range(first, last + 1), chunk, part, past, ssm)
            state = state.take_in(chunk[-1], column.valid_RN)
            if span.trace is not None:
                span.trace.note(state, advance, read_RN)
            states.append(chunk[1:])
            slots.append(state.slots_RKD)
            plans.append(state.plan)
            number += 1
        seen.extend(
            torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*states, strict=True)
        )
        readable = state.readable
        if len(span.run) > 1 or not readable or state.slots_RKD is not before:
            slots_RCKD = torch.stack(slots, 1)
            readable = tuple(reader.read(slots_RCKD.flatten(0, 1)) for reader in self.readers.values())
            last_chunk = [
                tuple(t.unflatten(0, slots_RCKD.shape[:2])[:, -1] for t in piece) for piece in readable
            ]
            state = replace(state, readable=tuple(last_chunk))
        return state, replace(span, plan=stack(plans), held=part.held, readable=readable)

    def _hold(self, state: State, span: Span) -> tuple[State, Span]:
        """Where tokens come one by one, the adapters of the plan are worked out once for all of them."""
        choice = span.plan.choice
        if choice is None or torch.is_grad_enabled() or span.whole.index_RN.shape[1] > 1:
            return state, span
        if not state.held and not self.config.adapter_fusion:
            state = replace(state, held=tuple(block.adapters.hold(choice) for block in self.blocks))
        return state, replace(span, held=state.held)

    def _awaited(self) -> int:
        """The first block that obeys a plan before the slots are read, or the one after the read block."""
        c = self.config
        if c.has("adapters"):
            return 1
        obeying = (c.ssm_blocks if c.has("ssm") else ()) + (c.pkm_blocks if c.has("pkm") else ())
        return min((*obeying, c.read_block + 1))

    def _blocks(self, numbers: range, seen: list[Tensor], span: Span, past: list, ssm: list) -> None:
        """Apply these blocks and what stands around them to the last of `seen`; each adds its states."""
        whole = not torch.is_grad_enabled()  # with gradients, pieces are shared among the chunks' graphs
        x, plan = seen[-1], span.plan
        for number in numbers:
            if str(number) in self.readers and span.readable:
                x = self.readers[str(number)](x, span.readable[number - self.config.read_block - 1])
            before, choice = past[number - 1], span.held[number - 1] if span.held else plan.choice
            block = self.blocks[number - 1]
            x, piece = self._block(block, x, span.rope, before, span.mask, choice, whole)
            past[number - 1] = (piece,) if whole else (*before, piece)
            if plan.ssm_RG is not None and number in self.config.ssm_blocks:
                at = self.config.ssm_blocks.index(number)
                x, ssm[at] = self.expert(number, x, span.run, ssm[at], plan.ssm_RG[:, at])
            if plan.pkm_R is not None and number in self.config.pkm_blocks:
                x = self.remember(number, x, span)
            seen.append(x)

    def _block(self, block: Block, *inputs: Any) -> tuple[Tensor, Piece]:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(block.__call__, *inputs)
        return block(*inputs)

    def advance(self, state: State, fresh_R: Tensor, *, every: bool) -> tuple[State, Advance | None]:
        """Where a chunk begins: the slots take in the one before, and a new plan is made."""
        if not bool(fresh_R.any()):
            return state, None
        if bool(fresh_R.all()):
            done = self.workspace(state.slots_RKD, state.open_RND, state.open_RN, every)
            slots, plan = done.slots_RKD, self.plan(done.slots_RKD)
            open_RND, open_RN = state.open_RND[:, :0], state.open_RN[:, :0]
        else:
            rows = fresh_R.nonzero()[:, 0]
            done = self.workspace(state.slots_RKD[rows], state.open_RND[rows], state.open_RN[rows], every)
            part = (done.slots_RKD, self.plan(done.slots_RKD))
            slots, plan = put_rows((state.slots_RKD, state.plan), part, rows)
            open_RN = state.open_RN & ~fresh_R[:, None]
            keep = open_RN.any(0)
            open_RND, open_RN = state.open_RND[:, keep], open_RN[:, keep]
        return replace(state, slots_RKD=slots, plan=plan, held=(), open_RND=open_RND, open_RN=open_RN), done

    def _cut(self, state: State, number: int) -> State:
        """Every few chunks the slots' gradient ends (truncated backpropagation through time)."""
        chunks = self.config.bptt_chunks if self.training else 0
        if not chunks or not number or number % chunks or state.slots_RKD is None:
            return state
        return replace(state, slots_RKD=state.slots_RKD.detach())

    def expert(
        self, number: int, x: Tensor, run: list[Column], state: Any, gate_Q: Tensor
    ) -> tuple[Tensor, Any]:
        """x + g mixer(x), chunk by chunk, for a gate that is zero keeps the state as it is."""
        expert, size, parts = self.experts[str(number)], run[0].index_RN.shape[1], []
        for column, x_RND, gate_R in zip(
            run, x.split(size, 1), gate_Q.view(len(x), -1).unbind(1), strict=True
        ):
            x_RND, state = _gated(expert, x_RND, None if column.full else column.valid_RN, state, gate_R)
            parts.append(x_RND)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0], state

    def remember(self, number: int, x_RTD: Tensor, span: Span) -> Tensor:
        """x + u read(x); chunks whose plan says no read nothing."""
        reader, gate_Q = self.memory[str(number)], span.plan.pkm_R
        temperature = (self.temperature * span.plan.temperature_R)[:, None, None, None]
        x_QND = x_RTD.reshape(len(gate_Q), -1, x_RTD.shape[-1])
        used_Q = gate_Q > 0
        rows = None
        if not torch.is_grad_enabled() and not bool(used_Q.all()):
            rows = used_Q.nonzero()[:, 0]
            if len(rows) == 0:
                return x_RTD
        part_QND = x_QND if rows is None else x_QND[rows]
        read = reader(part_QND, self.table, temperature if rows is None else temperature[rows])
        if span.trace is not None:
            counted_QN = span.whole.valid_RN.reshape(len(gate_Q), -1) & used_Q[:, None]
            span.trace.hit(number, read, counted_QN if rows is None else counted_QN[rows])
        gate = gate_Q[:, None, None].to(x_QND.dtype)
        if rows is None:
            return torch.addcmul(x_QND, gate, read.out_RTD.to(x_QND.dtype)).view_as(x_RTD)
        return x_QND.index_add(0, rows, gate[rows] * read.out_RTD.to(x_QND.dtype)).view_as(x_RTD)


def _gated(expert: Any, x: Tensor, valid: Tensor | None, state: Any, gate_R: Tensor) -> tuple[Tensor, Any]:
    """x + g expert(x); a row whose gate is zero keeps its state and, when serving, computes nothing."""
    used_R = gate_R > 0
    if torch.is_grad_enabled() or bool(used_R.all()):
        mixed, new = expert(x, valid, state)
        x = torch.addcmul(x, gate_R[:, None, None].to(x.dtype), mixed.to(x.dtype))
        if bool(used_R.all()):
            return x, new
        keep = [
            torch.where(used_R.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, state, strict=True)
        ]
        return x, type(state)(*keep)
    rows = used_R.nonzero()[:, 0]
    if len(rows) == 0:
        return x, state
    part = type(state)(*(s[rows] for s in state))
    mixed, new = expert(x[rows], None if valid is None else valid[rows], part)
    x = x.index_add(0, rows, gate_R[rows, None, None].to(x.dtype) * mixed.to(x.dtype))
    return x, put_rows(state, new, rows)
