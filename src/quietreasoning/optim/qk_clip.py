"""QK-clip (arXiv 2507.20534): after a step, queries and keys of a head shrink until its logits fit.

    S_h = max q.k * scaling over what the step's forwards attended to;  limit_h = max(tau, the first S_h)
    if S_h > limit_h: gamma_h = limit_h / S_h, shared out over rows of W_q and W_k, and of their biases;
    gamma_g = min of gamma_h over the heads that share a key:
    k_g *= sqrt(gamma_g);  q_h *= gamma_h / sqrt(gamma_g)

so each product is gamma_h times what it was. What does not train does not move: its share falls to the other
side. The limit of a head that begins above tau is where it begins, so loading a model never alters it.
A bound, max |q| max |k| * scaling, costs little; the exact maximum is computed only of heads whose bound is
above their limit. Shapes: B rows, T queries, S keys, D width of a head, H heads, G key heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quietreasoning.config import UserError
from quietreasoning.optim.shards import cut_like, highest

PREFIX = "qk_clip_"  # of its name in a checkpoint
BLOCK = 128  # queries whose logits are held at once


@dataclass
class Heads:
    """The heads of one attention layer: how to shrink them, and what a step has seen of them."""

    parameter: nn.Parameter  # one of those that train: its name in a checkpoint holds the limits
    heads: int
    key_heads: int
    query_trains: bool
    key_trains: bool
    shrink: Callable[[Tensor | None, Tensor | None], None]  # factors of queries [H] and keys [G]
    seen_H: Tensor | None = field(default=None, repr=False)  # exact where above the limit, else a bound
    limit_H: Tensor | None = field(default=None, repr=False)


class QkClip:
    """Call `observe` from each attention inside `watching`, `step` after the optimizers, then `forget`."""

    def __init__(
        self,
        layers: Sequence[Heads],
        tau: float,
        watching: Callable[[QkClip], AbstractContextManager[Any]],
    ):
        self.layers = list(layers)
        self.tau = tau
        self._watching = watching

    def watching(self) -> AbstractContextManager[Any]:
        return self._watching(self)

    @torch.no_grad()
    def observe(
        self,
        layer: Heads,
        query_BHTD: Tensor,
        key_BGSD: Tensor,
        scaling: float,
        mask: Tensor | None,
        causal: bool,
    ) -> None:
        """Queries and keys as their products become logits, so after any rotation; see `largest_logits`."""
        wide = torch.promote_types(query_BHTD.dtype, torch.float32)
        query_BHTD, key_BGSD = query_BHTD.detach().to(wide), key_BGSD.detach().to(wide)
        group = layer.heads // layer.key_heads
        longest_BG = key_BGSD.norm(dim=-1).amax(-1)
        longest_BH = query_BHTD.norm(dim=-1).amax(-1) * longest_BG.repeat_interleave(group, 1)
        seen_H = longest_BH.amax(0) * abs(scaling)
        above_H = seen_H > (self.tau if layer.limit_H is None else layer.limit_H.clamp(min=self.tau))
        if above_H.any():
            which = above_H.nonzero().flatten()
            query, key = query_BHTD[:, which], key_BGSD[:, which // group]
            of_heads = mask[:, which] if mask is not None and mask.shape[1] > 1 else mask
            seen_H[which] = largest_logits(query, key, scaling, of_heads, causal)
        layer.seen_H = seen_H if layer.seen_H is None else torch.maximum(layer.seen_H, seen_H)

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Shrinks what lies above its limit, alike on all ranks; returns figures for the log."""
        seen = highest(torch.cat([self._or_none(layer, layer.seen_H) for layer in self.layers]))
        limit = torch.cat([self._or_none(layer, layer.limit_H) for layer in self.layers])
        if not torch.isfinite(torch.maximum(seen, limit)).any():
            raise UserError(
                f"optim.qk_clip.tau={self.tau:g}: training read no attention of the backbone: the method "
                "does not run it, or its family does not attend through transformers. Set optim.qk_clip=null."
            )
        fresh = ~torch.isfinite(limit) & torch.isfinite(seen)
        if all(layer.limit_H is None for layer in self.layers):
            self._tell(seen[fresh & (seen > self.tau)])
        limit = torch.where(fresh, seen.clamp(min=self.tau), limit)
        gamma = torch.where(seen > limit, limit / seen, torch.ones_like(seen))
        gamma = torch.where(torch.isfinite(limit), gamma, torch.ones_like(gamma))
        sizes = [layer.heads for layer in self.layers]
        clipped = (gamma < 1).sum()
        figures = torch.stack([seen.max(), limit.max(), clipped.to(seen.dtype)]).tolist()
        for layer, limit_H, gamma_H in zip(self.layers, limit.split(sizes), gamma.split(sizes), strict=True):
            layer.limit_H = limit_H.clone()
            if figures[2] and (gamma_H < 1).any():
                layer.shrink(*shares(gamma_H, layer.key_heads, layer.query_trains, layer.key_trains))
        names = ("qk_max", "qk_limit", "qk_clipped")
        return {"qk_tau": self.tau} | dict(zip(names, figures, strict=True))

    def forget(self) -> None:
        for layer in self.layers:
            layer.seen_H = None

    def state(self, names: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
        limits = {layer.parameter: layer.limit_H for layer in self.layers if layer.limit_H is not None}
        return {name: {f"{PREFIX}limit": limits[p]} for name, p in names.items() if p in limits}

    def load_state(self, p: nn.Parameter, held: Mapping[str, Any]) -> None:
        """What `state` says of one parameter, if anything."""
        for layer in self.layers:
            if layer.parameter is p and f"{PREFIX}limit" in held:
                layer.limit_H = held[f"{PREFIX}limit"]

    def _tell(self, above: Tensor) -> None:
        if len(above):
            warnings.warn(
                f"optim.qk_clip.tau={self.tau:g} is below what {len(above)} attention heads begin with (up "
                f"to {float(above.max()):.3g}): each keeps its own as its limit, and is not altered",
                stacklevel=2,
            )

    def _or_none(self, layer: Heads, held_H: Tensor | None) -> Tensor:
        """`held_H`, or -inf for every head, in a precision on which all ranks agree."""
        p = layer.parameter
        wide = torch.promote_types(p.dtype, torch.float32)
        if held_H is not None:
            return held_H.to(wide)
        return torch.full((layer.heads,), -torch.inf, dtype=wide, device=p.device)


def shares(
    gamma_H: Tensor, key_heads: int, query_trains: bool = True, key_trains: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Factors of queries [H] and keys [G] by which head h's logits become gamma_h times what they were.

    None for a side that does not train. If only keys train, a head gets the least gamma of its group.
    """
    group = len(gamma_H) // key_heads
    least_G = gamma_H.view(key_heads, group).amin(1)
    if not key_trains:
        return gamma_H, None
    if not query_trains:
        return None, least_G
    return gamma_H / least_G.sqrt().repeat_interleave(group), least_G.sqrt()


def shrink_rows(linear: nn.Module, factors: Tensor) -> None:
    """Multiply the rows of each head, and of the bias, by its factor, in place; shards too."""
    rows_R = factors.repeat_interleave(linear.out_features // len(factors))
    for p in (linear.weight, linear.bias):
        if p is not None:
            shaped = rows_R.to(p.dtype).view(-1, *[1] * (p.ndim - 1)).expand(p.shape)
            p.mul_(cut_like(shaped.contiguous(), p))


def largest_logits(
    query_BHTD: Tensor, key_BHSD: Tensor, scaling: float, mask: Tensor | None, causal: bool
) -> Tensor:
    """Largest q.k * scaling of each head [H] over the pairs that attend; -inf where none does.

    mask: [B or 1, H or 1, T, S or more], true or about zero where a query sees a key; None: all, or, if
    causal, no later ones. Memory grows with BLOCK times S.
    """
    queries, keys = query_BHTD.shape[2], key_BHSD.shape[2]
    at_S = torch.arange(keys, device=key_BHSD.device)
    found = []
    for first in range(0, queries, BLOCK):
        rows = slice(first, min(first + BLOCK, queries))
        logits = query_BHTD[:, :, rows] @ key_BHSD.mT * scaling
        if mask is not None:
            part = mask[:, :, rows, :keys]
            sees = part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
            logits = logits.masked_fill(~sees, -torch.inf)
        elif causal:
            logits = logits.masked_fill(at_S > at_S.new_tensor(range(queries)[rows])[:, None], -torch.inf)
        found.append(logits.amax((0, 2, 3)))
    return torch.stack(found).amax(0)
