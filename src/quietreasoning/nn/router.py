"""The planner: from the workspace of a chunk to what the chunk may spend.

Shapes: R rows, D slot width, G state-space experts, E adapters, K chosen adapters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quietreasoning.nn.adapters import Choice, spread

PARTS = ("ssm", "pkm", "temperature", "adapters", "episodic", "knn")


class Plan(NamedTuple):
    """What one chunk of each row may use. A part that is off is None, and then costs nothing."""

    ssm_RG: Tensor | None = None  # gate of each expert; exactly zero: skipped
    pkm_R: Tensor | None = None  # gate of the product-key reads; exactly zero: skipped
    temperature_R: Tensor | None = None  # factor on the memory's temperature, 1/2 to 2
    choice: Choice | None = None  # adapters and their weights
    episodic_R: Tensor | None = None  # how many episodes may be fetched
    knn_R: Tensor | None = None  # bias of the neighbour mixture's weight, 0 to its maximum
    logits: dict[str, Tensor] = {}


class Router(nn.Module):
    """One small network for all decisions of a chunk; each output has a module that obeys it.

    A use-or-skip decision is hard and deterministic, the same in training and decoding: gate g if
    g > threshold, else exactly 0, with the gradient of g (straight-through), so that a skipped module
    can be asked for again. Adapters: the K most likely, their probabilities renormalised.
    """

    def __init__(
        self,
        slot_width: int,
        hidden: int,
        *,
        experts: int,
        adapters: int,
        active: int,
        episodic: tuple[int, ...],
        knn_max: float,
        threshold: float = 0.3,
        start: float = 0.4,
    ):
        super().__init__()
        self.active, self.threshold, self.knn_max, self.episodic = active, threshold, knn_max, episodic
        self.norm, self.inner = nn.LayerNorm(slot_width), nn.Linear(slot_width, hidden)
        widths = (experts, 1, 1, adapters, len(episodic), 1)
        self.heads = nn.ModuleDict({p: nn.Linear(hidden, w) for p, w in zip(PARTS, widths, strict=True) if w})
        for part in ("ssm", "pkm"):
            if part in self.heads:
                nn.init.constant_(self.heads[part].bias, math.log(start / (1 - start)))

    def forward(self, pooled_RD: Tensor, parts: tuple[str, ...]) -> Plan:
        """The plan of rows whose workspace pools to `pooled_RD`; `parts` names what is asked for."""
        inner = F.silu(self.inner(self.norm(pooled_RD)))
        logits = {part: self.heads[part](inner).float() for part in parts}
        values: dict[str, Tensor | Choice] = {}
        if "ssm" in logits:
            values["ssm_RG"] = use_or_skip(torch.sigmoid(logits["ssm"]), self.threshold)
        if "pkm" in logits:
            values["pkm_R"] = use_or_skip(torch.sigmoid(logits["pkm"][:, 0]), self.threshold)
        if "temperature" in logits:
            values["temperature_R"] = torch.exp2(torch.tanh(logits["temperature"][:, 0]))
        if "adapters" in logits:
            values["choice"] = choose(logits["adapters"].softmax(-1), self.active)
        if "episodic" in logits:
            grid = torch.tensor(
                self.episodic, device=inner.device
            )  # no buffer: weights may come from the meta device
            values["episodic_R"] = grid[logits["episodic"].argmax(-1)]
        if "knn" in logits:
            values["knn_R"] = self.knn_max * torch.sigmoid(logits["knn"][:, 0])
        return Plan(**values, logits=logits)


def stack(plans: list[Plan]) -> Plan:
    """What modules obey of the plans of C chunks, chunks as rows [R C, ...]."""
    if len(plans) == 1:
        return plans[0]

    def join(parts: tuple) -> Tensor | Choice | None:
        if parts[0] is None:
            return None
        if isinstance(parts[0], Choice):
            return Choice(*map(join, zip(*parts, strict=True)))
        return torch.stack(parts, 1).flatten(0, 1)

    obeyed = ("ssm_RG", "pkm_R", "temperature_R", "choice")
    return Plan(**{name: join(tuple(getattr(plan, name) for plan in plans)) for name in obeyed})


def use_or_skip(gate: Tensor, threshold: float) -> Tensor:
    """gate where it passes the threshold, exactly 0 elsewhere; the gradient is the gate's (1308.3432)."""
    hard = torch.where(gate > threshold, gate, 0.0).detach()
    return hard + (gate - gate.detach())


def choose(share_RE: Tensor, active: int) -> Choice:
    """The `active` largest shares, renormalised to one."""
    weights_RK, indices_RK = share_RE.topk(min(active, share_RE.shape[-1]), dim=-1)
    choice = Choice(indices_RK, weights_RK / weights_RK.sum(-1, keepdim=True))
    return choice._replace(shares_RE=spread(choice, share_RE.shape[-1]))


def neutral(rows: int, parts: tuple[str, ...], router: Router, device: torch.device) -> Plan:
    """Without a workspace nothing is known about a chunk: all asked for is used, alike for all rows."""
    ones = torch.ones(rows, device=device)
    heads = router.heads
    return Plan(
        ssm_RG=ones[:, None].expand(-1, heads["ssm"].out_features) if "ssm" in parts else None,
        pkm_R=ones if "pkm" in parts else None,
        temperature_R=ones if "temperature" in parts else None,
        choice=choose(ones[:, None].expand(-1, heads["adapters"].out_features), router.active)
        if "adapters" in parts
        else None,
        logits={},
    )
