"""The workspace: slots that compete for what a chunk of tokens says, refined in a few shared steps.

Shapes: R rows, N tokens read, K slots, D slot width, W stream width, H heads, T inner steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Chunk(NamedTuple):
    """What the slots read, ready for every step."""

    keys: Tensor  # [R, H, N, D / H]
    values: Tensor
    last_R1W: Tensor  # the last real token, normalised
    valid_RN: Tensor


class Advance(NamedTuple):
    """One update of the slots and what it cost."""

    slots_RKD: Tensor  # halting-weighted
    halting_RT: Tensor  # p(stop after step t), before truncation; sums to one
    executed_R: Tensor  # steps that count: the rest was never needed
    reads_RNK: Tensor  # which slot claimed which token, first step, mean over heads
    states_RTKD: Tensor | None = None  # the slots after each step, where all were computed


class GatedResidual(nn.Module):
    """LayerNorm(a + sigmoid(W4 e1) * W5 e1), e1 = W1 ELU(W2 a + W3 c): TFT, arXiv 1912.09363, eq. 2-4."""

    def __init__(self, width: int, context_width: int):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.context = nn.Linear(context_width, width, bias=False)
        self.mid = nn.Linear(width, width)
        self.gate_value = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, a_RKD: Tensor, context_R1W: Tensor) -> Tensor:
        e1 = self.mid(F.elu(self.inner(a_RKD) + self.context(context_R1W)))
        gate, value = self.gate_value(e1).chunk(2, dim=-1)
        return self.norm(a_RKD + torch.sigmoid(gate) * value)


class GRU(nn.Module):
    """The gated recurrent unit (arXiv 1406.1078), as two linear layers."""

    def __init__(self, width: int):
        super().__init__()
        self.input, self.state = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        reset_i, keep_i, new_i = self.input(input).chunk(3, dim=-1)
        reset_s, keep_s, new_s = self.state(state).chunk(3, dim=-1)
        keep = torch.sigmoid(keep_i + keep_s)
        new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_s) * new_s)
        return new + keep * (state - new)


class SlotUpdate(nn.Module):
    """Slot attention (arXiv 2006.15055) with a GRN, the same weights at every step, and learned halting.

    One step: a GRN looks at the slot and at the last token of the chunk, where a prompt's question stands;
    every token divides its attention among the slots (softmax over slots); a GRU takes in what the slot
    reads. Departures, without which slots cannot look up one token among many: a slot's weight on a token
    is its claim times exp(logit), normalised over tokens (the paper normalises the claims alone, which is
    nearly uniform unless other slots claim all the rest), and the GRN stands before the read.

    The halting head follows PonderNet (arXiv 2107.05407): the result is sum_t p_t W_t, cut off once
    the cumulative p passes `threshold`
    or the slots move less than `epsilon`; the rest goes to the last executed step. While gradients are
    taken all steps are computed, the forward value is the same, and the gradient is that of the untruncated
    mixture (straight-through), so that a step that was not executed can still learn that it should be.
    """

    no_decay = ("initial",)

    def __init__(
        self,
        slots: int,
        slot_width: int,
        width: int,
        heads: int,
        steps: int,
        *,
        threshold: float = 0.8,
        epsilon: float = 1e-3,
        first_stop: float = 0.829,
    ):
        super().__init__()
        self.heads, self.steps, self.threshold, self.epsilon = heads, steps, threshold, epsilon
        self.initial = nn.Parameter(torch.randn(slots, slot_width))  # distinct rows: symmetry is broken
        self.token_norm, self.slot_norm = nn.LayerNorm(width), nn.LayerNorm(slot_width)
        self.keys_values = nn.Linear(width, 2 * slot_width, bias=False)
        self.query = nn.Linear(slot_width, slot_width, bias=False)
        self.cell = GRU(slot_width)
        self.grn = GatedResidual(slot_width, width)
        self.stop = nn.Linear(slot_width, 1)
        for (
            module
        ) in self.modules():  # logits and updates of order one: lookups are found several times sooner
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(self.stop.weight)
        nn.init.constant_(self.stop.bias, math.log(first_stop / (1 - first_stop)))

    def start(self, rows: int) -> Tensor:
        """The learned slots every document begins with [R, K, D]."""
        return F.layer_norm(self.initial, self.initial.shape[-1:]).expand(rows, -1, -1)

    def forward(
        self, slots_RKD: Tensor, tokens_RNW: Tensor, valid_RN: Tensor, every_step: bool = False
    ) -> Advance:
        """Read a chunk. Rows may halt apart; without gradients halted rows stop computing, unless every
        step is asked for."""
        tokens_RNW = self.token_norm(tokens_RNW)
        keys, values = self.keys_values(tokens_RNW).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        at_RN = torch.arange(valid_RN.shape[1], device=valid_RN.device) * valid_RN
        last_R1W = tokens_RNW.gather(1, at_RN.argmax(1)[:, None, None].expand(-1, 1, tokens_RNW.shape[-1]))
        chunk = Chunk(keys, values, last_R1W, valid_RN)
        if every_step or torch.is_grad_enabled():
            return self._all_steps(slots_RKD, chunk)
        return self._until_halted(slots_RKD, chunk)

    def step(self, slots_RKD: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """One refinement: new slots, and the claim of each slot on each token [R, N, K]."""
        width = slots_RKD.shape[-1]
        slots_RKD = self.grn(slots_RKD, chunk.last_R1W)
        query = self.query(self.slot_norm(slots_RKD)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        logits_RHNK = (chunk.keys @ query.transpose(2, 3)).float() * (width / self.heads) ** -0.5
        claims_RHNK = logits_RHNK.log_softmax(-1)
        blocked_RHNK = ~chunk.valid_RN[:, None, :, None]
        share_RHNK = (claims_RHNK + logits_RHNK).masked_fill(blocked_RHNK, -1e9).softmax(2)
        update = (share_RHNK.to(chunk.values.dtype).transpose(2, 3) @ chunk.values).transpose(1, 2).flatten(2)
        return self.cell(update, slots_RKD), claims_RHNK.exp().mean(1)

    def _stop(self, slots_RKD: Tensor) -> Tensor:
        return torch.sigmoid(self.stop(slots_RKD.mean(1)).float()[:, 0])

    def _all_steps(self, slots_RKD: Tensor, chunk: Chunk) -> Advance:
        states, stops, settled, reads = [slots_RKD], [], [], None
        for _ in range(self.steps):
            new, claims = self.step(states[-1], chunk)
            reads = claims if reads is None else reads
            settled.append(change(new, states[-1]) < self.epsilon)
            stops.append(self._stop(new))
            states.append(new)
        halting_RT = stop_distribution(torch.stack(stops, 1))
        hard_RT, executed_R = truncate(halting_RT.detach(), torch.stack(settled, 1), self.threshold)
        weights_RT = hard_RT + halting_RT - halting_RT.detach()
        states_RTKD = torch.stack(states[1:], 1)
        mixed = torch.einsum("rt,rtkd->rkd", weights_RT, states_RTKD.float())
        return Advance(mixed.to(states[-1].dtype), halting_RT, executed_R, reads, states_RTKD)

    def _until_halted(self, slots_RKD: Tensor, chunk: Chunk) -> Advance:
        """The same sum, computing a row's steps only until it halts."""
        rows = len(slots_RKD)
        mixed = torch.zeros_like(slots_RKD, dtype=torch.float32)
        halting_RT = mixed.new_zeros(rows, self.steps)
        left_R, going = mixed.new_ones(rows), torch.arange(rows, device=mixed.device)
        executed_R = torch.zeros(rows, dtype=torch.long, device=mixed.device)
        reads, state = None, slots_RKD
        for t in range(self.steps):
            new, claims = self.step(state, Chunk(*(part[going] for part in chunk)))
            reads = claims if reads is None else reads
            last = t + 1 == self.steps
            p = left_R[going] * (1.0 if last else self._stop(new))
            ends = (1 - (left_R[going] - p) > self.threshold) | (change(new, state) < self.epsilon) | last
            mixed[going] += torch.where(ends, left_R[going], p)[:, None, None] * new
            halting_RT[going, t] = torch.where(ends, left_R[going], p)
            executed_R[going] = t + 1
            left_R[going] = left_R[going] - p
            going, state = going[~ends], new[~ends]
            if len(going) == 0:
                break
        return Advance(mixed.to(state.dtype), halting_RT, executed_R, reads)


