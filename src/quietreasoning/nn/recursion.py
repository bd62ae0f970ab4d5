"""A tiny recursive reasoner (TRM, arXiv 2510.04871): one small network, evaluated again and again.

Shapes: B rows, L context positions of width W, K slots, P positions that are updated, D width, O output.

A row keeps an answer state y and a latent state z. One call is one supervision step: T rounds of n latent
steps z <- f(z + y + x) and one answer step y <- f(z + y), which does not see x. Only the last round has a
gradient, through all of its n + 1 evaluations. The caller hands y and z, cut from the graph, to the next
step, and prepares the context anew where the weights have moved in between.

full: context and slots are updated together and all read each other, P = L + K.
slots: only the slots are updated, P = K; they read the context, which stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.nn.recursion_blocks import STYLES, Given, Layer, Network, turns
from quietreasoning.nn.recursion_config import RecursionConfig

HALT_BIAS = -5.0  # the halting head starts sure that no row is done


class Carry(NamedTuple):
    """What a row takes from one supervision step to the next; never a graph."""

    y_BPD: Tensor
    z_BPD: Tensor

    def rows(self, index_R: Tensor) -> Carry:
        return Carry(self.y_BPD[index_R], self.z_BPD[index_R])

    def renew(self, rows_B: Tensor, fresh: Carry) -> Carry:
        """Rows where rows_B is True begin anew, the others go on."""
        new_B11 = rows_B[:, None, None]
        return Carry(*(torch.where(new_B11, new, old) for old, new in zip(self, fresh, strict=True)))


class Thought(NamedTuple):
    """One supervision step."""

    carry: Carry
    output_BPO: Tensor  # in mode full the K slots are the last positions
    halt_B: Tensor  # logit of being done


class Head(nn.Module):
    """scale * W y + bias: y has the same length at every position, what is asked need not."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, width))
        self.scale, self.bias = nn.Parameter(torch.empty(outputs)), nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, y_BPD: Tensor) -> Tensor:
        return F.linear(y_BPD, self.weight) * self.scale + self.bias


class Reasoner(nn.Module):
    """`prepare` a context, `begin` y and z, then call once a supervision step."""

    no_decay = ("slots_KD", "start_2D")

    def __init__(self, config: RecursionConfig):
        super().__init__()
        self.config = c = config
        style, reads = STYLES[c.style], c.mode == "slots"
        positions = None if c.mixer == "attention" else c.slots + (0 if reads else c.context)
        self.enter = nn.Linear(c.context_width, c.width, bias=style.bias)
        # distinct rows: symmetry is broken
        self.slots_KD = nn.Parameter(torch.empty(c.slots, c.width)) if c.slots else None
        self.network = Network(
            [
                Layer(style, c.width, c.heads, c.expansion, c.eps, positions=positions, reads=reads)
                for _ in range(c.layers)
            ]
        )
        self.norm_y = nn.RMSNorm(c.width, eps=c.eps, elementwise_affine=style.gain)
        gain_z = style.gain and c.latent_steps > 0  # without latent steps nothing learns it
        self.norm_z = nn.RMSNorm(c.width, eps=c.eps, elementwise_affine=gain_z)
        if c.start == "learned":
            self.start_2D = nn.Parameter(torch.empty(2, c.width))
        else:
            self.register_buffer("start_2D", torch.empty(2, c.width))
        self.head, self.halt = Head(c.width, c.outputs), nn.Linear(c.width, 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Linear layers that keep the variance, biases zero; nothing is said to be done at first."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        if self.slots_KD is not None:
            nn.init.normal_(self.slots_KD)
        nn.init.normal_(self.start_2D)
        nn.init.zeros_(self.halt.weight)
        nn.init.constant_(self.halt.bias, HALT_BIAS)

    def prepare(self, context_BLW: Tensor, valid_BL: Tensor | None = None) -> Given:
        """What every step of these rows needs of the context.

        valid_BL: bool, False at padding on the right, which may hold anything and be of any length; None:
        all is real. A slot's x is its own vector and the last real state, which often knows what comes next.
        Raises ValueError where the context is too wide or too long.
        """
        c = self.config
        if context_BLW.shape[-1] != c.context_width:
            raise ValueError(
                f"context_width={c.context_width}, but the context is {context_BLW.shape[-1]} wide; build "
                "the reasoner for the states it reads"
            )
        if valid_BL is not None:
            context_BLW = context_BLW.masked_fill(~valid_BL[..., None], 0.0)
        context_BLD = self._unit(self.enter(context_BLW))
        slots_BKD = context_BLD[:, :0]
        if self.slots_KD is not None:
            slots_BKD = self._unit(self._unit(self.slots_KD) + _last(context_BLD, valid_BL))
        at_BL, at_BK = self._places(context_BLD, valid_BL)
        if c.mode == "slots":
            rope = self._turns(at_BL)
            context = tuple(layer.read.inner.read(context_BLD, rope) for layer in self.network.layers)
            return Given(slots_BKD, None, self._turns(at_BK), context, valid_BL)
        if c.mixer == "mlp":
            context_BLD, valid_BL = self._fill(context_BLD, valid_BL)
            rope = None  # a place of its own for every position needs no other sign
        else:
            rope = self._turns(torch.cat([at_BL, at_BK], 1))
        x_BPD = torch.cat([context_BLD, slots_BKD], 1)
        return Given(x_BPD, None if valid_BL is None else F.pad(valid_BL, (0, c.slots), value=True), rope)

    def begin(self, given: Given) -> Carry:
        """y and z before the first step, alike for every row and position."""
        y_D, z_D = self.start_2D.to(given.x_BPD.dtype)
        return Carry(y_D.expand_as(given.x_BPD), z_D.expand_as(given.x_BPD))

    def forward(self, given: Given, carry: Carry) -> Thought:
        """One supervision step. Rows do not see each other."""
        with torch.no_grad():
            for _ in range(self.config.rounds - 1):
                carry = self.round(given, carry)
        y_BPD, z_BPD = self.round(given, carry)
        halt_B = self.halt(self._asked(y_BPD, given)).float()[:, 0]
        return Thought(Carry(y_BPD.detach(), z_BPD.detach()), self.head(y_BPD), halt_B)

    def round(self, given: Given, carry: Carry) -> Carry:
        """n latent steps and one answer step, which sees neither x nor the context; where it is all there is,
        it sees both, and this is a plain network of as many layers."""
        y_BPD, z_BPD = carry
        if not self.config.latent_steps:
            return Carry(self.norm_y(self.network(z_BPD + y_BPD + given.x_BPD, given)), z_BPD)
        for _ in range(self.config.latent_steps):
            z_BPD = self.norm_z(self.network(z_BPD + y_BPD + given.x_BPD, given))
        return Carry(self.norm_y(self.network(z_BPD + y_BPD, given._replace(context=()))), z_BPD)

    def _asked(self, y_BPD: Tensor, given: Given) -> Tensor:
        """[B, D]: the mean of the slots, or of the real positions where there are no slots."""
        if self.config.slots:
            return y_BPD[:, -self.config.slots :].mean(1)
        if given.valid_BP is None:
            return y_BPD.mean(1)
        real_BP1 = given.valid_BP[..., None]
        return y_BPD.masked_fill(~real_BP1, 0.0).sum(1) / real_BP1.sum(1).clamp(min=1)

    def _unit(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.config.eps)

    def _places(self, context_BLD: Tensor, valid_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where the context stands, and the slots after its last real position whatever the padding."""
        if valid_BL is None:
            valid_BL = context_BLD.new_ones(context_BLD.shape[:2], dtype=torch.bool)
        at_BL = valid_BL.cumsum(1) - 1
        return at_BL, valid_BL.sum(1)[:, None] + torch.arange(self.config.slots, device=at_BL.device)

    def _turns(self, at_BP: Tensor) -> tuple[Tensor, Tensor] | None:
        c = self.config
        return turns(at_BP, c.width // c.heads, c.rope_base) if c.rope else None

    def _fill(self, context_BLD: Tensor, valid_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The context padded to the one length that the mixing net has."""
        missing = self.config.context - context_BLD.shape[1]
        if missing < 0:
            raise ValueError(
                f"context={self.config.context}, but {context_BLD.shape[1]} positions came: raise context"
            )
        if valid_BL is None and missing:
            valid_BL = context_BLD.new_ones(context_BLD.shape[:2], dtype=torch.bool)
        return F.pad(context_BLD, (0, 0, 0, missing)), None if valid_BL is None else F.pad(
            valid_BL, (0, missing)
        )


class Answer(NamedTuple):
    """What rows had to say when each of them stopped."""

    output_BPO: Tensor
    steps_B: Tensor  # supervision steps computed for the row
    halt_B: Tensor  # the logit at its last step


@torch.no_grad()
def think(
    reasoner: Reasoner,
    given: Given,
    *,
    steps: int,
    cut: float | None = 0.5,
    least: int = 1,
    between: Callable[[Carry], Carry] | None = None,
) -> Answer:
    """Supervision steps until a row's halting probability passes `cut`, at most `steps`, at least `least`.

    A row that is done leaves the batch: only the rows still going are computed. cut=None computes every step.
    between: what becomes of the states of the rows still going between two steps, for experiments.
    """
    if steps < 1 or not 1 <= least <= steps:
        raise ValueError(f"steps={steps}, least={least}: give 1 <= least <= steps")
    if cut is not None and not 0 <= cut < 1:
        raise ValueError(f"cut={cut} is no probability to pass; give 0 <= cut < 1, or None for all steps")
    going_R = torch.arange(len(given.x_BPD), device=given.x_BPD.device)
    carry, outputs, halts = reasoner.begin(given), None, None
    steps_B = torch.zeros_like(going_R)
    for step in range(1, steps + 1):
        done = reasoner(given, carry)
        if outputs is None:
            outputs, halts = torch.empty_like(done.output_BPO), torch.empty_like(done.halt_B)
        stops_R = torch.full_like(going_R, step == steps, dtype=torch.bool)
        if cut is not None and step >= least:
            stops_R |= done.halt_B.sigmoid() > cut
        ended_R = going_R[stops_R]
        outputs[ended_R], halts[ended_R], steps_B[ended_R] = (
            done.output_BPO[stops_R],
            done.halt_B[stops_R],
            step,
        )
        going_R, carry = going_R[~stops_R], done.carry
        if not len(going_R):
            break
        if len(ended_R):
            left_R = (~stops_R).nonzero()[:, 0]
            given, carry = given.rows(left_R), carry.rows(left_R)
        carry = carry if between is None else between(carry)
    return Answer(outputs, steps_B, halts)


def _last(context_BLD: Tensor, valid_BL: Tensor | None) -> Tensor:
    """[B, 1, D]: the last real position."""
    if valid_BL is None:
        return context_BLD[:, -1:]
    at_BL = torch.arange(valid_BL.shape[1], device=valid_BL.device) * valid_BL
    return context_BLD.gather(1, at_BL.argmax(1)[:, None, None].expand(-1, 1, context_BLD.shape[-1]))