def stop_distribution(stop_RT: Tensor) -> Tensor:
    """p_t = lam_t prod_{j<t} (1 - lam_j); the last step takes what is left. PonderNet, eq. 1."""
    go_on = torch.cumprod(1 - stop_RT, dim=1)
    before = torch.cat([torch.ones_like(go_on[:, :1]), go_on[:, :-1]], 1)
    return torch.cat([(stop_RT * before)[:, :-1], before[:, -1:]], 1)


def truncate(halting_RT: Tensor, settled_RT: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Weights of the executed steps, and how many there are: the rule inference follows.

    A row goes on until the cumulative p passes `threshold` or its slots have settled; what is left goes
    to the last executed step.
    """
    weights, left = [], torch.ones_like(halting_RT[:, 0])
    executed = torch.zeros_like(left, dtype=torch.long)
    going = torch.ones_like(left, dtype=torch.bool)
    for t in range(halting_RT.shape[1]):
        p = halting_RT[:, t]
        ends = (1 - (left - p) > threshold) | settled_RT[:, t] | (t + 1 == halting_RT.shape[1])
        weights.append(torch.where(going, torch.where(ends, left, p), 0.0))
        executed = executed + going
        left, going = left - p, going & ~ends
    return torch.stack(weights, 1), executed


def change(new_RKD: Tensor, old_RKD: Tensor) -> Tensor:
    """Relative move of all slots of a row."""
    moved = (new_RKD - old_RKD).detach().float().flatten(1).norm(dim=1)
    return moved / old_RKD.detach().float().flatten(1).norm(dim=1).clamp(min=1e-6)
